"""launch/multi_gpu.sh, on machines whose nvidia-smi is a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import ARGUMENTS, in_place_of_training

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "multi_gpu.sh"

# Stands in for ddp_gd.train: leaves its arguments in a file per rank.
STAND_IN = """
import json, os, pathlib, sys
rank = os.environ["OMPI_COMM_WORLD_RANK"]
pathlib.Path(os.environ["SEEN"], rank + ".json").write_text(json.dumps(sys.argv[1:]))
"""


def program(path: Path, text: str) -> None:
    """Write an executable."""
    path.write_text(text)
    path.chmod(0o755)


def run(script: Path, *arguments: str, path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a folder first on PATH, and all visible GPUs."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NCCL_", "CUDA_"))}
    environ |= {"VIRTUAL_ENV": sys.prefix, "PATH": f"{path}:{os.environ['PATH']}", **more}
    return subprocess.run(
        ["bash", str(script), *arguments],
        env=environ,
        cwd=path,
        capture_output=True,
        text=True,
        timeout=600,
    )


def pretend(folder: Path, gpus: int) -> Path:
    """A folder with an nvidia-smi that lists so many GPUs, one of them cut up."""
    lines = [f"GPU {number}: NVIDIA H200 (UUID: GPU-{number})" for number in range(gpus)]
    lines[1:1] = ["  MIG 3g.71gb Device 0: (UUID: MIG-1)"]
    program(folder / "nvidia-smi", "#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    return folder


def workers_of(result: subprocess.CompletedProcess[str]) -> str:
    """What follows -np in the command that --dry-run printed."""
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    return words[words.index("-np") + 1]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        *((None, "4"), ("0,2", "2"), ("GPU-1", "1"), ("MIG-1,GPU-2", "2")),
        *(("3,-1,2", "1"), ("2,4,1", "1"), ("0,none", "1"), ("0, 1,99999999999999999999", "2")),
    ],
)
def test_a_worker_for_each_gpu(tmp_path: Path, visible: str | None, expected: str) -> None:
    """As many as the driver lists, or as CUDA_VISIBLE_DEVICES leaves of them."""
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    result = run(SCRIPT, "--dry-run", path=pretend(tmp_path, 4), **more)
    assert workers_of(result) == expected


@pytest.mark.parametrize(
    ("nvidia_smi", "visible", "says"),
    [
        (None, None, "no nvidia-smi on PATH"),
        ("#!/bin/sh\nexit 9\n", None, "nvidia-smi ends in an error"),
        ("#!/bin/sh\n", None, "there is no GPU here."),
        ("#!/bin/sh\necho GPU 0: x\n", "-1", "CUDA_VISIBLE_DEVICES='-1'"),
        ("#!/bin/sh\necho GPU 0: x\n", "", "CUDA_VISIBLE_DEVICES=''"),
        ("#!/bin/sh\necho GPU 0: x\n", "NoDevFiles", "CUDA_VISIBLE_DEVICES='NoDevFiles'"),
        ("#!/bin/sh\necho GPU 0: x\n", "1", "CUDA_VISIBLE_DEVICES='1'"),
    ],
)
def test_without_a_gpu_it_says_so(tmp_path: Path, nvidia_smi, visible, says) -> None:
    """It names what is missing, and what to run instead, and ends with status 1."""
    if nvidia_smi is not None:
        program(tmp_path / "nvidia-smi", nvidia_smi)
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    if nvidia_smi is None:  # a real one may be there
        for name in ("bash", "basename", "dirname", "sed", "grep"):
            (tmp_path / name).symlink_to(f"/usr/bin/{name}")
        more["PATH"] = str(tmp_path)
    result = run(SCRIPT, "--dry-run", path=tmp_path, **more)
    assert result.returncode == 1
    assert says in result.stderr
    assert "launch/cpu_mpi.sh" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["-np", "none"], "'none'"),
        (["-np", "5"], "-np 5 is more than the 4 GPUs"),
        (["--interface", "eth0; true"], "'eth0; true'"),
        (["--hosts"], "--hosts needs a value"),
    ],
)
def test_wrong_command_line(tmp_path: Path, arguments: list[str], quoted: str) -> None:
    """A wrong command line ends with status 2, the bad value quoted."""
    result = run(SCRIPT, *arguments, path=pretend(tmp_path, 4))
    assert result.returncode == 2
    assert quoted in result.stderr


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [(["--gpu", "--cuda", "/nowhere"], "'/nowhere/bin/nvcc'"), (["--cuda", "/usr"], "'/usr")],
)
def test_set_up_needs_a_toolkit_that_exists(arguments: list[str], quoted: str) -> None:
    """A CUDA toolkit without a compiler, or without --gpu, ends the set-up before it begins."""
    result = run(ROOT / "launch" / "setup.sh", *arguments, path=ROOT)
    assert result.returncode == 2
    assert quoted in result.stderr


def test_an_environment_keeps_its_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set up with --cuda is current for --gpu alone, and no other takes its place."""
    environment, toolkit = tmp_path / "environment", tmp_path / "cuda"
    for folder in (environment, toolkit):
        (folder / "bin").mkdir(parents=True)
    # Every installation succeeds and installs nothing, so the set-up ends without Horovod.
    program(environment / "bin" / "python", "#!/bin/sh\n")
    program(toolkit / "bin" / "nvcc", "#!/bin/sh\n")

    def set_up(*arguments: str) -> subprocess.CompletedProcess[str]:
        more = {"VIRTUAL_ENV": str(environment), "XDG_CACHE_HOME": str(tmp_path)}
        return run(ROOT / "launch" / "setup.sh", *arguments, path=tmp_path, **more)

    assert set_up("--gpu", "--cuda", str(toolkit)).returncode == 0
    assert set_up("--check", "--gpu").returncode == 0
    # A set-up that fails forgets nothing.
    program(environment / "bin" / "python", '#!/bin/sh\n[ "$1" != -m ]\n')
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert "could not be installed" in set_up("--gpu").stderr
    (toolkit / "bin" / "nvcc").unlink()
    result = set_up("--gpu")
    assert result.returncode == 1
    assert f"'{toolkit}/bin/nvcc' is gone" in result.stderr
    assert "--gpu --cuda FOLDER" in result.stderr


