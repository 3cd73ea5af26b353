#!/usr/bin/env bash
# Usage: bash launch/train.sh [-np N] [training arguments]
#
# Trains, after a set-up if one is needed (bash launch/setup.sh).
#
#   -np N       N workers on this machine, through Horovod: horovodrun -np N python -m ddp_gd.train.
#               Where Horovod could not be built, through mpirun and the mpi backend.
#               Without -np: one plain process.
#   -h, --help  this text, then the training arguments
#
# Everything after -np N goes to `python -m ddp_gd.train` as it is. The number of workers changes
# the speed, not the result: batch_size stays the rows averaged into one update.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

workers=
if [[ ${1:-} == -np ]]; then
    workers=${2:-}
    [[ $workers =~ ^[1-9][0-9]*$ ]] ||
        refuse "-np needs the number of workers, a whole number of at least 1, not '$workers'."
    shift 2
elif [[ ${1:-} == -h || ${1:-} == --help ]]; then
    help_with ddp_gd.train
fi

set_up_if_needed
enter_venv

through_mpi '' "$@"
# The exit status is that of what runs last, and signals reach it.
if [[ -z $workers ]]; then
    exec python -m ddp_gd.train "$@"
elif horovod_is_installed; then
    # horovodrun has Open MPI put the rank before each line; switched off again, output reads like
    # that of one process.
    plain_lines=()
    if is_open_mpi; then
        plain_lines=("--mpi-args=--mca orte_tag_output 0")
    fi
    # horovodrun turns into `sh -c "mpirun ..."`, and a signal to that sh would leave mpirun running.
    run_family horovodrun -np "$workers" "${plain_lines[@]}" "${program[@]}"
    exit "$job_status"
else
    say "no Horovod here (bash launch/setup.sh tells why); using mpirun and the mpi backend"
    run_family mpirun -np "$workers" "${program[@]}"
    exit "$job_status"
fi
