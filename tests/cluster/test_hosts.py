"""launch/cpu_mpi.sh on several hosts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from hostile import ARGUMENTS, in_place_of_training
from hosts import NETWORK, Cluster
from jobs import run_job

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
CPU_MPI = str(ROOT / "launch" / "cpu_mpi.sh")
STALL = 5  # seconds

# Long enough for a host to get lost in the middle.
TRAINING = ["--bitwise", "--seed", "1", "--batch-size", "100", "--epochs", "12", "--verbose", "0"]

LAUNCHERS = {
    "mpirun": ["--launcher", "mpirun"],
    "horovodrun": ["--launcher", "horovodrun"],
    "open-mpi-5": ["--mpirun", str(ROOT / ".mpi" / "open-mpi-5" / "bin" / "mpirun")],
    "mpich": ["--mpirun", str(ROOT / ".mpi" / "mpich" / "bin" / "mpirun")],
}

# Stands in for ddp_gd.train: leaves its arguments in a file.
STAND_IN = """
import json, os, pathlib, socket, sys
job = json.dumps([socket.gethostname(), sys.argv[1:]])
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
pathlib.Path(os.environ["SEEN"], f"{rank}.json").write_text(job)
"""


def environment(**more: str) -> dict[str, str]:
    """What a user's shell on the first host has."""
    return {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "DDP_GD_STALL_SECONDS": str(STALL),
        "PYTHONPATH": str(ROOT),
        **more,
    }


def launcher(name: str) -> list[str]:
    """The options that choose it."""
    options = LAUNCHERS[name]
    if options[0] == "--mpirun" and not Path(options[1]).exists():
        pytest.skip(f"there is no {options[1]} (launch/test_cluster.sh installs it)")
    return options


def names(cluster: Cluster, count: int) -> str:
    """--hosts, with one worker on each."""
    return ",".join(f"{host.name}:1" for host in cluster.hosts[:count])


