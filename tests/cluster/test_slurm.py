"""launch/slurm.sbatch under a Slurm of two nodes, both on this machine (launch/test_cluster.sh)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hostile import ARGUMENTS, in_place_of_training
from jobs import run_job

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
SERVICES = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
MISSING = [name for name in SERVICES if shutil.which(name) is None]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: services and namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job waits this long, 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TmpFS={folder}/tmp-%n
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
# It looks for jobs to start every so many seconds, 60 by default.
SchedulerParameters=sched_interval=1
ReturnToService=2
MailProg=/bin/true
KillWait=60
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={one} CPUs=2
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={two} CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
# With shared memory and a host name of its own a node is a host of its own for MPI.
NODE = 'mount -t tmpfs tmpfs /dev/shm && hostname "$1" && exec slurmd -D -N "$1"'

# Few steps that take long, to be interrupted after the first checkpoint: where cores are few, many
# short ones would be spent waiting for each other.
TRAINING = (
    *("--bitwise", "--seed", "3", "--epochs", "30", "--batch-size", "100", "--verbose", "0"),
    *("--hidden", "1024", "1024"),
)

# Stands in for ddp_gd.train: leaves its arguments in a file per rank.
STAND_IN = """
import json, os, pathlib, sys
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["SLURM_PROCID"]
pathlib.Path(os.environ["SEEN"], rank + ".json").write_text(json.dumps(sys.argv[1:]))
"""


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait for a condition; a failure says what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


class Slurm:
    """The cluster, and what a test does with it."""

    def __init__(self, folder: Path, environ: dict[str, str]):
        self.folder = folder
        self.environ = environ

    def __call__(self, *command: str, **more: str) -> str:
        """Run one of Slurm's commands and return what it printed."""
        return subprocess.run(
            command,
            env=self.environ | more,
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def submit(self, *arguments: str, workers: int = 2, **more: str) -> str:
        """Submit the script for workers on both nodes; return the job's number."""
        shape = ["--nodes=2", f"--ntasks={workers}", "--output=%j.txt"]
        return self("sbatch", "--parsable", *shape, str(SCRIPT), *arguments, **more).strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        assert found, job
        return found[1]

    def output(self, job: str) -> str:
        """What the job's script and workers printed so far, and what Slurm says of it."""
        return (self.folder / f"{job}.txt").read_text() + self("scontrol", "show", "job", job)

    def wait(self, job: str) -> str:
        """Wait for the job's end; return its state."""
        until(
            lambda: self.state(job) not in ("PENDING", "RUNNING", "COMPLETING"),
            f"the end of job {job}",
        )
        return self.state(job)

    def fingerprint(self, job: str) -> str:
        """Wait for a training to succeed; return its fingerprint."""
        state = self.wait(job)
        assert state == "COMPLETED", self.output(job)
        return fingerprint_in(self.output(job))


def fingerprint_in(output: str) -> str:
    """The one that a training prints."""
    [found] = re.findall(r"^fingerprint: (\w+)$", output, re.MULTILINE)
    return found


def processes_of(variable: str) -> list[str]:
    """Command lines of the processes that have `NAME=value` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended meanwhile
            pass
    return found


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Munge, Slurm's controller and two nodes, with keys, ports and folders of their own."""
    check = ["bash", str(ROOT / "launch" / "setup.sh"), "--check"]
    assert subprocess.run(check, env=os.environ | {"VIRTUAL_ENV": sys.prefix}).returncode == 0, (
        "this environment is not set up: bash launch/setup.sh"
    )
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddp_gd-slurm-"))
        folder = Path(name)
        for part in ("state", "spool-one", "spool-two", "tmp-one", "tmp-two"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        with ExitStack() as sockets:
            ports = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "123"]
            port, one, two = (server.getsockname()[1] for server in ports)
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(folder=folder, port=port, one=one, two=two))
        ours = ("OMPI_", "PMIX_", "SLURM_", "HOROVOD_", "SBATCH_", "SRUN_")
        environ = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        environ |= {
            "SLURM_CONF": str(config),
            "VIRTUAL_ENV": sys.prefix,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "-1",
        }

        def serve(*command: str) -> None:
            log = stack.enter_context(open(folder / "services.log", "a"))
            process = subprocess.Popen(
                command, env=environ, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(end, process)

        serve(
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--{part}={folder}/munge.{part[:4]}" for part in ("pid-file", "log-file")),
            *(f"--seed-file={folder}/munge.seed", f"--socket={folder}/munge.socket"),
        )
        until((folder / "munge.socket").exists, "munge", 20)
        serve("slurmctld", "-D", "-c")
        for node in ("one", "two"):
            serve("unshare", "--mount", "--uts", "bash", "-c", NODE, "bash", node)
        cluster = Slurm(folder, environ)

        def idle() -> bool:
            ask = ["sinfo", "--noheader", "--format=%t %D"]
            result = subprocess.run(ask, env=environ, capture_output=True, text=True)
            return result.stdout.strip() == "idle 2"

        until(idle, "two idle nodes", 60)
        stack.callback(subprocess.run, ["scancel", "--full", "--user=root"], env=environ)
        yield cluster
    assert processes_of(f"SLURM_CONF={config}") == []


def end(process: subprocess.Popen[bytes]) -> None:
    """End a service, and what it started if it does not."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def expected() -> str:
    """The fingerprint of the undisturbed training, by mpirun on this host."""
    with tempfile.TemporaryDirectory() as out:
        result = run_job(4, ["-m", "ddp_gd.train", *TRAINING, "--out", f"{out}/results"])
    assert result.returncode == 0, result.stderr
    return fingerprint_in(result.stdout)


def saves(folder: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def test_a_job_is_the_training_that_mpirun_makes(slurm: Slurm, expected: str) -> None:
    """Four tasks on two nodes end in the bits that `mpirun -np 4` ends in."""
    job = slurm.submit(*TRAINING, "--out", "four", workers=4)
    assert slurm.fingerprint(job) == expected
    assert "workers 4 (" in slurm.output(job)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_job_that_is_requeued_goes_on(slurm: Slurm, expected: str, launcher: str) -> None:
    """Preempted, or by itself when its time is up, it ends in the bits of an undisturbed one."""
    folder = slurm.folder / f"saved-{launcher}"
    options = ("--checkpoint", str(folder), "--checkpoint-steps", "10", "--out", launcher)
    job = slurm.submit("--launcher", launcher, *TRAINING, *options)
    until(lambda: saves(folder), "the first checkpoint")
    if launcher == "srun":
        slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    else:  # what Slurm does before the time limit
        slurm("scancel", "--batch", "--signal=USR1", job)
    until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", job), "the requeueing")
    # Without --resume the folder of checkpoints would have been refused.
    assert slurm.fingerprint(job) == expected


@pytest.mark.parametrize(
    ("launcher", "how"), [("srun", []), ("mpirun", ["--batch", "--signal=INT"])]
)
def test_a_job_that_is_cancelled_saves(slurm: Slurm, launcher: str, how: list[str]) -> None:
    """It saves the step it is in, ends without being requeued, and leaves no process."""
    folder = slurm.folder / f"cancelled-{launcher}"
    options = ("--epochs", "1000000", "--checkpoint", str(folder), "--checkpoint-steps", "10")
    job = slurm.submit("--launcher", launcher, *TRAINING, *options)
    until(lambda: saves(folder), "the first checkpoint")
    slurm("scancel", *how, job)
    assert slurm.wait(job) == ("FAILED" if how else "CANCELLED"), slurm.output(job)
    assert "saved in" in slurm.output(job), slurm.output(job)
    until(lambda: not processes_of(f"SLURM_JOB_ID={job}"), "its processes to end", 20)
    assert "Restarts=0" in slurm("scontrol", "show", "job", job)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_arguments_arrive_unchanged(slurm: Slurm, tmp_path: Path, launcher: str) -> None:
    """A thousand arguments of any characters reach each worker byte for byte."""
    path = in_place_of_training(tmp_path, STAND_IN)
    job = slurm.submit(
        *("--launcher", launcher, "--", *ARGUMENTS),
        PYTHONPATH=path,
        SEEN=str(tmp_path),
    )
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    expected = [word for word in ARGUMENTS if word != ":"]  # sbatch itself leaves that one out
    assert len(expected) > 990
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert seen == [expected, expected]


def test_without_mpi_no_worker_trains_alone(slurm: Slurm) -> None:
    """Tasks that srun starts, and that can't find each other, end in an error."""
    command = ["srun", "--ntasks=2", "--mpi=none", sys.executable, "-m", "ddp_gd.train"]
    environ = slurm.environ | {"OPAL_PREFIX": sys.prefix}
    result = subprocess.run(
        [*command, "--epochs", "1", "--out", "alone"],
        env=environ,
        cwd=slurm.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert "fingerprint:" not in result.stdout
    assert not (slurm.folder / "alone").exists()
