"""`python -m ddp_gd.study`: many trainings, one for each setting."""
