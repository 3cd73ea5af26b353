"""`tf.summary` in layers writes of every step, where it does in Keras."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs.cases import sequential
from programs.summaries import Noted, seen

import ddp_gd

pytestmark = pytest.mark.filterwarnings(
    # Keras reads a variable as an array, which NumPy 2 wants done in another way.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)
X = np.arange(10, dtype="float32").reshape(10, 1)
FIT = {"batch_size": 2, "shuffle": False, "verbose": 0, "validation_data": (X[:4], X[:4])}


def _model() -> keras.Model:
    return sequential(
        Noted(), keras.layers.Dense(1), shape=(1,), optimizer=keras.optimizers.SGD(0.0)
    )


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_layers_write_into_tensorboards_files(tmp_path: Path, micro_batch_size: int | None) -> None:
    """Once for every step that `update_freq` says, with the step's number; nothing while the model
    is tried."""
    board = keras.callbacks.TensorBoard(tmp_path, update_freq=2, write_graph=False)
    options = {**FIT, "micro_batch_size": micro_batch_size}
    ddp_gd.fit(_model(), X, X, epochs=2, callbacks=[board], **options)
    means = [0.5, 2.5, 4.5, 6.5, 8.5] * 2
    wanted = [(step + 1, means[step]) for step in (1, 3, 5, 7, 9)]
    if micro_batch_size:  # each of its own
        wanted = [(step, mean + side) for step, mean in wanted for side in (-0.5, 0.5)]
    assert seen(tmp_path / "train") == wanted
    validated = seen(tmp_path / "validation")
    assert [step for step, _ in validated[:: 2 if micro_batch_size else 1]] == [2, 4]


def test_layers_write_to_the_default_writer(tmp_path: Path) -> None:
    """A writer of the user's own gets each step's once, in Keras's number."""
    counts = []
    for name, fit in (("keras", keras.Model.fit), ("ours", ddp_gd.fit)):
        with tf.summary.create_file_writer(str(tmp_path / name)).as_default(step=7):
            fit(_model(), X, X, **FIT)
        counts.append(seen(tmp_path / name))
    assert counts[0] == counts[1]
    assert len(counts[0]) == 7
