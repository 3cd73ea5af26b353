"""Training steps of the user's end as in Keras, or are refused, at any number of workers."""

from __future__ import annotations

import jobs
import pytest

pytestmark = pytest.mark.jobs


@pytest.mark.parametrize(
    ("np", "backend", "names"),
    [
        (1, "single", ["gan", "vae", "loops"]),
        (2, "auto", []),
    ],
)
def test_own_steps_equal_keras(np: int, backend: str, names: list[str]) -> None:
    """A VAE, GANs, a distiller, a contrastive and a diffusion model, and loops by hand.

    More workers are in tests/cluster. Sums over rows, rows that are compared unsaid, NumPy's
    randomness are refused.
    """
    launcher = "python" if np == 1 else "mpirun"
    job = jobs.run_job(np, ["-m", "programs.own_steps", backend, *names], launcher, timeout=500)
    assert job.returncode == 0, job.stdout + job.stderr
    assert f"steps at {np} workers" in job.stdout
