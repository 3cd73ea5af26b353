"""A job that this process starts and sees through to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddp_gd.errors import LaunchError
from ddp_gd.job import mpirun

RUN = "import sys; from ddp_gd.job import launcher; sys.exit(launcher.run({}, {}))"
# Stands in for mpirun: it lets its workers save when it gets SIGUSR1.
STAND_IN = """#!/bin/bash
trap 'sleep 0.2; exit {status}' USR1
trap 'echo killed >&2; exit 1' TERM INT
touch {here}
while :; do sleep 0.1; done
"""


def start(words: list[str], environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Run a job in a process of its own."""
    program = RUN.format(repr(words), "dict(__import__('os').environ)")
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )


def stand_in(folder: Path, status: int) -> tuple[list[str], Path]:
    """An mpirun that ends with this status when it is asked to, and what it leaves when it runs."""
    here = folder / "here"
    program = folder / "mpirun"
    program.write_text(STAND_IN.format(status=status, here=here))
    program.chmod(0o755)
    return [str(program)], here


def wait_for(path: Path) -> None:
    """Return when it is there."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "own", "told"),
    [
        (signal.SIGINT, 143, 130),  # the workers' answer to what mpirun handed on
        (signal.SIGTERM, 143, 143),
        (signal.SIGTERM, 0, 143),
        (signal.SIGINT, 1, 1),  # an error of its own stays
    ],
)
def test_a_signal_lets_the_workers_save(
    number: signal.Signals, own: int, told: int, tmp_path: Path
) -> None:
    """The first one reaches mpirun as SIGUSR1; the status is that of the signal."""
    words, here = stand_in(tmp_path, own)
    job = start(words)
    wait_for(here)
    job.send_signal(number)
    job.send_signal(number)  # at once: it's the same one, to the process and to its group
    _, said = job.communicate(timeout=600)
    assert job.returncode == told
    assert said == ""


def test_a_second_signal_ends_it(tmp_path: Path) -> None:
    """After a second, and workers that don't save."""
    words, here = stand_in(tmp_path, 143)
    text = Path(words[0]).read_text().replace("sleep 0.2; exit 143", ":")
    Path(words[0]).write_text(text)
    job = start(words)
    wait_for(here)
    job.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=600)
    assert said.endswith("killed\n")
    assert job.returncode == 1


@pytest.mark.jobs
def test_of_what_mpirun_says_the_news_is_shown() -> None:
    """Of a worker that failed, its own words; of one that died, mpirun's."""
    program = "import os, sys; rank = os.environ['OMPI_COMM_WORLD_RANK'] == '0'; "
    jobs = {
        "sys.stderr.write('why\\n') if rank else None; sys.exit(3 * rank)": (3, ["why"]),
        "os.kill(os.getpid(), 11) if rank else None": (139, ["exited on signal 11"]),
        "os.kill(os.getpid(), 10) if rank else None": (138, []),
    }
    for rest, (status, expected) in jobs.items():
        words = mpirun.command(2, [sys.executable, "-c", program + rest])
        job = start(words, mpirun.environment())
        _, said = job.communicate(timeout=600)
        assert job.returncode == status
        assert "non-zero" not in said
        assert "Primary job" not in said
        assert all(text in said for text in expected), said
        assert expected or said == ""


def test_no_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how to get one."""
    monkeypatch.setattr(mpirun, "path", lambda: "no-such-mpirun")
    with pytest.raises(LaunchError, match=r"python -m ddp_gd.doctor"):
        mpirun.command(2, ["x"])


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("mpirun (Open MPI) 4.1.8", []),
        ("mpirun (Open MPI) 5.0.11", ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]),
        ("HYDRA build details:", ["-bind-to", "none"]),
    ],
)
def test_words_of_each_mpi(
    version: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers share cores and are bound to none, in the words of that MPI."""
    program = tmp_path / "mpirun"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(mpirun, "path", lambda: str(program))
    assert mpirun.command(3, ["x", "y"]) == [str(program), *options, "-np", "3", "x", "y"]
