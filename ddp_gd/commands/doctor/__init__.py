"""`python -m ddp_gd.doctor`: what is there, does it work, and what mends it."""
