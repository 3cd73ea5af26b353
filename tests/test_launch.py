import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"

HOSTILE = ["a b", "it's", '$HOME `id` "q" \\', "", "*", "two\nlines", ";", "--", "--lr=1e-3", "-np"]

# Stands in for ddp_gd.train: leaves its arguments in a file per rank, then ends as it is told.
STAND_IN = """
import json, os, pathlib, sys, time
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
partial = pathlib.Path(os.environ["SEEN"], rank + ".partial")
partial.write_text(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:]]))
partial.rename(partial.with_suffix(".json"))
time.sleep(float(os.environ.get("LINGER", "0")))
sys.exit(int(os.environ.get("STATUS", "0")))
"""

# Stands in for a training that fails three times, and saves a checkpoint before the second time.
FAILS = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["SEEN"])
start = len(list(folder.glob("start*")))
(folder / f"start{start}").write_text(" ".join(sys.argv[1:]))
if start == 1:
    (folder / "step-000000000005-0.safetensors").touch()
sys.exit(1 if start < 3 else 0)
"""


def run(
    script: Path, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a launch script in the environment that runs this test."""
    return subprocess.run(
        ["bash", str(script), *arguments],
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def _set_up() -> None:
    """Skip where launch/setup.sh did not make the environment: a test must not install things."""
    if run(LAUNCH / "setup.sh", "--check").returncode != 0:
        pytest.skip("this environment is not set up (bash launch/setup.sh)")


@pytest.fixture
def stand_in(_set_up: None, tmp_path: Path) -> dict[str, str]:
    """The environment in which `python -m ddp_gd.train` is the stand-in."""
    package = tmp_path / "shadow" / "ddp_gd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(STAND_IN)
    seen = tmp_path / "seen"
    seen.mkdir()
    return {"PYTHONPATH": str(package.parent), "SEEN": str(seen)}


def seen(env: dict[str, str]) -> dict[str, list]:
    """What each rank's stand-in left: process number, directory, arguments."""
    return {path.stem: json.loads(path.read_text()) for path in Path(env["SEEN"]).glob("*.json")}


@pytest.mark.parametrize("script", ["setup.sh", "train.sh", "test.sh", "cpu_mpi.sh"])
def test_help(script: str, tmp_path: Path) -> None:
    """`--help` explains itself in a checkout that was never set up, and sets nothing up."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    result = run(tmp_path / "launch" / script, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Usage: bash launch/{script}")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "quoted"),
    [
        ("train.sh", ["-np"], "''"),
        ("train.sh", ["-np", "0"], "'0'"),
        ("train.sh", ["-np", "two"], "'two'"),
        ("train.sh", ["-np", "1; true"], "'1; true'"),
        ("setup.sh", ["--requires-horovod"], "'--requires-horovod'"),
        ("cpu_mpi.sh", ["-np", "-1"], "'-1'"),
        ("cpu_mpi.sh", ["--hosts", "a:4,-x"], "'a:4,-x'"),
        ("cpu_mpi.sh", ["--hosts", "a:4,b", "-np", "6"], "-np 6"),
        ("cpu_mpi.sh", ["-np", "2", "--min-np", "3"], "--min-np 3"),
        ("cpu_mpi.sh", ["--restarts", "3", "--epochs", "2"], "--checkpoint FOLDER"),
    ],
)
def test_wrong_command_line(script: str, arguments: list[str], quoted: str) -> None:
    """A wrong command line ends with status 2, the bad value quoted, before anything is set up."""
    result = run(LAUNCH / script, *arguments)
    assert result.returncode == 2
    assert quoted in result.stderr
    assert "--help" in result.stderr


@pytest.mark.usefixtures("_set_up")
def test_second_set_up_is_quick() -> None:
    """A current set-up is recognised in seconds, and says so."""
    if run(LAUNCH / "setup.sh", "--check", "--require-horovod").returncode != 0:
        pytest.skip("without Horovod a second set-up tries again to build it")
    start = time.monotonic()
    result = run(LAUNCH / "setup.sh")
    assert result.returncode == 0, result.stderr
    assert "nothing to do" in result.stderr
    assert time.monotonic() - start < 5


def test_set_up_of_another_checkout_does_not_count(tmp_path: Path) -> None:
    """An environment in which another checkout is installed is not current for this one."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert run(tmp_path / "launch" / "setup.sh", "--check").returncode == 1


@pytest.mark.parametrize(
    ("script", "workers"), [("train.sh", None), ("train.sh", 1), ("train.sh", 3), ("cpu_mpi.sh", 2)]
)
def test_arguments_arrive_unchanged(
    stand_in: dict[str, str], tmp_path: Path, script: str, workers: int | None
) -> None:
    """Every worker gets each training argument byte for byte, in the directory of the caller."""
    prefix = [] if workers is None else ["-np", str(workers)]
    result = run(LAUNCH / script, *prefix, *HOSTILE, env=stand_in, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = seen(stand_in)
    assert sorted(found) == [str(rank) for rank in range(workers or 1)]
    assert all(entry[1:] == [str(tmp_path), HOSTILE] for entry in found.values())


@pytest.mark.parametrize("prefix", [[], ["-np", "2"]], ids=["one-process", "two-workers"])
def test_exit_status_is_the_programs(
    stand_in: dict[str, str], tmp_path: Path, prefix: list[str]
) -> None:
    """train.sh ends with the exit status of the training program."""
    env = {**stand_in, "STATUS": "7"}
    assert run(LAUNCH / "train.sh", *prefix, env=env, cwd=tmp_path).returncode == 7


@pytest.mark.parametrize(("restarts", "status", "starts"), [("2", 0, 4), ("1", 1, 3)])
def test_a_failed_job_is_started_again(
    stand_in: dict[str, str], tmp_path: Path, restarts: str, status: int, starts: int
) -> None:
    """With --resume; so often, counted from the last time that it came further."""
    (Path(stand_in["PYTHONPATH"]) / "ddp_gd" / "train.py").write_text(FAILS)
    folder = Path(stand_in["SEEN"])
    arguments = ["-np", "1", "--restarts", restarts, "--checkpoint", str(folder), "--lr=1"]
    result = run(LAUNCH / "cpu_mpi.sh", *arguments, env=stand_in, cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert len(list(folder.glob("start*"))) == starts
    assert (folder / "start0").read_text() == f"--checkpoint {folder} --lr=1"
    assert (folder / "start2").read_text() == f"--checkpoint {folder} --lr=1 --resume"
    assert ("Gave up" in result.stderr) == (status != 0)


def test_another_trainings_checkpoints_are_left_alone(
    stand_in: dict[str, str], tmp_path: Path
) -> None:
    """Starting again by itself must not mean going on with what was there before."""
    (tmp_path / "step-000000000005-0.safetensors").touch()
    arguments = ["-np", "1", "--restarts", "1", "--checkpoint", str(tmp_path)]
    result = run(LAUNCH / "cpu_mpi.sh", *arguments, env=stand_in, cwd=tmp_path)
    assert result.returncode == 2
    assert "holds the checkpoints of a training. Give --resume" in result.stderr
    assert not seen(stand_in)


def test_hosts_are_mpiruns(stand_in: dict[str, str], tmp_path: Path) -> None:
    """The command for several hosts, with what their workers inherit."""
    arguments = ["--dry-run", "--hosts", "one:2,two", "--", "--epochs", "2"]
    result = run(LAUNCH / "cpu_mpi.sh", *arguments, env=stand_in, cwd=tmp_path)
    words = result.stdout.splitlines()
    assert words[:5] == ["mpirun", "-np", "3", "-H", "one:2,two"], result.stderr
    assert words[-5:] == ["python", "-m", "ddp_gd.train", "--epochs", "2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_every_worker(
    stand_in: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """A signal to train.sh ends all workers: none is left running behind its back."""
    with subprocess.Popen(
        ["bash", str(LAUNCH / "train.sh"), "-np", "2"],
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, **stand_in, "LINGER": "60"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as job:
        deadline = time.monotonic() + 60
        while len(seen(stand_in)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [entry[0] for entry in seen(stand_in).values()]
        assert len(workers) == 2
        job.send_signal(number)
        assert job.wait(timeout=30) == 128 + number
    # mpirun kills them and does not wait for the system to clear them away.
    deadline = time.monotonic() + 10
    while (alive := [w for w in workers if Path(f"/proc/{w}").exists()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert not alive
