"""Every backend passes the same conformance suite; a job is never silently N lone processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from ddp_gd.comm import open_communicator
from ddp_gd.errors import ConfigError, LaunchError

pytestmark = pytest.mark.jobs

_CONFORMANCE = str(Path(__file__).with_name("comm_conformance.py"))


@pytest.mark.parametrize(
    ("backend", "launcher", "np"),
    [
        ("auto", "python", 1),
        ("horovod", "horovodrun", 3),
        ("mpi", "mpirun", 3),
    ],
)
def test_conformance(backend: str, launcher: str, np: int) -> None:
    """The same calls give the same values through every backend, at any number of workers."""
    job = jobs.run_job(np, [_CONFORMANCE, backend, str(np)], launcher)
    assert job.returncode == 0, job.stderr
    name = {"auto": "single" if np == 1 else "horovod"}.get(backend, backend)
    assert job.stdout.count(f"conforms: {name}") == 1


def test_without_horovod_auto_takes_mpi_and_says_so(tmp_path: Path) -> None:
    """Where Horovod cannot be imported, rank 0 says in one line why MPI is used."""
    (tmp_path / "horovod.py").write_text("raise ImportError('not on this machine')")
    root = str(Path(__file__).parents[2])
    job = jobs.run_job(
        2,
        [
            "-c",
            "from ddp_gd.comm import open_communicator as o; c = o(); print(f'{c.name} {c.size};')",
        ],
        "mpirun",
        env={"PYTHONPATH": f"{tmp_path}:{root}"},
    )
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("mpi 2;") == 2
    assert job.stderr.count("not on this machine") == 1


def test_processes_that_each_believe_they_are_alone_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backend that sees fewer processes than the launcher started is an error with a remedy."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(LaunchError, match=r"OMPI_COMM_WORLD_SIZE=2.*'single' sees 1.*Leave"):
        open_communicator("single")


def test_unknown_backend() -> None:
    """A name that is no backend is refused, and the message lists those that are."""
    with pytest.raises(ConfigError, match=r"'nccl' does not exist.*'auto', 'horovod', 'mpi'"):
        open_communicator("nccl")


def test_importing_comm_loads_no_library() -> None:
    """A backend's library is loaded when it is opened, not before."""
    program = (
        "import sys, ddp_gd.comm; "
        "print({'tensorflow', 'horovod', 'mpi4py', 'keras'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"
