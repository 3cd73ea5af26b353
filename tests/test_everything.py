"""All of what tests/steps trains a part of: an hour, for releases and for changes of the step.

bash launch/test.sh -m everything tests/test_everything.py
"""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import pytest

pytestmark = pytest.mark.everything


def _run(np: int, program: str, *arguments: str) -> str:
    words = ["-m", f"programs.{program}", *arguments]
    job = jobs.run_job(np, words, "mpirun" if np > 1 else "python", timeout=1800)
    assert job.returncode == 0, job.stdout + job.stderr
    return str(job.stdout)


def _backend(np: int) -> str:
    return {1: "single", 2: "auto"}.get(np, "mpi")


@pytest.mark.parametrize("np", [1, 2, 3])
def test_everything_of_keras_equals_keras_or_is_refused(np: int, tmp_path: Path) -> None:
    """Layers, losses, metrics, optimizers: to rounding, after epochs of ragged mini-batches."""
    _run(np, "sweep", _backend(np), str(tmp_path / "swept.json"))


@pytest.mark.parametrize("program", ["sweep", "real_networks"])
def test_bits_are_the_same_at_any_number_of_workers(program: str, tmp_path: Path) -> None:
    """In bitwise mode 1, 2, 3 and 5 workers leave the same of all of them."""
    left = []
    for np in (1, 2, 3, 5) if program == "real_networks" else (1, 2, 3):
        out = tmp_path / f"{np}.json"
        _run(np, program, f"{_backend(np)},bitwise", str(out))
        left.append(json.loads(out.read_text()))
        assert left[-1] == left[0], np


def test_trainings_have_the_same_bits(tmp_path: Path) -> None:
    """Every optimizer and every batch size once; so are five workers whom an audit looks at."""
    left = []
    for np, audit in ((1, "0"), (2, "0"), (3, "0"), (5, "0.1")):
        out = tmp_path / f"{np}.json"
        env = {"BACKEND": _backend(np), "AUDIT": audit, "TF_NUM_INTEROP_THREADS": str(np)}
        words = ["-m", "programs.bitwise", str(out), "most"]
        job = jobs.run_job(np, words, "mpirun" if np > 1 else "python", env, timeout=1800)
        assert job.returncode == 0, job.stderr
        left.append(json.loads(out.read_text()))
        assert left[-1] == left[0], np


def test_own_steps_have_the_same_bits_at_any_number_of_workers() -> None:
    """And are Keras's, with several updates in a step, and in loops by hand."""
    found = []
    for np in (1, 2, 3, 5):
        printed = _run(np, "own_steps", f"{_backend(np)},bitwise", "2")
        found.append([line for line in printed.splitlines() if line.startswith("bits of ")])
    assert len(found[0]) > 9
    assert all(bits == found[0] for bits in found)


@pytest.mark.parametrize("np", [1, 2, 3, 5])
@pytest.mark.parametrize("program", ["real_networks", "own_steps"])
def test_networks_and_own_steps_equal_keras(np: int, program: str, tmp_path: Path) -> None:
    """To 5e-5, after two epochs."""
    out = [str(tmp_path / "networks.json")] if program == "real_networks" else []
    _run(np, program, _backend(np), *out)


@pytest.mark.parametrize("mode", ["", ",bitwise"])
@pytest.mark.parametrize("np", [1, 2, 3])
def test_all_planted_models_are_equal_or_refused(np: int, mode: str) -> None:
    """Whole, in shares, and bit for bit."""
    _run(np, "planted_models", _backend(np) + mode)


def test_a_residual_network_equals_keras() -> None:
    """Five steps of one of keras.applications, to 1e-4."""
    _run(2, "residual_network", "auto")
