"""What launch/slurm.sbatch does without Slurm; the rest is in tests/cluster/test_slurm.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the script in this test's environment."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environ |= {"VIRTUAL_ENV": sys.prefix, **more}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)


def test_dry_run() -> None:
    """It prints the environment and the command, in words that a shell reads back."""
    result = run("--dry-run", "--", "--lr", "a b", SLURM_CPUS_PER_TASK="4")
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    assert words[0] == "env"
    assert {"TF_NUM_INTRAOP_THREADS=4", "SLURM_EXPORT_ENV=ALL"} <= set(words)
    command = words[words.index("srun") :]
    assert command[1:4] == ["--kill-on-bad-exit=1", "--cpus-per-task=4", "--mpi=pmix"]
    assert command[-2:] == ["--lr", "a\\ b"]


def test_mpiruns_daemons_get_the_whole_node() -> None:
    """The cores of one task are an option of our srun, and nothing that mpirun's would inherit."""
    more = {"SLURM_CPUS_PER_TASK": "4", "SRUN_CPUS_PER_TASK": "4"}
    result = run("--dry-run", "--launcher", "mpirun", **more)
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    assert "mpirun" in words
    assert not any(word.startswith(("SRUN_CPUS_PER_TASK", "--cpus-per-task")) for word in words)


@pytest.mark.parametrize(
    ("restarts", "arguments", "resumes"),
    [
        ("0", ["--checkpoint", "saved"], False),
        ("1", ["--checkpoint", "saved"], True),
        ("1", ["--checkpoint=saved"], True),
        ("1", ["--checkpoint", "saved", "--resume"], True),  # once is enough
        ("2", ["--epochs", "3"], False),  # nothing to go on from
    ],
)
def test_a_requeued_job_resumes(restarts: str, arguments: list[str], resumes: bool) -> None:
    """`--resume` is added to a job that Slurm starts again, and to no other."""
    result = run("--dry-run", *arguments, SLURM_RESTART_COUNT=restarts)
    assert result.stdout.splitlines().count("--resume") == resumes, result.stderr


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [(["--launcher", "ssh"], "'ssh'"), (["--epochs", "3"], "sbatch -n 4 launch/slurm.sbatch")],
)
def test_wrong_command_line(arguments: list[str], quoted: str) -> None:
    """An unknown launcher, or no Slurm job around it, ends with status 2 and what to do."""
    result = run(*arguments)
    assert result.returncode == 2
    assert quoted in result.stderr


def test_the_copy_that_slurm_runs_finds_the_original(tmp_path: Path) -> None:
    """Through `scontrol`, however much it prints and whatever arguments it prints there."""
    script = LAUNCH / "slurm.sbatch"
    copy = tmp_path / "slurm_script"
    copy.write_bytes(script.read_bytes())
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n"
        f"printf '   Command=%s --text a\\n   Command=b/launch/slurm.sbatch\\n' '{script}'\n"
        "sleep 0.3\n"
        "echo '   WorkDir=/'\n"
    )
    scontrol.chmod(0o755)
    result = subprocess.run(
        ["bash", str(copy), "--dry-run"],
        env={
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
            "SLURM_JOB_ID": "7",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(LAUNCH / "worker.sh") in result.stdout


# Stands in for Slurm's: a job step on this machine, and a training that fails at once.
SRUN = """#!/bin/sh
case "$*" in
    *ddp_gd.train*) exit 7 ;;
    *report.py*)
        while [ "${1#-}" != "$1" ]; do shift; done
        exec "$@"
        ;;
esac
"""


def test_a_job_that_fails_at_once_has_failed(tmp_path: Path) -> None:
    """Its exit status is the script's, even if it is over before the script looks at it."""
    launch = tmp_path / "launch"
    launch.mkdir()
    for file in LAUNCH.glob("*.*"):
        if file.name != "setup.sh":
            (launch / file.name).symlink_to(file)
    (launch / "setup.sh").write_text("exit 0\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(SRUN)
        (tmp_path / name).chmod(0o755)
    slow = tmp_path / "slow"
    slow.write_text("""trap '[[ $BASH_COMMAND != "job=\\$!" ]] || sleep 0.5' DEBUG\n""")
    result = subprocess.run(
        ["bash", str(launch / "slurm.sbatch"), "--epochs", "3"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "BASH_ENV": str(slow),
            "VIRTUAL_ENV": sys.prefix,
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 7, result.stderr


def report(name: str, **facts: str) -> str:
    """A node's line, as report.py prints it."""
    value = {"name": name, "facts": {"Python": "3.11.2", "tensorflow": "2.21.0", **facts}}
    return f"a greeting\nddp_gd-report: {json.dumps(value)}\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([report("one"), report("two")], None),
        ([report("two", Python="3.12.1"), report("one")], "Python is 3.12.1 on two, 3.11.2 on one"),
        ([report("one")], "1 of 2 did not answer; one did"),
        ([], "2 of 2 did not answer; none did"),
    ],
)
def test_nodes_that_differ_are_named(lines: list[str], says: str | None) -> None:
    """Which node, in what, and both values; equal ones pass in silence."""
    result = subprocess.run(
        [sys.executable, str(LAUNCH / "same_nodes.py"), "2"],
        input="".join(lines),
        capture_output=True,
        text=True,
    )
    assert result.returncode == (0 if says is None else 2)
    assert (says or "") in result.stderr
    assert (result.stderr == "") == (says is None)


def test_real_reports_are_understood() -> None:
    """What report.py prints here, twice, passes as two equal nodes."""
    line = subprocess.run(
        [sys.executable, str(LAUNCH / "report.py")], capture_output=True, text=True, check=True
    ).stdout
    command = [sys.executable, str(LAUNCH / "same_nodes.py"), "2"]
    assert subprocess.run(command, input=line * 2, text=True).returncode == 0
    assert subprocess.run(command, input=line, text=True, stderr=subprocess.DEVNULL).returncode == 2
