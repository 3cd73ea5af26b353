"""A pytest plugin: replaces Keras's three verbs, and notes which tests call one and how they end.

`KERAS_OWN_OUT` names the file that each worker appends its lines to, with its rank.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

import ddp_gd

_called: set[str] = set()


def _replace() -> None:
    trainer = next(c for c in keras.Model.__mro__ if "fit" in vars(c))

    def fit(self: Any, *args: Any, **options: Any) -> Any:
        _called.add("fit")
        return ddp_gd.fit(self, *args, **options)

    def evaluate(self: Any, *args: Any, **options: Any) -> Any:
        _called.add("evaluate")
        if len(args) < 8:
            options.setdefault("return_dict", False)  # Keras's default
        return ddp_gd.evaluate(self, *args, **options)

    def predict(self: Any, *args: Any, **options: Any) -> Any:
        _called.add("predict")
        return ddp_gd.predict(self, *args, **options)

    trainer.fit, trainer.evaluate, trainer.predict = fit, evaluate, predict


def _conftest() -> ModuleType:
    """What Keras's tests import of the `conftest.py` of its checkout, which isn't installed."""

    def skip_if_backend(given: str, reason: str) -> Any:
        return pytest.mark.skipif(keras.backend.backend() == given, reason=reason)

    module = ModuleType("conftest")
    module.skip_if_backend = skip_if_backend  # type: ignore[attr-defined]
    return module


def pytest_configure(config: pytest.Config) -> None:
    """Join the job, and replace the verbs."""
    sys.modules["conftest"] = _conftest()
    for name in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{name}: Keras's")
    ddp_gd.init()
    _replace()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Give every worker the same random data, and note which verbs are called."""
    _called.clear()
    if ddp_gd.size() > 1:
        random.seed(1)
        np.random.seed(1)
        keras.utils.set_random_seed(1)
    yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write how a test ended."""
    if report.when != "call":
        return
    text = report.longreprtext.strip().splitlines()[-12:] if report.failed else []
    line = {
        "test": report.nodeid,
        "called": sorted(_called),
        "outcome": report.outcome,
        "text": "\n".join(text),
    }
    with Path(f"{os.environ['KERAS_OWN_OUT']}.{ddp_gd.rank()}").open("a") as file:
        file.write(json.dumps(line) + "\n")
