"""What ddp_gd costs beside what a user would pick instead: `bash launch/bench.sh`."""
