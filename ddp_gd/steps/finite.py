"""Whether losses and gradients are numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

Tensor = Any


def looked_at(
    optimizer: Any, weights: Sequence[Any], gradients: Sequence[Any], spare: bool
) -> list[Tensor]:
    """The gradients in which NaN and infinity are looked for.

    None of a LossScaleOptimizer, which looks for itself and tries again with a smaller scale. One
    worker leaves out large ones, of which a small one of the same layer tells (a bias has what its
    kernel has): it takes 7 % of a step where they are all there is. Unless only the kernel's sum
    overflows; then the next step's loss is NaN, or the weights are at the end of the epoch
    (`replicas.require_finite`). Clipping to a value would hide that.

    Args:
        optimizer: to which the gradients go.
        weights: what they are of.
        gradients: of each weight: a tensor, IndexedSlices or None.
        spare: whether one worker computes them.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return []
    found = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
    named = [(w.path.rpartition("/")[0], math.prod(w.shape) > 2**16, g) for w, g in found]
    told: set[str] = set()
    if spare and not optimizer.clipvalue:
        told = {layer for layer, large, _ in named if not large}
    kept = [g for layer, large, g in named if not (large and layer in told)]
    return [g.values if isinstance(g, tf.IndexedSlices) else g for g in kept]


def all_finite(values: Sequence[Tensor]) -> Tensor:
    """Whether all of them are: a bool scalar. A sum tells of all its terms, and takes one pass."""
    wide = [tf.cast(v, tf.float32) if v.dtype.size < 4 else v for v in values]
    finite = [tf.constant(True), *(tf.math.is_finite(tf.reduce_sum(v)) for v in wide)]
    return tf.reduce_all(finite)
