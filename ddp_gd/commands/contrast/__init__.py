"""`python -m ddp_gd.contrast`: one averaged update beside N independent ones."""
