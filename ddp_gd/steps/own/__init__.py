"""Training steps of the user's: a model's own, or a loop by hand."""
