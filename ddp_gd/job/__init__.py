"""This process within its job."""
