#!/usr/bin/env bash
# Usage: connect.sh SSH-ARGUMENTS ...
#
# The ssh that mpirun starts its daemons with. A daemon whose host has disappeared never answers
# mpirun again, which can wait a quarter of an hour for it, or for ever, when its own workers are
# long gone. So: notice the loss, as soon as the workers would (DDP_GD_STALL_SECONDS), and end an
# mpirun that does not end by itself.
set -uo pipefail

mpirun=$PPID
alive=()
limit=${DDP_GD_STALL_SECONDS:-120}
limit=${limit%%.*}
if [[ $limit =~ ^[1-9][0-9]{0,6}$ ]]; then
    alive=(-o ServerAliveCountMax=4 -o "ServerAliveInterval=$(((limit + 3) / 4))")
fi
ssh -x -o BatchMode=yes "${alive[@]}" "$@"
status=$?
if ((status == 255)); then # ssh's own: no connection, or lost
    sleep 5
    read -r _ _ _ parent _ <"/proc/$$/stat"
    if ((parent == mpirun)); then
        echo "connect.sh: ssh lost a host of this job, and mpirun waits for it; ending mpirun" >&2
        kill -KILL "$mpirun"
    fi
fi
exit "$status"
