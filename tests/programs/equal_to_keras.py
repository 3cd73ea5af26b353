"""Trains cases on all workers of a job; rank 0 trains them with Keras too, and compares.

Usage: python -m programs.equal_to_keras BACKEND[,bitwise] CASE...
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf
from programs import cases, compare

import ddp_gd


def gradient_differences() -> list[str]:
    """Compare the gradient of one step over all workers with Keras's whole-batch gradient."""
    model, x, y, options = cases.build("gradient")
    before = model.get_weights()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True), options["sample_weight"])
    expected = tape.gradient(loss, [v.value for v in model.trainable_variables])
    ddp_gd.fit(model, x, y, batch_size="full", verbose=0, **options)
    found = []
    for path, old, new, gradient in zip(
        [v.path for v in model.trainable_variables],
        before,
        model.get_weights(),
        expected,
        strict=True,
    ):
        # SGD with learning rate 1: what one update takes away is the gradient.
        error = np.abs(old - new - gradient).max() / np.abs(gradient).max()
        if not error < 2e-6:
            found.append(f"gradient of {path} is off by {error:.1e}")
    return found


def main(backend: str, names: list[str]) -> int:
    """Return how many cases differ."""
    backend, _, mode = backend.partition(",")
    ddp_gd.init(backend, bitwise=mode == "bitwise")
    failures = {"gradient": gradient_differences()}
    for name in names:
        actual = compare.train(name)
        if ddp_gd.rank() == 0:
            failures[name] = compare.differences(compare.train(name, with_keras=True), actual)
    for name, lines in failures.items():
        for line in lines:
            print(f"{name}: {line}", file=sys.stderr)
    if ddp_gd.rank() == 0:
        print(f"compared {len(failures)} cases at {ddp_gd.size()} workers")
    return sum(map(bool, failures.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
