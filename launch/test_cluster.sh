#!/usr/bin/env bash
# Usage: bash launch/test_cluster.sh [pytest arguments]
#
# Tests on several hosts (network namespaces, each with an sshd), and under Slurm, all on this
# machine. They need root, and install Debian's packages of these services where they are missing;
# everything else is in launch/test.sh.
#
#   -h, --help  this text
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit 0
fi
if [[ $(id -u) != 0 ]]; then
    say "SKIPPED: it needs root, for network namespaces and services."
    exit 0
fi

packages=(openssh-server iproute2 munge slurmctld slurmd slurm-client)
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

set_up_if_needed
enter_venv
export_job_settings
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES--1}
cd "$repo_root"
pytest -m cluster "$@"
