"""Training steps of the user's end as in Keras, or are refused, at any number of workers."""

from __future__ import annotations

import re
from pathlib import Path

import jobs
import pytest
from programs import compare, killed_gan

pytestmark = pytest.mark.jobs


@pytest.mark.parametrize(
    ("np", "backend", "names"),
    [
        (1, "single", ["gan", "vae", "loops"]),
        (2, "auto", ["gan", "compiled_parts", "summed", "numpy_noise", "loops"]),
    ],
)
def test_own_steps_equal_keras(np: int, backend: str, names: list[str]) -> None:
    """A VAE, GANs, a distiller, a contrastive and a diffusion model, and loops by hand.

    More workers are in test_everything.py. Sums over rows, rows that are compared unsaid, NumPy's
    randomness are refused.
    """
    launcher = "python" if np == 1 else "mpirun"
    job = jobs.run_job(np, ["-m", "programs.own_steps", backend, *names], launcher, timeout=500)
    assert job.returncode == 0, job.stdout + job.stderr
    assert f"steps at {np} workers" in job.stdout


def test_two_updates_in_bitwise_mode() -> None:
    """A GAN's second update has the weights that the first one left: Keras's, and the same bits.

    More steps and workers are in test_everything.py.
    """
    found = []
    for np, launcher, backend in ((1, "python", "single"), (2, "mpirun", "mpi")):
        argv = ["-m", "programs.own_steps", f"{backend},bitwise", "2", "gan_without_statistics"]
        job = jobs.run_job(np, argv, launcher)
        assert job.returncode == 0, job.stdout + job.stderr
        found.append(re.findall("^bits of .*$", job.stdout, re.MULTILINE))
    assert len(found[0]) == 1
    assert found[0] == found[1]


def test_a_gan_goes_on_at_another_number_of_workers(tmp_path: Path) -> None:
    """Killed at 2 workers in mid-epoch, ended by one: weights and logs as if nothing had been."""
    job = jobs.run_job(2, ["-m", "programs.killed_gan", str(tmp_path)])
    assert job.returncode != 0
    saved = [path.name for path in tmp_path.glob("step-*.safetensors")]
    assert saved, job.stdout + job.stderr
    ended = killed_gan.train(tmp_path)
    assert compare.differences(killed_gan.train(None), ended, 5e-5) == []
