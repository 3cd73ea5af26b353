"""What the launcher's variables say, and what is set for a job."""

from __future__ import annotations

import os

import pytest

from ddp_gd.comm import environment
from ddp_gd.errors import LaunchError


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (1, 0, "")),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
            (4, 3, "OMPI_COMM_WORLD_SIZE"),
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, (2, 0, "PMI_SIZE")),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"}, (2, 1, "HOROVOD_SIZE")),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, (8, 5, "SLURM_STEP_NUM_TASKS")),
        # A lone python in an sbatch script of 8 tasks.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (1, 0, "")),
        # Open MPI's daemons are one Slurm step of 2 hosts; the job has 16 workers.
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "1",
                "OMPI_COMM_WORLD_SIZE": "16",
                "OMPI_COMM_WORLD_RANK": "9",
            },
            (16, 9, "OMPI_COMM_WORLD_SIZE"),
        ),
    ],
)
def test_launch(environ: dict[str, str], expected: tuple[int, int, str]) -> None:
    """The launcher's variables tell how many processes there are."""
    assert environment.launch(environ) == expected


@pytest.mark.parametrize("backend", ["horovod", "mpi"])
def test_a_backend_that_sees_fewer_processes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, with a remedy: each process would train a model of its own."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(LaunchError, match=f"'{backend}' sees 1.*another MPI"):
        environment.require_all(backend, 1)
    environment.require_all(backend, 2)


def test_what_makes_mpi_fast_is_set_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own values stay, and what holds is what the main job prints."""
    monkeypatch.setattr(os, "environ", {"HOROVOD_CYCLE_TIME": "2.5"})
    environment.set_cpu_defaults()
    assert os.environ == {
        "HOROVOD_CYCLE_TIME": "2.5",
        "HOROVOD_FUSION_THRESHOLD": "0",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    for name, value in os.environ.items():
        assert f"{name}={value}" in environment.cpu_settings().split()
