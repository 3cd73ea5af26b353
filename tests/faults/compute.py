"""Wrong results, planted into trainings that are audited: `compute.py JSON`, under a launcher.

One job has many cases, since an audit's error is raised on all workers, which can go on. What goes
wrong does so in this program: the traced micro-batch is called through a wrapper here, or a layer
of the model has an operation that it wraps.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ddp_gd
from ddp_gd.steps import shares

ROWS, BATCH, PIECE = 60, 20, 2  # three steps of ten micro-batches an epoch
# Where a result is wrong: what the micro-batch gives, or inside of the model.
SUMS = ("loss", "gradient", "state", "metric")
INSIDE = ("forward", "backward")
HOW = ("bit", "value", "whole")


@dataclasses.dataclass(frozen=True)
class Trial:
    """What goes wrong on which worker.

    Attributes:
        rank: the worker; -1 for none.
        place: one of `SUMS` and `INSIDE`.
        how: one of `HOW`: a bit flips, a value is another, or all values are.
        first: the result of the place, counted from 0, with which it begins.
        every: it comes again after so many; 0 for never.
        part: of the micro-batches that is audited.
        seed: of the rest.
    """

    rank: int
    place: str
    how: str
    first: int
    every: int
    part: float
    seed: int


def trials(count: int, workers: int, seed: str, clean: int = 0) -> list[Trial]:
    """So many trials for jobs of so many workers, the last `clean` of them with nothing wrong."""
    r = random.Random(f"{seed} {workers}")
    found = []
    for number in range(count):
        every = r.choice([0, 50, 1])
        # Once: it is met for certain where all are audited. Else where the training is long enough.
        part = 1.0 if every == 0 else r.choice([0.5, 1.0]) if every == 1 else 1.0
        rank = -1 if number >= count - clean else r.randrange(workers)
        place, how = r.choice(SUMS + INSIDE), r.choice(HOW)
        found.append(Trial(rank, place, how, r.randrange(4), every, part, r.randrange(1000)))
    return found


class Strike:
    """Changes a result when it is time to; armed, since the model is tried before the training."""

    def __init__(self, trial: Trial, here: bool):
        self.trial = trial
        self.armed = False
        self.struck = 0
        self._here = here
        self._calls = 0
        self._r = np.random.default_rng(trial.seed)

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Return the value, or a wrong one."""
        if not (self.armed and self._here):
            return value
        trial, call = self.trial, self._calls
        self._calls += 1
        late = call - trial.first
        if late != 0 and not (trial.every and late > 0 and late % trial.every == 0):
            return value
        self.struck += 1
        return wrong(value, trial.how, self._r)


def wrong(value: np.ndarray, how: str, r: np.random.Generator) -> np.ndarray:
    """What a faulty core may make of some values."""
    changed = np.array(value)  # a copy
    if how == "whole":
        return (changed * 1.5 + 1).astype(value.dtype)
    flat = changed.reshape(-1)
    place = r.integers(flat.size)
    if how == "value":
        flat[place] = flat[place] * 3 + 1
    else:
        as_bytes = flat.view(np.uint8)
        byte = place * value.dtype.itemsize + r.integers(value.dtype.itemsize)
        as_bytes[byte] ^= 1 << int(r.integers(8))
    return changed


def through(strike: Callable[[np.ndarray], np.ndarray], tensor: Any) -> Any:
    """A tensor that may be changed on its way."""
    found = tf.numpy_function(strike, [tensor], tensor.dtype)
    return tf.ensure_shape(found, tensor.shape)


class Wrapped:
    """A traced micro-batch, one of whose results may be changed."""

    def __init__(self, function: Any, strike: Strike):
        self._function, self._strike = function, strike
        self.structured_outputs = function.structured_outputs

    def __call__(self, *arguments: Any) -> tuple[Any, Any]:
        """Compute it, and change it."""
        sums, pieces = self._function(*arguments)
        place = self._strike.trial.place
        if place == "loss":
            return sums._replace(loss=through(self._strike, sums.loss)), pieces
        field = {"gradient": "gradients", "metric": "metrics", "state": "state"}[place]
        values = list(getattr(sums, field))
        floating = [n for n, v in enumerate(values) if v.dtype.is_floating]
        which = floating[self._strike.trial.seed % len(floating)]
        values[which] = through(self._strike, values[which])
        return sums._replace(**{field: values}), pieces


class Passes(layers.Layer):
    """Passes its input on, or the gradient back, through an operation that may go wrong."""

    strike: Strike | None = None

    def call(self, x: Any) -> Any:
        """Pass it on."""
        strike = self.strike
        if strike is None or strike.trial.place not in INSIDE:
            return x

        @tf.custom_gradient
        def passed(value: Any) -> Any:
            forward = strike.trial.place == "forward"
            out = through(strike, value) if forward else tf.identity(value)
            return out, lambda slope: slope if forward else through(strike, slope)

        return passed(x)


class Arm(keras.callbacks.Callback):
    """Arms a strike when the training begins."""

    def __init__(self, strike: Strike):
        super().__init__()
        self._strike = strike

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Arm it."""
        self._strike.armed = True


def run(trial: Trial) -> dict[str, Any]:
    """Train with a fault; tell what was found."""
    strike = Strike(trial, ddp_gd.rank() == trial.rank)
    init = shares.SharedStep.__init__

    def wrapped_init(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        if options["training"] and trial.place in SUMS:
            self.traced = Wrapped(self.traced, strike)

    shares.SharedStep.__init__ = wrapped_init  # type: ignore[method-assign]
    try:
        left = _train(trial, strike)
        if trial.rank >= 0 and left["ranks"] is None:
            # A small change may be rounded away before anything is summed: nothing was wrong then.
            nothing = Strike(trial, here=False)
            left["harmless"] = _train(trial, nothing)["fingerprint"] == left["fingerprint"]
        return left
    finally:
        shares.SharedStep.__init__ = init  # type: ignore[method-assign]


def _train(trial: Trial, strike: Strike) -> dict[str, Any]:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    passes = Passes()
    passes.strike = strike
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu"),
            passes,
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    r = np.random.default_rng(1)
    x, y = r.normal(size=(ROWS, 6)), r.normal(size=(ROWS, 1))
    left: dict[str, Any] = {"ranks": None, "text": "", "updates": 0}
    try:
        ddp_gd.fit(
            model,
            x,
            y,
            batch_size=BATCH,
            micro_batch_size=PIECE,
            epochs=3,
            verbose=0,
            seed=trial.seed,
            audit=trial.part,
            callbacks=[Arm(strike)],
        )
    except ddp_gd.AuditError as error:
        left = {"ranks": list(error.ranks), "text": str(error), "hosts": list(error.hosts)}
    return left | {
        "updates": int(model.optimizer.iterations.numpy()),
        "fingerprint": ddp_gd.fingerprint(model),
        "struck": strike.struck,
    }


def main() -> None:
    """Run the trials of a JSON list of arguments; each worker writes what it saw, as JSON."""
    file = Path(sys.argv[1])
    ddp_gd.init(sys.argv[2], bitwise=True)
    found = [run(Trial(**options)) for options in json.loads(file.read_text())]
    Path(f"{file}.{ddp_gd.rank()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