def test_dry_run_without_gpus(tmp_path: Path) -> None:
    """With -np it prints environment and command anywhere, in words that a shell reads back."""
    (tmp_path / "nvidia-smi").symlink_to("/bin/false")
    command = ("--dry-run", "-np", "8", "--interface", "ib0", "--", "--lr", "a b")
    result = run(SCRIPT, *command, path=tmp_path, NCCL_DEBUG="INFO")
    assert workers_of(result) == "8"
    words = result.stdout.splitlines()
    assert words[0] == "env"
    assert {"NCCL_SOCKET_IFNAME==ib0", "NCCL_DEBUG=INFO", "mpirun", "ddp_gd.train"} <= set(words)


def test_other_hosts_get_nccls_settings(tmp_path: Path) -> None:
    """With hosts their numbers count, not this machine's, and NCCL's variables go along."""
    command = ("--dry-run", "--hosts", "localhost:3", "--interface", "eth0")
    result = run(SCRIPT, *command, path=pretend(tmp_path, 3), NCCL_DEBUG="INFO")
    assert workers_of(result) == "3"
    words = result.stdout.splitlines()
    passed = {words[number + 1] for number, word in enumerate(words) if word == "-x"}
    assert {"NCCL_DEBUG", "NCCL_SOCKET_IFNAME"} <= passed
    assert "CUDA_VISIBLE_DEVICES" not in result.stdout
    assert "DDP_GD_FOR_GPUS" not in result.stdout


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ("localhost:3", "localhost takes 3 workers and has GPUs for 2"),
        ("localhost:2,other:2", "other takes 2 workers and has GPUs for 1"),
    ],
)
def test_a_host_with_too_few_gpus_is_named(tmp_path: Path, hosts: str, says: str) -> None:
    """Each host counts its own, before anything is started."""
    # Stands in for a host: what would have run there over ssh runs here.
    program(tmp_path / "ssh", "#!/bin/sh\nCUDA_VISIBLE_DEVICES=1 exec sh\n")
    result = run(SCRIPT, "--dry-run", "--hosts", hosts, path=pretend(tmp_path, 2))
    assert result.returncode == 2
    assert says in result.stderr
    assert "nothing was started" in result.stderr


@pytest.mark.jobs
def test_arguments_arrive_unchanged(tmp_path: Path) -> None:
    """A thousand arguments of any characters reach each worker byte for byte."""
    path = in_place_of_training(tmp_path, STAND_IN)
    # The set-up for GPUs is not what is tested: in its place, one that finds nothing to do.
    launch = tmp_path / "launch"
    launch.mkdir()
    for file in (ROOT / "launch").glob("*.*"):
        if file.is_file() and file.name != "setup.sh":
            (launch / file.name).symlink_to(file)
    (launch / "setup.sh").write_text("exit 0\n")
    result = run(
        *(launch / SCRIPT.name, "-np", "2", "--", *ARGUMENTS),
        path=pretend(tmp_path, 2),
        PYTHONPATH=path,
        SEEN=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [words[-1000:] for words in seen] == [ARGUMENTS, ARGUMENTS]
