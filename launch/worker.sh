#!/usr/bin/env bash
# Usage: worker.sh FOLDER COMMAND ...
#
# Runs one worker, and keeps what it prints in FOLDER/rank-N.log too; without a name for FOLDER, only
# runs it. The launch scripts start it, once for each worker: Open MPI 4, Open MPI 5 and MPICH each
# write logs in another way, and MPICH's then lack on the terminal. And an argument `:` is to mpirun
# the end of one program and the beginning of another: through_mpi in lib.sh puts a + before it, which
# is taken away here.
set -euo pipefail

folder=$1
shift
command=()
for word in "$@"; do
    [[ ! $word =~ ^\++:$ ]] || word=${word#+}
    command+=("$word")
done
[[ -n $folder ]] || exec "${command[@]}"

rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}
log=$folder/rank-$rank.log
if [[ -L $log ]]; then # someone else may have laid it
    echo "worker.sh: rank $rank on $(hostname): $log is a symbolic link, and not written through; remove it, or give --logs another folder." >&2
    exit 2
fi
if ! { mkdir -p "${log%/*}" && : >>"$log"; }; then
    echo "worker.sh: rank $rank on $(hostname) can't write $log; give --logs another folder." >&2
    exit 2
fi
# A signal to the worker and all its children is for the worker: the log ends when it does.
keep() {
    trap '' HUP INT USR1 USR2 TERM
    exec tee -a "$log"
}
exec "${command[@]}" > >(keep) 2> >(keep >&2)
