"""Streams that go wrong, one after the other, in one job: each is a documented error everywhere.

`hostile_streams.py COUNT [SEED]`, or `hostile_streams.py KIND` to let one of them end the job. The
suite runs some; `mpirun -np 2 python -m programs.hostile_streams 208`, in `tests/`, takes minutes.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ddp_gd
from ddp_gd.comm import agree
from ddp_gd.job import runtime

STEPS = 4
HANGS = 120  # seconds after which a worker shows where it waits, and ends
ERRORS = ddp_gd.DdpGdError
# Of Keras and TensorFlow themselves.
THEIRS = (ValueError, TypeError, tf.errors.OpError)


class Broken(Exception):
    """Of a reader of the user's own."""


class Clock:
    """When this worker's reader last met what is wrong."""

    met = 0.0


def _raises(x: Any, y: Any) -> Any:
    raise Broken("the disk is on fire")


def _exits(x: Any, y: Any) -> Any:
    sys.exit("the reader left")


def _with(value: float) -> Callable[[Any, Any], Any]:
    def spoiled(x: Any, y: Any) -> Any:
        x = x.copy()
        x[-1] = value
        return x, y

    return spoiled


# What comes in the place of a sound mini-batch.
SPOILED: dict[str, Callable[[Any, Any], Any]] = {
    "raises": _raises,
    "exits": _exits,
    "shape": lambda x, y: (x[:, :2], y),
    "rank": lambda x, y: (x[:, None], y),
    "flat": lambda x, y: (x[:, 0], y),
    "dtype": lambda x, y: (x.astype("int32"), y),
    "complex": lambda x, y: (x.astype("complex64"), y),
    "nan": _with(np.nan),
    "infinite": _with(np.inf),
    "empty": lambda x, y: (x[:0], y[:0]),
    "huge": lambda x, y: (np.zeros((200_000, 3), "float32"), np.zeros((200_000, 1), "float32")),
    "structure": lambda x, y: ({"a": x}, y),
    "keys": lambda x, y: ({"b": x["a"]}, y),
    "more keys": lambda x, y: ({**x, "b": x["a"]}, y),
    "number": lambda x, y: 3,
    "none": lambda x, y: None,
    "no target": lambda x, y: (x, None),
    "four": lambda x, y: (x, y, y, y),
    "lengths": lambda x, y: (np.concatenate([x, x]), y),
    "strings": lambda x, y: (np.array([["a", "b", "c"]] * len(x)), y),
    "text": lambda x, y: "x, y",
    "objects": lambda x, y: (np.array([[object()] * 3] * len(x)), y),
    "lists": lambda x, y: ([[1.0, 2.0], [3.0]], y),
    "weighted": lambda x, y: (x, y, np.ones(len(x), "float32")),
    "early": lambda x, y: (x, y),  # and nothing after it
    "nothing": lambda x, y: (x, y),  # never asked for
}
KINDS = tuple(SPOILED)
WAYS = ("generator", "items", "tf.data", "iterable")
VERBS = ("fit", "fit", "validation", "evaluate", "predict")


class Case(NamedTuple):
    """A stream, and what is done with it."""

    kind: str
    way: str
    verb: str
    at: int
    steps: int | None
    read: str
    seed: int


