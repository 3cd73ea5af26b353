"""`ddp-gd COMMAND`: all commands by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ddp_gd
from ddp_gd import __main__ as main


@pytest.mark.parametrize(
    ("typed", "workers", "left"),
    [
        ("", 1, ""),
        ("--epochs 2", 1, "--epochs 2"),
        ("-np 2 --epochs 2", 2, "--epochs 2"),
        ("--epochs 2 -np 2", 2, "--epochs 2"),
        ("--epochs 2 -n 12 --lr 1", 12, "--epochs 2 --lr 1"),
        ("--np 3", 3, ""),
        ("--np=3 --lr 1", 3, "--lr 1"),
        ("-np 2 -np 3", 2, "-np 3"),  # the first one counts
        ("--lr 1 -- -np 2", 1, "--lr 1 -np 2"),  # what comes after -- is not looked at
        ("-np 2 -- -n x --", 2, "-n x --"),
        ("--hidden -n5", 1, "--hidden -n5"),
    ],
)
def test_workers_wherever_they_stand(typed: str, workers: int, left: str) -> None:
    """-np, --np and -n are taken out, and nothing else."""
    assert main.take_workers(typed.split()) == (workers, left.split())


@pytest.mark.parametrize("typed", ["-np", "-np 0", "-np two", "--np=1;true", "-n -1", "--lr 1 -n"])
def test_workers_that_are_no_number(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and the value quoted."""
    monkeypatch.setattr(sys, "argv", ["ddp-gd", "train", *typed.split()])
    assert main.main() == 2
    assert "a whole number of at least 1, not '" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_all_commands_are_listed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them is a module of `python -m ddp_gd.COMMAND`, too."""
    monkeypatch.setattr(sys, "argv", ["ddp-gd", *arguments])
    assert main.main() == 0
    listed = capsys.readouterr().out
    folder = Path(str(ddp_gd.__file__)).parent
    for command in main.COMMANDS:
        assert f"  {command} " in listed
        assert (folder / f"{command}.py").is_file()


def ddp_gd_in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ddp_gd` with these arguments."""
    words = [sys.executable, "-m", "ddp_gd", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def test_version() -> None:
    """Of the package; nothing is loaded for it."""
    assert ddp_gd_in_a_process("--version").stdout == f"ddp_gd {ddp_gd.__version__}\n"


def test_an_unknown_command() -> None:
    """Exit status 2, with those that there are."""
    done = ddp_gd_in_a_process("trian")
    assert done.returncode == 2
    assert "there is no command 'trian'; there are train, predict, " in done.stderr


@pytest.mark.jobs
def test_a_script_as_a_job(tmp_path: Path) -> None:
    """Its arguments and its lines arrive as they are, and its exit status at the end."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "rank = os.environ['OMPI_COMM_WORLD_RANK']\n"
        "os.write(1, (json.dumps([rank, sys.argv[1:]]) + '\\n').encode())\n"
        "sys.exit(3 if rank == '1' else 0)\n"
    )
    arguments = ["-np", "5", ":", "++:", "--", "a b", "$(id)", "-m"]
    done = ddp_gd_in_a_process("run", "-np", "2", str(script), *arguments)
    assert done.returncode == 3
    assert done.stderr == ""  # of mpirun's ten lines none says anything new
    lines = sorted(map(json.loads, done.stdout.splitlines()))
    assert [["1", arguments]] == lines[-1:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-np", "0", __file__], "-np 0: there must be at least one worker"),
        (["-np", "2", "nowhere.py"], "SCRIPT 'nowhere.py': there is no such file"),
        (["-np", "two", __file__], "invalid int value: 'two'"),
        ([], "the following arguments are required: SCRIPT"),
    ],
)
def test_a_script_that_can_not_be_started(arguments: list[str], said: str) -> None:
    """Exit status 2, before anything is."""
    done = ddp_gd_in_a_process("run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_no_job_within_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher around `ddp-gd train -np 2` would start four times as much as was meant."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    done = ddp_gd_in_a_process("train", "-np", "2")
    assert done.returncode == 2
    assert "OMPI_COMM_WORLD_SIZE=2: this process is one of 2 workers already" in done.stderr
