"""The public verbs: fit, evaluate, predict."""
