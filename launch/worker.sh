#!/usr/bin/env bash
# Usage: worker.sh FOLDER COMMAND ...
#
# Runs one worker, and keeps what it prints in FOLDER/rank-N.log too. Started by cpu_mpi.sh, once for
# each worker: Open MPI 4, Open MPI 5 and MPICH each write logs in another way, and MPICH's then
# lack on the terminal.
set -euo pipefail

rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}
log=$1/rank-$rank.log
shift
if ! { mkdir -p "${log%/*}" && : >>"$log"; }; then
    echo "worker.sh: rank $rank on $(hostname) can't write $log; give --logs another folder." >&2
    exit 2
fi
# A signal to the worker and all its children is for the worker: the log ends when it does.
keep() {
    trap '' HUP INT USR1 USR2 TERM
    exec tee -a "$log"
}
exec "$@" > >(keep) 2> >(keep >&2)
