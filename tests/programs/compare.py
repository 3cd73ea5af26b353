"""Trains a case with Keras and with ddp_gd, and tells the difference."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from programs import cases, more_cases

import ddp_gd

CASES = more_cases.CASES
# Their result depends on the pieces by nature: equal to Keras where there is one piece only.
ONE_PIECE = ("batch_normalization", "dropout")
TOLERANCE = 1e-5  # relative to the largest value of an array, or to 1e-3 if that is smaller


class Outcome(NamedTuple):
    """How a training ended: every array of the model and the optimizer, and the History."""

    arrays: dict[str, np.ndarray]
    history: dict[str, list[float]]


def train(name: str, with_keras: bool = False, **options: Any) -> Outcome:
    """Train a case, with ddp_gd unless told otherwise."""
    model, x, y, own = cases.build(name)
    fixed = {"batch_size": cases.BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    options = {**fixed, **own, **options}
    fit = type(model).fit if with_keras else ddp_gd.fit
    return outcome(model, fit(model, x, y, **options))


def outcome(model: keras.Model, history: keras.callbacks.History) -> Outcome:
    """Copy how the training of `model` ended."""
    variables = [
        *(("", v) for v in [*model.trainable_variables, *model.non_trainable_variables]),
        *(("optimizer ", v) for v in model.optimizer.variables),
    ]
    arrays = {f"{kind}variable {i}": v.value.numpy() for i, (kind, v) in enumerate(variables)}
    return Outcome(arrays, dict(history.history))


def differences(expected: Outcome, actual: Outcome, tolerance: float = TOLERANCE) -> list[str]:
    """What is not the same: one line each."""
    found = []
    if list(expected.history) != list(actual.history):
        found.append(f"History has {list(actual.history)}, not {list(expected.history)}")
    if list(expected.arrays) != list(actual.arrays):
        found.append(f"variables are {list(actual.arrays)}, not {list(expected.arrays)}")
    for name, error in distances(expected, actual).items():
        if error == np.inf:
            found.append(f"{name} has another shape")
        elif not error <= tolerance:  # NaN is a difference too
            found.append(f"{name} is off by {error:.1e}")
    return found


def distances(expected: Outcome, actual: Outcome) -> dict[str, float]:
    """How far each array is off, relative to its largest value; infinite if it isn't there."""
    found = {}
    histories = {f"History {k}": np.array(v) for k, v in expected.history.items()}
    for name, wanted in {**histories, **expected.arrays}.items():
        key = name.removeprefix("History ")
        got = np.array(actual.history.get(key)) if name in histories else actual.arrays.get(name)
        if got is None or got.shape != wanted.shape:
            found[name] = np.inf
            continue
        wanted, got = (np.asarray(a, np.float64) for a in (wanted, got))
        scale = max(1e-3, np.abs(wanted).max(initial=0)) if "seed" not in name else 1
        found[name] = float(np.abs(wanted - got).max(initial=0) / scale)
    return found
