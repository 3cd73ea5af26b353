"""No model is silently something else: equal to Keras on the whole batch, or refused by name."""

from __future__ import annotations

import jobs
import pytest

pytestmark = pytest.mark.jobs


@pytest.mark.parametrize(
    ("np", "arguments"),
    [
        (1, ["single", "0", "0:7"]),
        (1, ["single", "3", "1:8"]),
        (2, ["auto", "0", "2:9"]),
        (3, ["mpi", "0", "2:18"]),
        (2, ["auto,bitwise", "0", "0:15"]),
        (3, ["mpi,bitwise", "0", "36:15"]),
    ],
    ids=["whole", "pieces", "two", "three", "bitwise", "an empty share"],
)
def test_planted_models_are_equal_or_refused(np: int, arguments: list[str]) -> None:
    """Draws, statistics, state, added losses, rows that meet, overrides: some of them each time.

    All of them, as `python -m programs.planted_models` trains them, take ten minutes on two cores.
    """
    launcher = "python" if np == 1 else "mpirun"
    job = jobs.run_job(np, ["-m", "programs.planted_models", *arguments], launcher, timeout=550)
    assert job.returncode == 0, job.stdout + job.stderr
    assert f"planted models at {np} workers" in job.stdout
