"""`ddp-gd doctor`: what is installed, whether workers find each other, what mends the rest."""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from ddp_gd.commands.doctor import build, programs
from ddp_gd.commands.doctor.recipe import Target
from ddp_gd.errors import ConfigError, DdpGdError
from ddp_gd.job import mpirun
from ddp_gd.job.versions import version

_SUM = """
import sys
import ddp_gd
ddp_gd.init(backend=sys.argv[1])
from ddp_gd.comm import agree
from ddp_gd.job.runtime import communicator
assert agree.gather_json(communicator(), [ddp_gd.rank()]) == [[0], [1]]
"""
_SECONDS = 180


def main(arguments: Sequence[str]) -> int:
    """Print what is found; return 0 if a training with several workers can start, else 1."""
    parser = argparse.ArgumentParser(
        prog="ddp-gd doctor",
        description="Say what is installed here and how workers can find each other, try it with "
        "two, and give the command that mends what is missing.",
    )
    parser.add_argument(
        "--build-horovod",
        action="store_true",
        help="build Horovod into this environment: two minutes on two cores",
    )
    parser.add_argument("--gpu", action="store_true", help="with NCCL, for GPUs")
    parser.add_argument("--cuda", type=Path, metavar="FOLDER", help="and this CUDA toolkit")
    options = parser.parse_args(arguments)
    if options.cuda and not (options.cuda / "bin" / "nvcc").is_file():
        raise ConfigError(
            f"--cuda {options.cuda} must be the folder of a CUDA toolkit, with bin/nvcc in it."
        )
    if options.build_horovod:
        return build.build(Target(options.gpu or bool(options.cuda), options.cuda))
    for name, text in _facts().items():
        print(f"{name:<11} {text}", flush=True)
    backends = ["mpi", *(["horovod"] if _version("horovod") else [])]
    problems = [problem for backend in backends if (problem := _try(backend))]
    print()
    for remedy in _remedies():
        print(remedy)
    if not problems:
        print("Start a training with two workers: ddp-gd train -np 2")
    return int(bool(problems))


def _facts() -> dict[str, str]:
    horovod = _version("horovod")
    path = shutil.which(mpirun.path())
    told = programs.output([path, "--version"]).splitlines() if path else []
    gpus = programs.output(["nvidia-smi", "--list-gpus"]).splitlines()
    return {
        "ddp_gd": _version("ddp_gd") or "not installed",
        "Python": f"{platform.python_version()}, {sys.executable}",
        "TensorFlow": _version("tensorflow") or "not installed",
        "Keras": _version("keras") or "not installed",
        "mpirun": f"{next(iter(told), 'of an unknown MPI')}, {path}" if path else "none",
        "mpi4py": _version("mpi4py") or "not installed",
        "Horovod": horovod or "not installed; workers use mpi4py",
        "cores": f"{len(os.sched_getaffinity(0))} for this process",
        "GPUs": "; ".join(gpu.split(" (")[0] for gpu in gpus) or "none",
    }


def _try(backend: str) -> str:
    """Let two workers meet; say how it went, and return why not."""
    print(f"2 workers   {backend}: ", end="", flush=True)
    began = time.perf_counter()
    try:
        words = mpirun.command(2, [sys.executable, "-c", _SUM, backend])
        done = subprocess.run(  # noqa: S603
            words,
            env=mpirun.environment() | {"CUDA_VISIBLE_DEVICES": "-1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        said, failed = done.stdout.strip(), done.returncode != 0
    except DdpGdError as error:
        said, failed = str(error), True
    except subprocess.TimeoutExpired:
        said, failed = f"no answer within {_SECONDS} s", True
    if not failed:
        print(f"they find each other ({time.perf_counter() - began:.1f} s)")
        return ""
    print("FAILED")
    print("\n".join(f"    {line}" for line in said.splitlines()[-15:]))
    return said or "it said nothing"


def _remedies() -> Iterator[str]:
    """The command for each thing that is missing."""
    python = shlex.quote(sys.executable)
    if not _version("tensorflow"):
        yield f"TensorFlow: {python} -m pip install tensorflow"
    if build.mpi() == "none" and not shutil.which(mpirun.path()):
        yield f"MPI: {python} -m pip install {build.OPEN_MPI}"
    elif not _version("horovod"):
        if build.mpi() == "none":
            yield (
                "Horovod needs Open MPI 4 with its compiler, mpicxx: "
                f"{python} -m pip install {build.OPEN_MPI}"
            )
        yield f"Horovod, if you want it: {python} -m ddp_gd.doctor --build-horovod"


def _version(name: str) -> str:
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        return ""
