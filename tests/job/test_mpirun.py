"""How commands of the package, and the launch scripts, start jobs of several workers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ddp_gd.job import mpirun

LIBRARY = Path(__file__).resolve().parents[2] / "launch" / "lib.sh"


@pytest.mark.parametrize("ssh", [None, "ssh", "rsh"])
def test_settings_of_open_mpi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ssh: str | None
) -> None:
    """Both let root and more workers than cores through, bind nothing, and can do without ssh."""
    for name in [name for name in os.environ if name.startswith("OMPI_")]:
        monkeypatch.delenv(name)
    for name in ["bash", "dirname", "env", *([ssh] if ssh else [])]:
        (tmp_path / name).symlink_to(shutil.which(name) or "/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = {
        "OMPI_ALLOW_RUN_AS_ROOT=1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "OMPI_MCA_rmaps_base_oversubscribe=1",
        "OMPI_MCA_hwloc_base_binding_policy=none",
        "OMPI_MCA_mpi_yield_when_idle=1",
        *([] if ssh else ["OMPI_MCA_plm=isolated"]),
    }
    environ = mpirun.environment()
    assert {f"{k}={v}" for k, v in environ.items() if k.startswith("OMPI_")} == expected
    script = ["bash", "-c", '. "$1"; enter_venv; env', "bash", str(LIBRARY)]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line for line in lines if line.startswith("OMPI_")} == expected


def test_a_job_inside_a_job_is_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher told this process is not handed on; what the user set is, and stays."""
    told = {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1", "HOROVOD_RANK": "0", "PMI_SIZE": "2"}
    user = {"OMPI_MCA_btl": "tcp", "HOROVOD_CYCLE_TIME": "3", "OMPI_ALLOW_RUN_AS_ROOT": "0"}
    for name, value in (told | user).items():
        monkeypatch.setenv(name, value)
    environ = mpirun.environment()
    assert not told.keys() & environ.keys()
    assert user.items() <= environ.items()
