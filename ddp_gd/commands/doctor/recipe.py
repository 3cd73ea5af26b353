"""The recipe for Horovod: what is fetched, what is changed in it, and how it is compiled.

Horovod 0.28.1 is the last release (2023), source only, and doesn't compile against TensorFlow 2.21
as it is: one source file is left out. It is built without Gloo, whose launcher is not wanted (see
SECURITY.md), and without debugging symbols.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ddp_gd.commands.doctor import programs
from ddp_gd.commands.doctor.programs import Problem

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
PATCH = 2  # count up when the recipe changes what is built

# What compiles the CUDA kernels where no toolkit is given. PyPI has none of CUDA 12.
CUDA = (
    *("nvidia-cuda-nvcc==13.0.88", "nvidia-nvvm==13.0.88", "nvidia-cuda-crt==13.0.88"),
    *("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cccl==13.0.85"),
)
# Compute capabilities 7.5 to 9.0: what TensorFlow 2.21 has kernels for and that compiler can make.
# Newer GPUs translate the last one's when they start.
CUDA_CAPABILITIES = "75,80,86,89,90"


class Target(NamedTuple):
    """What to build for.

    Attributes:
        gpu: with NCCL.
        cuda: the folder of a CUDA toolkit; None for PyPI's compiler.
    """

    gpu: bool = False
    cuda: Path | None = None


def make_wheel(target: Target, work: Path) -> None:
    """Leave the wheel in the folder `wheel` of `work`.

    Raises:
        Problem: it can't be fetched, changed or built.
    """
    source = _source(target, work)
    flags = [os.environ.get("LDFLAGS", "")]
    if shutil.which(programs.folder() / "mpicxx"):
        # The wheel is kept for other environments: it must look for MPI in the one it lies in, four
        # folders up from horovod/tensorflow/, before the one it was built in.
        flags.append("-Wl,-rpath,$ORIGIN/../../../..")
    settings = {
        # Settings of someone's own build would change the wheel without changing its key.
        **{name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")},
        **dict.fromkeys(("HOROVOD_WITH_TENSORFLOW", "HOROVOD_WITH_MPI"), "1"),
        **{f"HOROVOD_WITHOUT_{name}": "1" for name in ("PYTORCH", "MXNET", "GLOO")},
        "MAKEFLAGS": os.environ.get("MAKEFLAGS", f"-j{len(os.sched_getaffinity(0))}"),
        "PATH": programs.with_own_programs(),
    }
    if target.gpu:
        settings |= _cuda_settings(target, work)
        flags.append("-Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib")
    settings["LDFLAGS"] = " ".join(flags).strip()
    programs.say(f"building Horovod {VERSION} ({settings['MAKEFLAGS']}; two minutes on two cores)")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(work / "wheel")]
    if not programs.pip("wheel", "--verbose", *options, str(source), env=settings):
        raise Problem("it could not be built.")


def _source(target: Target, work: Path) -> Path:
    """Fetch its source, and change it."""
    hashed = work / "horovod.txt"
    hashed.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
    options = ["--no-deps", "--no-build-isolation", "--no-binary", "horovod", "--require-hashes"]
    where = ["--dest", str(work), "--requirement", str(hashed)]
    if not programs.pip("download", "--quiet", *options, *where):
        raise Problem("its source could not be downloaded and checked.")
    if not programs.run(["tar", "-xzf", str(work / f"horovod-{VERSION}.tar.gz"), "-C", str(work)]):
        raise Problem("its source could not be unpacked.")
    source = work / f"horovod-{VERSION}"
    change(source, target)
    return source


def change(source: Path, target: Target) -> None:
    """Change what has to be in Horovod's source.

    Raises:
        Problem: it is another source than this recipe is for.
    """
    # The one change for TensorFlow 2.21: its headers for XLA moved. The file's kernels exist in GPU
    # builds only, so nothing that we could call goes.
    lists = source / "horovod" / "tensorflow" / "CMakeLists.txt"
    _change(lists, r".*xla_mpi_ops\.cc.*\n", "")
    # The file that takes longest first: as the last one it would be compiled alone.
    _change(lists, r"\$\{SOURCES\} \$\{TF_SOURCES\}", "${TF_SOURCES} ${SOURCES}")
    # Debugging symbols take a third of the time, and 100 MB.
    _change(
        source / "CMakeLists.txt",
        r'"-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO',
        '"-O2 -g" "-O2" CMAKE_CXX_FLAGS_RELWITHDEBINFO',
    )
    if target.gpu:
        _change_for_gpus(source)


def _change_for_gpus(source: Path) -> None:
    operations = source / "horovod" / "tensorflow" / "mpi_ops.cc"
    # TensorFlow no longer has the function that told a stream's CUDA handle, but a method.
    _change(operations, r"^GpuStreamHandle AsGpuStreamValue\(Stream\* stream\);\n", "")
    _change(
        operations,
        r"\A((?s:.*?))^#endif // HAVE_GPU$",
        r"""\1namespace stream_executor {
namespace gpu {
inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
} // namespace gpu
} // namespace stream_executor
#endif // HAVE_GPU""",
    )
    # The CUDA runtime that belongs to the compiler, whole and before TensorFlow, which exports the
    # same names for the one it loads itself: kernels of one version must not register with another.
    _change(
        source / "CMakeLists.txt",
        r"^.*find_package\(CUDAToolkit REQUIRED\).*$",
        r"\g<0>\nlist(APPEND LINKER_LIBS -Wl,--whole-archive ${CUDA_cudart_static_LIBRARY} "
        "-Wl,--no-whole-archive)",
    )


def _change(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    if count != 1:
        raise Problem(f"its source is not the one that this recipe is for ({file.name}).")
    file.write_text(text)


def _cuda_settings(target: Target, work: Path) -> Mapping[str, str]:
    spec = importlib.util.find_spec("nvidia.nccl")
    if spec is None or not spec.submodule_search_locations:
        raise Problem('NCCL is not installed: pip install "tensorflow[and-cuda]".')
    nccl = Path(next(iter(spec.submodule_search_locations)))
    _link(nccl / "lib" / "libnccl.so", "libnccl.so.2")  # what the linker looks for
    toolkit = target.cuda
    if toolkit is None:
        # Beside the environment, not in it: TensorFlow's CUDA 12 stays the only one there.
        folder = work / "cuda"
        if not programs.pip("install", "--no-deps", "--target", str(folder), *CUDA):
            raise Problem("the CUDA compiler could not be installed.")
        toolkit = folder / "nvidia" / "cu13"
        _link(toolkit / "lib64", "lib")  # where the compiler and CMake look
        _link(toolkit / "lib" / "libcudart.so", "libcudart.so.13")
    settings = {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_NCCL_INCLUDE": str(nccl / "include"),
        "HOROVOD_NCCL_LIB": str(nccl / "lib"),
        "HOROVOD_CUDA_HOME": str(toolkit),
        "CUDACXX": str(toolkit / "bin" / "nvcc"),
        "PATH": f"{toolkit / 'bin'}{os.pathsep}{programs.with_own_programs()}",
    }
    if target.cuda is None:
        settings["HOROVOD_BUILD_CUDA_CC_LIST"] = CUDA_CAPABILITIES
    return settings


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
