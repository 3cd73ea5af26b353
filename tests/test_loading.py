"""What libraries print while they are loaded."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import command

from ddp_gd import loading

ROOT = Path(__file__).parents[1]
LOAD = """
import os, sys
from ddp_gd.loading import quietly
os.write(2, b"before\\n")
try:
    with quietly():
        os.write(2, b"noise of a library\\n")
        sys.stderr.write("a warning of Python\\n")
        {}
except ValueError:
    pass
os.write(2, b"after\\n")
"""


def load(end: str, **environ: str) -> tuple[list[str], int]:
    """What a program printed that loads something noisy, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(end)],
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    return done.stderr.splitlines(), done.returncode


NOISE = ["noise of a library", "a warning of Python"]


def test_nothing_is_shown_of_what_went_well() -> None:
    """Neither what a library writes past Python, nor what Python's modules write."""
    assert load("pass") == (["before", "after"], 0)


def test_everything_is_shown_on_demand() -> None:
    """DDP_GD_VERBOSE=1 lets it through."""
    assert load("pass", DDP_GD_VERBOSE="1") == (["before", *NOISE, "after"], 0)


def test_what_was_said_before_a_failure_is_shown() -> None:
    """An exception ends the silence, and what was kept comes before anything else."""
    assert load("raise ValueError") == (["before", *NOISE, "after"], 0)


def test_what_was_said_before_a_crash_is_shown() -> None:
    """A library that ends the process has said why; the process can't show it any more."""
    lines, status = load("sys.stderr.flush(); os.abort()")
    assert lines == ["before", *NOISE]
    assert status < 0


def test_a_child_that_stays_is_not_waited_for() -> None:
    """It holds what was standard error open, for as long as it runs."""
    child = "import subprocess; subprocess.Popen(['sleep', '30'], stdout=subprocess.DEVNULL)"
    assert load(child) == (["before", "after"], 0)


def test_one_inside_another() -> None:
    """The outer one decides."""
    inner = """
        with quietly(): os.write(2, b"more\\n")
        raise ValueError"""
    assert load(inner.strip()) == (["before", *NOISE, "more", "after"], 0)


SCRIPT = """
import ddp_gd
ddp_gd.init()
import keras
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = keras.random.normal((8, 2)).numpy()
ddp_gd.fit(model, x, x[:, :1], batch_size=4, verbose=2)
"""


def without_settings(np: int, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a job as a user does who has set nothing: GPUs are looked for, nothing is muted."""
    words, environ = command(np, argv, "mpirun" if np > 1 else "python")
    for name in ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES"):
        environ.pop(name, None)
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=600)


@pytest.mark.jobs
def test_the_first_line_of_a_training_is_ours(tmp_path: Path) -> None:
    """Of one process and of four; and nothing comes on standard error at all."""
    train = ["-m", "ddp_gd.train", "--epochs", "1", "--verbose", "0"]
    for np in (1, 4):
        done = without_settings(np, [*train, "--out", str(tmp_path / str(np))])
        assert done.stdout.startswith("data    diabetes: 397 rows"), done.stderr
        assert done.stderr == ""


@pytest.mark.jobs
def test_a_script_is_as_quiet(tmp_path: Path) -> None:
    """After ddp_gd.init() nothing comes but its own lines."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = without_settings(2, [str(script)])
    assert done.stdout.startswith("Epoch 1/1 - "), done.stderr
    assert done.stderr == ""


@pytest.mark.jobs
def test_a_study_is_as_quiet(tmp_path: Path) -> None:
    """Neither it nor the jobs that it starts print anything that isn't its own."""
    options = "--batch-sizes full --lr 0.1 --optimizers sgd --epochs 2 --workers 1 2"
    done = without_settings(
        1, ["-m", "ddp_gd.study", *options.split(), "--out", str(tmp_path / "study")]
    )
    assert done.stdout.startswith("2 trainings, 2 to do\n1/1  1 worker, "), done.stderr
    assert done.stderr == ""


def test_packages_are_left_out_for_a_while() -> None:
    """What a command doesn't use isn't imported with Keras, and can be imported afterwards."""
    with loading.without("wave", "os"), pytest.raises(ImportError):
        importlib.import_module("wave")
    assert importlib.import_module("wave") is not None
    assert sys.modules["os"] is os
