"""What each loss divides by, against what Keras does."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ddp_gd.steps.losses import CompiledLosses

Y = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
P = Y + 1
W = np.array([1, 0, 2, 5], "float32")[:, None] * np.ones(3, "float32")
MASK = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]], bool)


def _losses(loss: Any) -> CompiledLosses:
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.Activation("linear")])
    model.compile("sgd", loss)
    model.compute_loss(y=Y, y_pred=P)  # Keras builds the compiled loss
    return CompiledLosses(model)


def _prediction(rows: slice, masked: bool) -> Any:
    p = tf.constant(P[rows])
    if masked:
        p._keras_mask = tf.constant(MASK[rows])
    return p


@pytest.mark.parametrize(
    ("reduction", "weighted", "masked", "expected"),
    [
        ("sum_over_batch_size", False, False, None),  # the number of rows: known without counting
        ("sum_over_batch_size", True, False, None),  # weights don't enter the denominator
        ("sum_over_batch_size", False, True, 6),  # valid timesteps
        ("mean_with_sample_weight", False, False, None),  # without weights it is the mean
        ("mean_with_sample_weight", True, False, 24),  # the sum of weights over timesteps
        ("mean_with_sample_weight", True, True, 13),  # of the valid ones: 1 * 2 + 2 * 3 + 5 * 1
        ("sum", True, True, None),  # no denominator
    ],
)
def test_denominator_table(
    reduction: str, weighted: bool, masked: bool, expected: float | None
) -> None:
    """A denominator counts what Keras divides by, and only where the data decide it."""
    losses = _losses(keras.losses.MeanSquaredError(reduction=reduction))
    everything = slice(None)
    weight = tf.constant(W) if weighted else None
    predicted = _prediction(everything, masked)
    counted = losses.denominators(Y, predicted, weight)
    np.testing.assert_allclose(counted, [expected or 0])
    _, _, _, counts = losses(Y, predicted, weight, tf.constant(1.0), counted)
    assert counts == (expected is not None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "sum"])
def test_parts_add_up_to_the_whole(reduction: str, weighted: bool, masked: bool) -> None:
    """The parts of unequal pieces, an all-masked one among them, sum to Keras's whole loss."""
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    losses = _losses(loss)
    weight = W if weighted else None
    totals = losses.denominators(Y, _prediction(slice(None), masked), weight)
    parts = []
    for rows in (slice(0, 1), slice(1, 2), slice(2, 4)):  # the second one is masked altogether
        share = tf.constant((rows.stop - rows.start) / 4)
        piece = None if weight is None else weight[rows]
        parts.append(losses(Y[rows], _prediction(rows, masked), piece, share, totals)[0])
    whole = loss(Y, _prediction(slice(None), masked), weight)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