def fingerprint(output: str) -> str:
    """The one that a training printed."""
    found = re.findall(r"fingerprint: (\w{64})", output)
    assert len(found) == 1, output
    return found[0]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint that the training has in one process, started without any launcher."""
    out = str(tmp_path_factory.mktemp("one") / "out")
    command = [sys.executable, "-m", "ddp_gd.train", *TRAINING, "--out", out]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return fingerprint(done.stdout)


@pytest.fixture(autouse=True)
def _nothing_is_left(cluster: Cluster) -> Iterator[None]:
    """No process of a job is left on any host."""
    yield
    deadline = time.monotonic() + 15
    while left := [line for host in cluster.hosts for line in host.processes()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("name", "hosts"), [("mpirun", 3), ("horovodrun", 2), ("open-mpi-5", 2), ("mpich", 2)]
)
def test_same_bits_as_on_one_host(
    cluster: Cluster, undisturbed: str, tmp_path: Path, name: str, hosts: int
) -> None:
    """Hosts from a file, through each launcher: the fingerprint of one process, and all logs."""
    hostfile = tmp_path / "hosts"
    lines = [f"{host.name} slots=1  # one worker\n" for host in cluster.hosts[:hosts]]
    hostfile.write_text("# our hosts\n\n" + "".join(lines))
    options = [*launcher(name), "--hostfile", str(hostfile)]
    out = tmp_path / "out"
    done = cluster.hosts[0].run(
        "bash", CPU_MPI, *options, *TRAINING, "--out", str(out), env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert fingerprint(done.stdout) == undisturbed
    assert f"workers {hosts} (" in done.stdout
    logs = {log.name: log.read_text() for log in (out / "logs").iterdir()}
    assert sorted(logs) == [f"rank-{rank}.log" for rank in range(hosts)]
    assert fingerprint(logs["rank-0.log"]) == undisturbed


@pytest.mark.parametrize("name", ["horovodrun", "mpirun", "cpu_mpi.sh"])
def test_same_bits_with_four_workers(undisturbed: str, tmp_path: Path, name: str) -> None:
    """On one host, without the scripts and with: the fingerprint of one process."""
    training = [*TRAINING, "--out", str(tmp_path / "out")]
    if name == "cpu_mpi.sh":
        command = ["bash", CPU_MPI, "-np", "4", *training]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=150
        )
    else:
        done = run_job(4, ["-m", "ddp_gd.train", *training], name, timeout=150)
    assert done.returncode == 0, done.stderr
    assert fingerprint(done.stdout) == undisturbed


@pytest.mark.parametrize("name", LAUNCHERS)
def test_arguments_arrive_unchanged(cluster: Cluster, tmp_path: Path, name: str) -> None:
    """1,000 hostile arguments pass each launcher, byte for byte; hosts fill up in order."""
    path = in_place_of_training(tmp_path, STAND_IN)
    env = environment(PYTHONPATH=path, SEEN=str(tmp_path))
    first, second = (host.name for host in cluster.hosts[:2])
    options = [*launcher(name), "--hosts", f"{first}:2,{second}", "-x", "SEEN"]
    words = ["bash", CPU_MPI, *options, "--logs", str(tmp_path / "logs"), "--", *ARGUMENTS]
    done = cluster.hosts[0].run(*words, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    extra = [] if LAUNCHERS[name][0] == "--launcher" else ["--backend", "mpi"]
    for rank, host in enumerate([first, first, second]):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == [host, [*ARGUMENTS, *extra]]


@pytest.mark.parametrize(("name", "least"), [("mpirun", 1), ("mpich", 1), ("mpirun", 2)])
def test_a_lost_host(
    cluster: Cluster, undisturbed: str, tmp_path: Path, name: str, least: int
) -> None:
    """Ends the job in about the stall time; the restart goes on without it, to the same bits.

    Where fewer workers are not wanted it waits: the host is back when it is asked again.
    """
    first, second = cluster.hosts[:2]
    options = [*launcher(name), "--hosts", names(cluster, 2), "--restarts", "2"]
    options += ["--min-np", str(least)]
    saved = tmp_path / "saved"
    training = [*TRAINING, "--checkpoint", str(saved), "--checkpoint-steps", "4"]
    command = ["bash", CPU_MPI, *options, *training, "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        first.command(command),
        env=environment(DDP_GD_RESTART_SECONDS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        deadline = time.monotonic() + 100
        while not list(saved.glob("step-*")):
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.02)
        with contextlib.ExitStack() as unplugged:
            unplugged.enter_context(cluster.unplugged(second))
            began = time.monotonic()
            said = []
            for line in job.stderr:
                said.append(line)
                if "going on from the last checkpoint" in line:
                    took = time.monotonic() - began
                    if least == 1:
                        break
                elif "1 workers can be had, fewer than --min-np 2; asking" in line:
                    unplugged.close()
                    break
            rest, errors = job.communicate(timeout=100)
    said.append(errors)
    assert job.returncode == 0, "".join(said)
    assert f"on {second.name}) has not answered for {STALL} s" in "".join(said)
    assert f"{second.name} can't be reached" in "".join(said)
    # ssh notices the loss within 1.25 times the stall time or so, and mpirun has 5 s to end.
    assert took < 2 * STALL + 7
    assert fingerprint(rest) == undisturbed


def test_a_host_that_computes_wrong(cluster: Cluster, tmp_path: Path) -> None:
    """An audit names it; the restart goes on without it, to the bits of one without a fault."""
    model = f"{ROOT / 'tests' / 'programs' / 'wrong_host.py'}:build"
    training = [*TRAINING, "--model", model, "--checkpoint-steps", "4"]
    first, second = cluster.hosts[:2]
    left = {}
    for wrong in ("nobody", second.name):
        folder = tmp_path / wrong
        options = ["--hosts", names(cluster, 3), "--restarts", "1", "--min-np", "2"]
        options += ["-x", "WRONG_HOST", "--", *training, "--audit", "1"]
        options += ["--checkpoint", str(folder / "saved"), "--out", str(folder / "out")]
        done = first.run("bash", CPU_MPI, *options, env=environment(WRONG_HOST=wrong))
        assert done.returncode == 0, done.stderr
        left[wrong] = fingerprint(done.stdout)
    assert f"rank 1 (on {second.name}) computed micro-batch" in done.stderr
    assert f"{second.name} is left out: an audit found" in done.stderr
    assert "workers 2 (" in done.stdout
    assert left["nobody"] == left[second.name]


def refusal(cluster: Cluster, tmp_path: Path, *options: str) -> str:
    """What cpu_mpi.sh says when it refuses to start; nothing was started then."""
    out = tmp_path / "out"
    done = cluster.hosts[0].run(
        "bash", CPU_MPI, *options, "--epochs", "1", "--out", str(out), env=environment()
    )
    assert done.returncode == 2, done.stderr
    assert not out.exists()
    return done.stderr


def test_hosts_that_do_not_answer(cluster: Cluster, tmp_path: Path) -> None:
    """Each one is named, with ssh's reason."""
    third = cluster.hosts[2]
    with cluster.unplugged(third):
        said = refusal(cluster, tmp_path, "--hosts", f"{names(cluster, 3)},nowhere:2")
    assert f"{third.name} can't be reached: ssh: connect to host" in said
    assert "nowhere can't be reached: ssh: Could not resolve hostname" in said
    assert cluster.hosts[1].name not in said


def test_hosts_that_differ(cluster: Cluster, tmp_path: Path) -> None:
    """Another version, another source or no checkout on a host is named before anything starts."""
    first, second, third = cluster.hosts
    keras = metadata.distribution("keras")
    here = Path(str(keras.locate_file(f"keras-{keras.version}.dist-info/METADATA")))
    there = tmp_path / "METADATA"
    there.write_text(here.read_text().replace(f"\nVersion: {keras.version}\n", "\nVersion: 3.0\n"))
    plan = tmp_path / "plan.py"
    plan.write_text((ROOT / "ddp_gd" / "batching" / "plan.py").read_text() + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    with (
        second.covered(here.resolve(), there),
        third.covered(ROOT / "ddp_gd" / "batching" / "plan.py", plan),
    ):
        said = refusal(cluster, tmp_path, "--hosts", names(cluster, 3))
    head = f"differs from this host ({first.name}):"
    assert f"{second.name} {head} keras is 3.0 there, {keras.version} here" in said
    assert f"{third.name} {head} ddp_gd's source is sha256 " in said
    with second.covered(ROOT, empty), third.covered(Path(sys.prefix), empty):
        said = refusal(cluster, tmp_path, "--hosts", names(cluster, 3))
    assert f"{second.name} has no checkout of ddp_gd at the path" in said
    assert f"{third.name} has no environment at the path" in said


def test_network_is_the_one_that_ssh_went_over(cluster: Cluster, tmp_path: Path) -> None:
    """Not that of the bridge which every host has, with the same address."""
    done = cluster.hosts[0].run(
        "bash", CPU_MPI, "--hosts", names(cluster, 3), "--dry-run", env=environment()
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert f"OMPI_MCA_btl_tcp_if_include={NETWORK}.0/24" in words
    assert f"OMPI_MCA_oob_tcp_if_include={NETWORK}.0/24" in words
