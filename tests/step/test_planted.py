"""No model is silently something else: equal to Keras on the whole batch, or refused by name."""

from __future__ import annotations

import jobs
import pytest

pytestmark = pytest.mark.jobs


@pytest.mark.parametrize(
    ("np", "arguments"),
    [
        (1, ["single"]),
        (1, ["single", "3", "3"]),
        (2, ["auto", "0", "2"]),
        (3, ["mpi", "0", "6"]),
        (2, ["auto,bitwise", "0", "6"]),
    ],
    ids=["whole", "pieces", "two", "three", "bitwise"],
)
def test_planted_models_are_equal_or_refused(np: int, arguments: list[str]) -> None:
    """Draws, statistics, state, added losses, rows that meet and overrides, one of each kind."""
    launcher = "python" if np == 1 else "mpirun"
    job = jobs.run_job(np, ["-m", "programs.planted_models", *arguments], launcher, timeout=550)
    assert job.returncode == 0, job.stdout + job.stderr
    assert f"planted models at {np} workers" in job.stdout
