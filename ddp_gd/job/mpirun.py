"""How a command of this package starts jobs of several workers itself."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_LAUNCHERS = ("OMPI_COMM", "OMPI_UNIVERSE", "PMIX_", "PMI_", "MV2_", "HOROVOD_RANK", "HOROVOD_SIZE")


def command(workers: int, program: Sequence[str]) -> list[str]:
    """The command that runs `program` with so many workers; one of them needs no mpirun.

    Raises:
        SystemExit: there is no mpirun.
    """
    if workers == 1:
        return list(program)
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        sys.exit("ddp_gd: error: there is no mpirun. bash launch/setup.sh installs one.")
    return [found, "-np", str(workers), *program]


def environment() -> dict[str, str]:
    """This process's variables, without what says that it is part of a job itself."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    for name in ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"):
        environ.setdefault(f"OMPI_{name}", "1")
    # Workers must not be bound to one core each where there are more workers than cores.
    environ.setdefault("OMPI_MCA_hwloc_base_binding_policy", "none")
    # Without ssh mpirun gives up, even on one machine, unless it is told that there is only one.
    if not shutil.which("ssh") and not shutil.which("rsh"):
        environ.setdefault("OMPI_MCA_plm", "isolated")
    return environ
