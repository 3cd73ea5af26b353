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
