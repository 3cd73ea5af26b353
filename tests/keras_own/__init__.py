"""Keras's own tests, run with `fit`, `evaluate` and `predict` replaced by ours."""
