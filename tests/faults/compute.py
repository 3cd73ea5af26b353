"""Wrong results, planted into audited trainings: `compute.py JSON BACKEND`, under a launcher.

One job has many trials, since an audit's error is raised on all workers, which can go on. What goes
wrong does so in this program: the traced micro-batch is called through a wrapper here, and a layer
of the model has operations that may go wrong.
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
from ddp_gd.batching import sources
from ddp_gd.batching.array_source import ArraySource
from ddp_gd.job import runtime
from ddp_gd.steps import shares
from ddp_gd.training import audit, identity, replicas
from ddp_gd.training.loop import open_loop

ROWS, BATCH, PIECE, EPOCHS = 60, 20, 2, 3  # three steps of ten micro-batches an epoch
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
        # One of few is met for certain where all are audited.
        part = r.choice([0.5, 1.0]) if every == 1 else 1.0
        rank = -1 if number >= count - clean else r.randrange(workers)
        place, how = r.choice(SUMS + INSIDE), r.choice(HOW)
        # A worker has 120 // workers results or more; where not all are audited, most are wrong.
        first = r.randrange((120 if part == 1 else 30) // workers)
        found.append(Trial(rank, place, how, first, every, part, r.randrange(1000)))
    return found


class Strike:
    """Changes a result when it is time to."""

    def __init__(self) -> None:
        self._trial: Trial | None = None
        self.struck = 0

    def aim(self, trial: Trial | None) -> None:
        """From now on do what this trial says, or nothing."""
        self._trial = trial
        self.struck = self._calls = 0
        self._r = np.random.default_rng(trial.seed if trial else 0)

    def through(self, place: str, tensor: Any, which: int = 0, count: int = 1) -> Any:
        """A tensor that may be changed on its way: number `which` of `count` at that place."""

        def run(value: np.ndarray) -> np.ndarray:
            trial = self._trial
            if trial is None or trial.rank != ddp_gd.rank():
                return value
            if trial.place != place or trial.seed % count != which:
                return value
            return self._changed(trial, value)

        return tf.ensure_shape(tf.numpy_function(run, [tensor], tensor.dtype), tensor.shape)

    def _changed(self, trial: Trial, value: np.ndarray) -> np.ndarray:
        late = self._calls - trial.first
        self._calls += 1
        if late != 0 and not (trial.every and late > 0 and late % trial.every == 0):
            return value
        self.struck += 1
        return wrong(value, trial.how, self._r)


STRIKE = Strike()


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


class Wrapped:
    """A traced micro-batch, whose results may be changed."""

    def __init__(self, function: Any):
        self._function = function
        self.structured_outputs = function.structured_outputs

    def __call__(self, *arguments: Any) -> tuple[Any, Any]:
        """Compute it, and change it."""
        sums, pieces = self._function(*arguments)
        changed = {"loss": STRIKE.through("loss", sums.loss)}
        for place, field in (("gradient", "gradients"), ("metric", "metrics"), ("state", "state")):
            values = list(getattr(sums, field))
            floating = [n for n, v in enumerate(values) if v.dtype.is_floating]
            for which, number in enumerate(floating):
                values[number] = STRIKE.through(place, values[number], which, len(floating))
            changed[field] = values
        return sums._replace(**changed), pieces


@tf.custom_gradient
def _passed(value: Any) -> Any:
    out = STRIKE.through("forward", value)
    return out, lambda slope: STRIKE.through("backward", slope)


class Passes(layers.Layer):
    """Passes its input on, and the gradient back, through operations that may go wrong."""

    def call(self, x: Any) -> Any:
        """Pass it on."""
        return _passed(x)


def build() -> keras.Model:
    """With batch statistics, random numbers, a metric."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu"),
            Passes(),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    """Features and targets."""
    r = np.random.default_rng(1)
    return r.normal(size=(ROWS, 6)), r.normal(size=(ROWS, 1))


class Arm(keras.callbacks.Callback):
    """Aims when the training begins: the model is tried before."""

    def __init__(self, trial: Trial):
        super().__init__()
        self._trial = trial

    def on_train_begin(self, logs: Any = None) -> None:
        """Aim."""
        STRIKE.aim(self._trial)


def by_fit(trial: Trial) -> dict[str, Any]:
    """What becomes of a trial in a call of `ddp_gd.fit`."""
    model = build()

    def train() -> None:
        x, y = data()
        ddp_gd.fit(
            *(model, x, y, BATCH, EPOCHS),
            micro_batch_size=PIECE,
            verbose=0,
            seed=trial.seed,
            audit=trial.part,
            callbacks=[Arm(trial)],
        )

    return _left(model, train)


class Trainer:
    """Trains the same model again and again, without tracing it each time."""

    def __init__(self) -> None:
        communicator = runtime.communicator()
        self._model = build()
        x, y = data()
        self._source = sources.for_training(
            communicator, (x, y, None), None, BATCH, PIECE, True, seed=0
        )
        identity.build(self._model, self._source.signature)
        audit.arrange(communicator, self._source, 1.0)
        self._loop = open_loop(communicator, self._model, self._source, training=True)
        variables = [*replicas.variables(self._model), *self._model.metrics_variables]
        self._begin = [(variable, variable.numpy()) for variable in variables]

    def run(self, trial: Trial) -> dict[str, Any]:
        """What becomes of a trial."""
        left = self._train(trial, trial)
        if trial.rank >= 0 and left["ranks"] is None:
            # A small change may be rounded away before anything is summed: nothing was wrong then.
            left["harmless"] = self._train(trial, None)["fingerprint"] == left["fingerprint"]
        return left

    def _train(self, trial: Trial, fault: Trial | None) -> dict[str, Any]:
        for variable, value in self._begin:
            variable.assign(value)
        assert isinstance(self._source, ArraySource)
        assert self._source.audit is not None
        self._source.audit = dataclasses.replace(
            self._source.audit, part=trial.part, seed=trial.seed
        )
        STRIKE.aim(fault)
        return _left(self._model, self._epochs)

    def _epochs(self) -> None:
        self._loop.reset()
        for epoch in range(EPOCHS):
            for first, stop in self._loop.calls(epoch):
                self._loop.run(first, stop)
            self._loop.end_epoch()


def _left(model: keras.Model, train: Callable[[], None]) -> dict[str, Any]:
    """What a training leaves, or whom an audit named."""
    left: dict[str, Any] = {"ranks": None, "text": ""}
    try:
        train()
    except ddp_gd.AuditError as error:
        left = {"ranks": list(error.ranks), "text": str(error)}
    return left | {
        "updates": int(model.optimizer.iterations.numpy()),
        "fingerprint": ddp_gd.fingerprint(model),
        "struck": STRIKE.struck,
    }


def main() -> None:
    """Run the trials of a JSON list of arguments; each worker writes what it saw, as JSON.

    The first one through `fit`.
    """
    file = Path(sys.argv[1])
    ddp_gd.init(sys.argv[2], bitwise=True)
    init = shares.SharedStep.__init__

    def wrapped_init(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self.traced = Wrapped(self.traced)

    shares.SharedStep.__init__ = wrapped_init  # type: ignore[method-assign]
    first, *others = (Trial(**options) for options in json.loads(file.read_text()))
    found = [by_fit(first)]
    STRIKE.aim(None)
    trainer = Trainer()
    found += [trainer.run(trial) for trial in others]
    Path(f"{file}.{ddp_gd.rank()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
