"""One global mini-batch becomes one update."""
