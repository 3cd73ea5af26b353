#!/usr/bin/env bash
# Usage: namespace_agent.sh ADDRESS COMMAND...
#
# Runs a command on one of network.py's hosts, under a host name of its own: Open MPI takes workers
# with one host name for workers of one host, and lets them talk through shared memory. Like ssh it
# hands the words of the command to a shell there, as mpirun expects of it.
set -euo pipefail
address=$1
shift
number=${address##*.}
# shellcheck disable=SC2016  # for the shell inside
exec ip netns exec "ddp_gd_bench_$number" unshare --uts \
    bash -c 'hostname "bench-$1"; shift; exec bash -c "$*"' agent "$number" "$@"
