"""One worker's training of every case equals Keras's, whole and in pieces.

A share that is computed in micro-batches is summed as the shares of several workers are, so this
covers most of what can go wrong with many of them. Real jobs: `test_distributed.py`.
"""

from __future__ import annotations

import functools

import keras
import pytest
from programs import compare
from programs.compare import CASES, ONE_PIECE, Outcome

pytestmark = pytest.mark.filterwarnings(
    # Keras's own, about cases made to have such variables.
    "ignore:Gradients do not exist for variables:UserWarning",
)

SHORT = [name for name in CASES if not name.startswith("training_")]


@functools.cache
def _with_keras(name: str) -> Outcome:
    return compare.train(name, with_keras=True)


@pytest.mark.parametrize("name", [n for n in SHORT if n not in ONE_PIECE][::3])
def test_micro_batches_train_as_keras_does(name: str) -> None:
    """Computed in pieces of 3 rows, the last ones smaller, a training is still Keras's."""
    assert compare.differences(_with_keras(name), compare.train(name, micro_batch_size=3)) == []


@pytest.mark.parametrize("micro_batch_size", [1, 7, 100])
@pytest.mark.parametrize(
    "name",
    ["loss_mean_with_sample_weight_weighted", "whole_shares_masked", "setting_global_clipnorm"],
)
def test_no_micro_batch_size_changes_the_result(name: str, micro_batch_size: int) -> None:
    """Pieces of one row, of most rows, and of more rows than there are make the same updates."""
    actual = compare.train(name, micro_batch_size=micro_batch_size)
    assert compare.differences(_with_keras(name), actual) == []


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 3e-3), ("mixed_bfloat16", 3e-2)]
)
def test_mixed_precision_trains_as_keras_does(policy: str, tolerance: float) -> None:
    """With half-precision layers, pieces train as the whole does, to the precision of halves."""
    keras.config.set_dtype_policy(policy)
    try:
        expected = compare.train("two_lookups", with_keras=True)
        actual = compare.train("two_lookups", micro_batch_size=3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert compare.differences(expected, actual, tolerance) == []


@pytest.mark.parametrize(
    "name", [*ONE_PIECE, *[n for n in CASES if n.startswith("training_")][::2]]
)
def test_a_training_in_one_process_is_keras_own(name: str) -> None:
    """On one worker without micro-batches, weights, optimizer and History are Keras's."""
    assert compare.differences(_with_keras(name), compare.train(name)) == []
