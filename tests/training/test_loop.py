"""How an epoch's steps become calls into TensorFlow, and what is set before one starts."""

from __future__ import annotations

import threading
import types
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ddp_gd.batching import array_source
from ddp_gd.batching.array_source import ArraySource
from ddp_gd.batching.arrays import Arrays
from ddp_gd.batching.plan import Plan
from ddp_gd.job import runtime
from ddp_gd.training import loop
from ddp_gd.training.loop import Loop


class Steps:
    """Takes the place of the compiled steps: 1024 take a second of a clock of its own."""

    training = True
    now = 0.0
    log_names = ()

    def same_graph(self, one: int, other: int) -> bool:
        return True

    def run(self, rows: Any, shares: Any, again: Any) -> Any:
        steps = len(shares.batch_rows)
        self.now += steps / 1024
        finite = tf.constant(True)
        return types.SimpleNamespace(
            steps=steps, finite=finite, share_finite=True, stop=False, logs=[], audit=()
        )


def make(steps: Steps, count: int, x: Any = None) -> Loop:
    """A loop over so many steps of one row."""
    communicator = runtime.communicator()
    arrays = Arrays(np.zeros((count, 1)) if x is None else x)
    return Loop(steps, ArraySource(arrays, Plan(count, 1), communicator), communicator)  # type: ignore[arg-type]


def lengths(made: Loop, epoch: int, **options: Any) -> list[int]:
    """Run an epoch; the number of steps of each call."""
    found = []
    for first, stop in made.calls(epoch, **options):
        assert made.run(first, stop) == (stop, False)
        found.append(stop - first)
    made.end_epoch()
    return found


def test_calls_take_a_third_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """They grow until they do, and one that the epoch's end cut short changes nothing."""
    steps = Steps()
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: steps.now))
    made = make(steps, 2001)
    calls = lengths(made, 0)
    assert sum(calls) == 2001
    # The next call's rows are read while this one runs, so its length was chosen before.
    assert calls[:7] == [1, 1, 1, 4, 16, 64, 256]
    assert set(calls[calls.index(307) : -1]) == {307}
    assert max(calls) <= loop.SECONDS_PER_CALL * 1024
    again = lengths(made, 1)
    assert set(again[:-1]) == {307}
    assert sum(again) == 2001


def test_callbacks_of_batches_and_pauses_end_a_call() -> None:
    """A call makes one step for the first, and goes no further than a pause."""
    made = make(Steps(), 20)
    assert lengths(made, 0, every=1) == [1] * 20
    assert max(lengths(made, 0, every=3)) == 3
    ends = np.cumsum(lengths(made, 1, before=20, pauses=[6, 15]))
    # Counted from the first epoch on: updates 24, 30 and 36 of 20 to 40.
    assert {4, 10, 16, 20} <= set(ends.tolist())


def test_the_next_rows_are_read_while_this_call_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading goes on in a thread: it may take as long as the call does."""
    monkeypatch.setattr(array_source, "BYTES_WORTH_A_THREAD", 0)
    running, read = threading.Event(), threading.Event()

    class Slow(np.ndarray):
        def take(self, indices: Any, axis: Any = None, **options: Any) -> np.ndarray:
            if 1 in indices:
                assert running.wait(30)
                read.set()
            return np.asarray(self).take(indices, axis=axis)

    made = make(Steps(), 2, np.zeros((2, 1)).view(Slow))
    for first, stop in made.calls(0):
        if first == 0:
            running.set()
            assert read.wait(30)
        made.run(first, stop)
