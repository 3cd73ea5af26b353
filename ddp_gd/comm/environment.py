"""The environment of a job: what its launcher says, and what its processes want set.

The launch scripts ask this module before anything is installed: it needs only the standard library.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ddp_gd.errors import LaunchError

# (how many processes, which one this is), the launcher nearest to the process first. Under
# `mpirun` inside a Slurm job the Slurm step is the one that carries Open MPI's daemons, so its
# numbers count hosts: it is asked last.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # Open MPI
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),  # MVAPICH2
    ("PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI
    ("HOROVOD_SIZE", "HOROVOD_RANK"),  # horovodrun --gloo
    # Not SLURM_NTASKS: it is set for a lone `python` in an sbatch script too.
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # srun
)
# How many processes are on this host, from launchers that are the parent of all workers there.
_WORKERS_HERE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
# What launchers tell their processes begins so; the user's own settings of MPI and Horovod don't.
_TOLD = ("OMPI_COMM", "OMPI_UNIVERSE", "PMIX_", "PMI_", "MV2_", "HOROVOD_RANK", "HOROVOD_SIZE")

# A worker that waits inside MPI gives its core away: Horovod's waiting thread otherwise takes it
# from the computation of its own worker.
_YIELD = {"OMPI_MCA_mpi_yield_when_idle": "1"}
_CPU_DEFAULTS = {
    **_YIELD,
    # Its default of 1 ms is the floor of a small step.
    "HOROVOD_CYCLE_TIME": "0",
    # Small tensors come in one buffer already (`tensors`); large ones would only be copied into
    # Horovod's buffer, which takes up to 128 MB.
    "HOROVOD_FUSION_THRESHOLD": "0",
}
_LAUNCHER_DEFAULTS = {
    **_YIELD,
    # Bare mpirun refuses more processes than cores, and root (containers); horovodrun allows both.
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # Open MPI would bind each of two workers to one core, whatever else is free.
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    # Every process, horovodrun itself included, otherwise opens with more lines about the CPU.
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Launch(NamedTuple):
    """How many processes the launcher started, which one this is, and the variable that says so."""

    size: int
    rank: int
    variable: str


def launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables; `Launch(1, 0, "")` when there are none."""
    for size, rank in _LAUNCHERS:
        if environ.get(size, "").isdigit() and environ.get(rank, "").isdigit():
            return Launch(int(environ[size]), int(environ[rank]), size)
    return Launch(1, 0, "")


def workers_here() -> int:
    """Return how many workers the launcher started on this host; 0 where it doesn't say."""
    said = [os.environ.get(variable, "") for variable in _WORKERS_HERE]
    return next((int(number) for number in said if number.isdigit()), 0)


def launcher_settings(folder: str, mpirun: str) -> dict[str, str]:
    """Return what a launcher and the processes that it starts want set, unless the user set it.

    Args:
        folder: the virtual environment.
        mpirun: the launcher, a path or a name on PATH.
    """
    settings = dict(_LAUNCHER_DEFAULTS)
    # Without ssh mpirun gives up, even on one machine, unless it is told that there is only one.
    if not shutil.which("ssh") and not shutil.which("rsh"):
        settings["OMPI_MCA_plm"] = "isolated"
    # PyPI's Open MPI learns from mpirun where its files are; a process without mpirun, from here.
    programs = Path(folder, "bin")
    if shutil.which(programs / "mpicxx") and shutil.which(mpirun) == str(programs / "mpirun"):
        settings["OPAL_PREFIX"] = folder
    return settings


def outside_of_a_job() -> dict[str, str]:
    """Return this process's variables without what says that it is part of a job."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_TOLD)}


def set_cpu_defaults() -> None:
    """Set what makes MPI and Horovod fast on CPUs, unless the user set it. Before they start."""
    for variable, value in _CPU_DEFAULTS.items():
        os.environ.setdefault(variable, value)


def cpu_settings() -> str:
    """Return what `set_cpu_defaults` sees to, as it is now: the user's values, or ours."""
    return " ".join(f"{variable}={os.environ.get(variable)}" for variable in _CPU_DEFAULTS)


def require_all(backend: str, size: int) -> None:
    """Refuse to run as one of several processes that each believe they are alone.

    Args:
        backend: the name of the backend that was opened.
        size: how many processes it sees.

    Raises:
        LaunchError: the launcher started more than that.
    """
    started = launch()
    if started.size <= size:
        return
    remedy = {
        "single": "Leave backend='single' out (the default finds the others), or start one "
        "process.",
        "mpi": "mpi4py probably loaded another MPI than the launcher's: start with the mpirun of "
        "that MPI (`python -c 'import mpi4py.MPI as m; print(m.Get_library_version())'`), or "
        "install mpi4py for the launcher's.",
        "horovod": "Horovod was probably built against another MPI than the launcher's, or "
        "without MPI (`horovodrun --check-build` tells): rebuild it, or start with that MPI's "
        "mpirun.",
    }[backend]
    raise LaunchError(
        f"{started.variable}={started.size}: the launcher started {started.size} processes, but "
        f"backend {backend!r} sees {size}. Each would train a model of its own. {remedy}"
    )