def sound(kind: str, rows: int, random: np.random.Generator) -> tuple[Any, Any]:
    """A mini-batch with nothing wrong."""
    x = random.normal(size=(rows, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    return ({"a": x} if "keys" in kind else x), y


def spoiled(case: Case, x: Any, y: Any) -> Any:
    """What comes in the place of a mini-batch."""
    Clock.met = time.monotonic()
    return SPOILED[case.kind](x, y)


def batches(case: Case) -> Iterator[Any]:
    """Sound mini-batches, but for one."""
    if case.kind == "nothing":
        return
    random = np.random.default_rng(case.seed)
    for number in range(STEPS + 2):
        found = sound(case.kind, int(random.integers(1, 9)), random)
        yield spoiled(case, *found) if number == case.at else found
        if case.kind == "early" and number == case.at:
            return


class Items(keras.utils.PyDataset):
    """The same, by numbers."""

    def __init__(self, case: Case):
        super().__init__(workers=1 + case.seed % 2)
        self.case = case

    def __len__(self) -> int:
        ends = {"nothing": 0, "early": self.case.at + 1}
        return ends.get(self.case.kind, STEPS + 2)

    def __getitem__(self, index: int) -> Any:
        random = np.random.default_rng([self.case.seed, index])
        found = sound(self.case.kind, index + 1, random)
        return SPOILED[self.case.kind](*found) if index == self.case.at else found


class Iterable:
    """The same, as often as it is wanted."""

    def __init__(self, case: Case):
        self.case = case

    def __iter__(self) -> Iterator[Any]:
        return batches(self.case)


def data_of(case: Case) -> Any:
    """The stream in one of the ways in which data may come."""
    if case.way == "items":
        return Items(case)
    if case.way == "generator":
        return batches(case)
    if case.way == "iterable":
        return Iterable(case)
    x, y = (tf.TensorSpec([None, width], tf.float32) for width in (3, 1))
    specs = ({"a": x} if "keys" in case.kind else x, y)
    return tf.data.Dataset.from_generator(lambda: batches(case), output_signature=specs)


def case_of(number: int, seed: int) -> Case:
    """One of them."""
    random = np.random.default_rng([seed, number])
    return Case(
        kind=KINDS[number % len(KINDS)],
        way=WAYS[(number // len(KINDS) + number) % len(WAYS)],
        verb=str(random.choice(VERBS)),
        at=int(random.integers(0, STEPS)),
        steps=None if random.random() < 0.5 else STEPS,
        read="every worker" if random.random() < 0.3 else "rank 0",
        seed=number,
    )


def expected(case: Case) -> tuple[bool | None, tuple[type[BaseException], ...]]:
    """Whether it raises, None where that depends, and what it may raise."""
    kind, at_first = case.kind, case.at < 2  # what the first two differ in is the model's matter
    if kind == "huge" or (kind, case.way) in (("dtype", "tf.data"), ("complex", "tf.data")):
        return (False if kind == "huge" else None), (ERRORS, *THEIRS)
    if kind in ("nan", "infinite"):
        return (False, ()) if case.verb == "predict" else (True, (ddp_gd.NumericsError,))
    if kind == "raises":
        return True, (Broken, ddp_gd.DataError, *THEIRS * (case.way == "tf.data"))
    if kind == "exits":
        own = (SystemExit, ddp_gd.DataError)
        return True, (*own, *THEIRS, RuntimeError) if case.way == "tf.data" else own
    if kind == "early":
        return None, (ddp_gd.DataError,)
    if case.way == "tf.data" or at_first:
        return (None if case.verb == "predict" or at_first else True), (ERRORS, *THEIRS)
    return (None if case.verb == "predict" else True), (ERRORS,)


def model_of(case: Case) -> keras.Model:
    """A model for sound mini-batches."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,), name="a")
    outputs = layers.Dense(1)(inputs)
    model = keras.Model({"a": inputs} if "keys" in case.kind else inputs, outputs)
    model.compile(keras.optimizers.SGD(1e-3), "mse", metrics=["mae"])
    return model


def train(case: Case, model: keras.Model) -> None:
    """Do with the stream what the case says."""
    data, more = data_of(case), {"verbose": 0, "read": case.read}
    if case.verb == "fit":
        ddp_gd.fit(model, data, steps_per_epoch=case.steps, epochs=2, seed=1, **more)
    elif case.verb == "validation":
        x, y = sound(case.kind, 10, np.random.default_rng(0))
        more |= {"validation_data": data, "validation_steps": case.steps}
        ddp_gd.fit(model, x, y, batch_size=4, seed=1, **more)
    else:
        verb = getattr(ddp_gd, case.verb)
        verb(model, data, steps=case.steps, **more)


def one(case: Case) -> tuple[str, float]:
    """How one of them ends, and in how many seconds; what isn't documented is raised."""
    must, kinds = expected(case)
    model = model_of(case)
    raised, Clock.met = "", 0.0
    began = time.monotonic()
    try:
        train(case, model)
    except kinds as error:
        raised = type(error).__name__ if str(error) else ""
    ended = time.monotonic()
    everyone = agree.gather_json(
        runtime.communicator(), [bool(raised), ddp_gd.fingerprint(model), Clock.met, ended]
    )
    # All raise or none, and none has another model.
    assert len({tuple(found[:2]) for found in everyone}) == 1, (case, raised, everyone)
    assert must in (None, bool(raised)), (case, raised)
    met = max(found[2] for found in everyone) or began  # all workers are of one host
    return raised or "trains", max(found[3] for found in everyone) - met if raised else 0.0


def main(argument: str, seed: int) -> None:
    """Run so many, or one."""
    ddp_gd.init()
    if argument in KINDS:
        case = Case(argument, "generator", "fit", 3, None, "rank 0", 1)
        ddp_gd.fit(model_of(case), data_of(case), verbose=0)
        return
    ends: Counter[str] = Counter()
    slowest = (0.0, case_of(0, seed))
    for number in range(int(argument)):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        case = case_of(number, seed)
        end, seconds = one(case)
        ends[end] += 1
        slowest = max(slowest, (seconds, case))
    faulthandler.cancel_dump_traceback_later()
    if ddp_gd.rank() == 0:
        print(f"slowest: {slowest[0]:.1f} s from fault to error, {slowest[1]}")
        print(f"done: {dict(ends)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
