#!/usr/bin/env bash
# Usage: bash launch/cpu_mpi.sh [options] [training arguments]
#
# Trains on CPUs through Open MPI's plain mpirun, on this machine or several, and starts again from
# the last checkpoint when a worker or a host is lost.
#
#   -np N              N workers; default: as many as there are slots
#   --hosts A:4,B:4    hosts and how many workers each takes (one, without a number); mpirun reaches
#                      them by ssh, and finds the same checkout and set-up there at the same path
#   --restarts K       after a failure, start again with --resume; give up after K starts in a row
#                      that left no new checkpoint. Not after errors that would come again (exit
#                      status 2). Needs --checkpoint FOLDER among the training arguments, on a
#                      disk that this host and the first one of --hosts share
#   --min-np M         on a restart, be content with M workers when hosts stay away; default: N
#   --dry-run          print the command instead, one argument a line
#   -h, --help         this text, then the training arguments
#
# Everything after the options, or after --, goes to `python -m ddp_gd.train` as it is. SIGTERM or
# SIGINT: the workers save and stop after the same step (143 or 130); a second one ends them at once.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

workers='' hosts='' restarts=0 least='' dry_run=false
one_host='[A-Za-z0-9][A-Za-z0-9_.-]*(:[1-9][0-9]{0,3})?'
is_count() { [[ $1 =~ ^[1-9][0-9]{0,5}$ ]]; }
while (($#)); do
    case $1 in
        -np | --min-np | --restarts)
            is_count "${2:-}" || refuse "$1 needs a whole number of at least 1, not '${2:-}'."
            case $1 in
                -np) workers=$2 ;;
                --min-np) least=$2 ;;
                *) restarts=$2 ;;
            esac
            shift 2
            ;;
        --hosts)
            [[ ${2:-} =~ ^$one_host(,$one_host)*$ ]] ||
                refuse "--hosts needs NAME:WORKERS,NAME:WORKERS,..., not '${2:-}'."
            hosts=$2
            shift 2
            ;;
        --dry-run)
            dry_run=true
            shift
            ;;
        -h | --help) help_with ddp_gd.train ;;
        --)
            shift
            break
            ;;
        *) break ;;
    esac
done

slots_of() { # slots_of <hosts>: how many workers they take
    local host total=0
    local -a list
    IFS=, read -ra list <<<"$1"
    for host in "${list[@]}"; do
        [[ $host == *:* ]] && total=$((total + ${host#*:})) || total=$((total + 1))
    done
    echo "$total"
}

checkpoint='' resume=()
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
        --checkpoint) checkpoint=${arguments[i + 1]:-} ;;
        --checkpoint=*) checkpoint=${arguments[i]#*=} ;;
        --resume) resume=(--resume) ;;
    esac
done
if ((restarts)) && [[ -z $checkpoint ]]; then
    refuse "--restarts needs --checkpoint FOLDER among the training arguments: what it goes on from."
fi
if [[ -n $hosts ]]; then
    slots=$(slots_of "$hosts")
    workers=${workers:-$slots}
    ((workers <= slots)) || refuse "-np $workers is more than the $slots workers that --hosts takes."
fi
workers=${workers:-$(nproc)}
least=${least:-$workers}
((least <= workers)) || refuse "--min-np $least is more than the $workers workers of -np."

if [[ $dry_run == false ]]; then
    set_up_if_needed
fi
enter_venv
export_job_settings

# Hosts that answer, of those that were given; all of them at the first start, when mpirun itself
# tells best what is wrong.
reachable() {
    local host found=()
    local -a list
    IFS=, read -ra list <<<"$hosts"
    for host in "${list[@]}"; do
        if is_here "${host%%:*}" || ssh -o BatchMode=yes -o ConnectTimeout=5 "${host%%:*}" true </dev/null >/dev/null 2>&1; then
            found+=("$host")
        else
            say "${host%%:*} does not answer"
        fi
    done
    (
        IFS=,
        echo "${found[*]}"
    )
}

is_here() { # is_here <host>: is it this one, which mpirun needs no ssh for?
    [[ $1 == localhost || $1 == 127.* || $1 == "$(hostname)" || $1 == "$(hostname -s)" ]]
}

newest() { # the newest checkpoint's name: progress shows in it
    local -a found=("$checkpoint"/step-*.safetensors)
    echo "${found[-1]}"
}

backend=()
if ! horovod_is_installed; then
    say "no Horovod here (bash launch/setup.sh tells why); using the mpi backend"
    backend=(--backend mpi)
fi

if ((restarts)) && [[ ${#resume[@]} == 0 && -e $(newest) ]]; then
    refuse "$checkpoint holds the checkpoints of a training. Give --resume to go on with it, or an empty folder."
fi

failures=0
while true; do
    now=$workers where=()
    if [[ -n $hosts ]]; then
        there=$hosts
        ((failures)) && there=$(reachable)
        slots=$([[ -n $there ]] && slots_of "$there" || echo 0)
        ((now <= slots)) || now=$slots
        ((now >= least)) || die "$now workers can be had, fewer than --min-np $least. Gave up."
        where=(-H "$there" -x PATH -x VIRTUAL_ENV)
        for name in "${!OMPI_@}" "${!HOROVOD_@}" "${!TF_@}" "${!DDP_GD_@}"; do
            [[ $name == OMPI_MCA_* || $name == OMPI_ALLOW_* ]] || where+=(-x "$name")
        done
    fi
    command=(mpirun -np "$now" "${where[@]}" python -m ddp_gd.train "${arguments[@]}" "${backend[@]}")
    if ((failures)) && [[ ${#resume[@]} == 0 ]]; then
        command+=(--resume)
    fi
    if [[ $dry_run == true ]]; then
        printf '%s\n' "${command[@]}"
        exit 0
    fi
    before=$( ((restarts)) && newest || true)
    run_family "${command[@]}"
    case $job_status in
        0 | 2 | 130 | 143) exit "$job_status" ;; # done, wrong arguments, asked to stop
    esac
    ((restarts)) || exit "$job_status"
    if [[ $(newest) == "$before" ]]; then
        failures=$((failures + 1))
    else
        failures=1
    fi
    if ((failures > restarts)); then
        say "the job failed $failures times in a row without a new checkpoint. Gave up."
        exit "$job_status"
    fi
    say "the job failed with exit status $job_status; going on from the last checkpoint in $checkpoint"
done
