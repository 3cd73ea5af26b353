"""What launch/setup.sh asks Python for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_gd.commands.doctor import build

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def output(script: str, *arguments: str, given: str = "") -> list[str]:
    """The lines that a script prints."""
    words = [sys.executable, str(LAUNCH / script), *arguments]
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("pip", "uv"),
    [
        ("", []),
        ("global.index-url='https://a/simple'", ["UV_DEFAULT_INDEX=https://a/simple"]),
        (
            "global.extra-index-url='https://a/simple\\nhttps://b/simple'",
            ["UV_INDEX=https://a/simple https://b/simple"],
        ),
        (":env:.find-links='/wheels /more'", ["UV_FIND_LINKS=/wheels,/more"]),
        ("global.cert='/a.crt'\n:env:.cert='/b.crt'", ["SSL_CERT_FILE=/b.crt"]),
        ("global.timeout='60'\nuser.index-url", []),
        ("install.constraint='/c.txt'", ["UV_CONSTRAINT=/c.txt"]),
    ],
)
def test_uv_looks_where_pip_would(pip: str, uv: list[str]) -> None:
    """pip's configuration, in uv's words."""
    assert output("uv_settings.py", given=pip) == uv


def test_requirements_of_either_build() -> None:
    """All of pyproject.toml's; for CPUs TensorFlow has another name, and TensorBoard has not."""
    everywhere = output("requirements.py", "any")
    for_cpus = output("requirements.py", "cpu")
    assert [r.replace("tensorflow-cpu>", "tensorflow>") for r in for_cpus] == everywhere
    assert [r for r in for_cpus if r.startswith("tensorflow-cpu>=2.21")]
    assert not [r for r in for_cpus if r.startswith("tensorflow>")]
    assert "tensorflow[and-cuda]" in output("requirements.py", "any", "gpu")
    assert output("requirements.py", "any", "mpi")[-1:] == list(build.MPI_REQUIREMENTS)
    assert any(r.startswith("pytest>") for r in output("requirements.py", "cpu", "test"))


def test_a_set_up_is_never_mute(tmp_path: Path) -> None:
    """What takes long is said to be still going on, and where its log is, within ten seconds."""
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    # Every installation succeeds and installs nothing; the first one takes a while.
    (programs / "python").write_text('#!/bin/sh\ncase "$*" in *--target*) sleep 9 ;; esac\n')
    (programs / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(LAUNCH / "setup.sh")],
        env={"VIRTUAL_ENV": str(programs.parent), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    log = programs.parent / "ddp_gd-setup.log"
    still = f"setup: still fetching uv, which installs packages: 8 s (log: {log})"
    assert still in done.stderr.splitlines()
    assert "HOROVOD IS NOT AVAILABLE: it could not be built." in done.stderr
