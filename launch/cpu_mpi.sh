#!/usr/bin/env bash
# Usage: bash launch/cpu_mpi.sh [options] [training arguments]
#
# Trains on CPUs through MPI, on this machine or several, and starts again from the last checkpoint
# when a worker or a host is lost. GPUs are hidden from the workers (launch/multi_gpu.sh is for
# them). docs/cluster.md explains it step by step.
#
#   -np N              N workers; default: as many as --hosts takes, or as there are cores
#   --hosts A:4,B:4    hosts and how many workers each takes (one, without a number); they are
#                      reached by ssh, and need the same checkout and set-up at the same path
#   --hostfile FILE    the same from a file, a host a line: `A slots=4` or `A:4`; # starts a comment
#   --interface I      the network between hosts: an interface (eth0) or a network (10.0.0.0/24);
#                      default: the one that ssh to these hosts goes over
#   --launcher L       mpirun (default), or horovodrun (Open MPI 4 only)
#   --mpirun FILE      another MPI's mpirun than the set-up's: Open MPI 4 or 5, or MPICH. Horovod
#                      was not built for it, so the workers use --backend mpi
#   -x NAME            pass this variable on to workers on other hosts; may be repeated. PATH, and
#                      those of Python, TensorFlow, Keras, Horovod and this package, are anyway
#   --logs FOLDER      what each worker prints goes to FOLDER/rank-N.log, on its host, and to the
#                      terminal; default: the folder logs in the results' (--out)
#   --restarts K       after a failure, start again with --resume; give up after K starts in a row
#                      that left no new checkpoint. Not after errors that would come again (exit
#                      status 2). Needs --checkpoint FOLDER among the training arguments, on a
#                      disk that this host and the first one of --hosts share. A host that an
#                      audit (--audit) named is left out; where there is no other, or it names
#                      none, the job ends (exit status 4)
#   --min-np M         on a restart, be content with M workers when hosts stay away; default: N.
#                      Where fewer can be had, that counts as a start, and the hosts are asked again
#                      after 30 seconds (or DDP_GD_RESTART_SECONDS)
#   --dry-run          check the hosts, then print the command, one word a line, instead
#   -h, --help         this text, then the training arguments
#
# Everything after the options, or after --, goes to `python -m ddp_gd.train` as it is. SIGTERM or
# SIGINT: the workers save and stop after the same step (143 or 130); a second one ends them at once.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=launch/mpi.sh
. "$repo_root/launch/mpi.sh"
# shellcheck source=launch/hosts.sh
. "$repo_root/launch/hosts.sh"

# ---------------------------------------------------------------- the command line

was_typed "$@"
workers='' restarts=0 least='' interface='' launcher=mpirun logs='' dry_run=false
variables=(PATH VIRTUAL_ENV)
value() { # value <option> <its value> <what it must match> <what it needs to be>
    [[ $2 =~ ^($3)$ ]] || refuse "$1 needs $4, not '$2'."
}
while (($#)); do
    case $1 in
        -np | --min-np | --restarts)
            value "$1" "${2:-}" '[1-9][0-9]{0,5}' 'a whole number of at least 1'
            case $1 in
                -np) workers=$2 ;;
                --min-np) least=$2 ;;
                *) restarts=$2 ;;
            esac
            ;;
        --hosts) read_hosts "${2:-}" ;;
        --hostfile) read_hostfile "${2:-}" ;;
        --interface)
            value "$1" "${2:-}" '[A-Za-z0-9][A-Za-z0-9_.:-]*(/[0-9]{1,2})?' 'an interface (eth0) or a network (10.0.0.0/24)'
            interface=$2
            ;;
        --launcher)
            value "$1" "${2:-}" 'mpirun|horovodrun' 'mpirun or horovodrun'
            launcher=$2
            ;;
        --mpirun)
            [[ -x ${2:-} && ! -d ${2:-} ]] || refuse "--mpirun needs the path of an mpirun, not '${2:-}'."
            mpirun=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
            ;;
        -x)
            value "$1" "${2:-}" '[A-Za-z_][A-Za-z0-9_]*' "a variable's name"
            [[ -v $2 ]] || refuse "-x $2: there is no such variable in the environment."
            variables+=("$2")
            ;;
        --logs)
            value "$1" "${2:-}" '.+' 'a folder'
            logs=$2
            ;;
        --dry-run)
            dry_run=true
            shift
            continue
            ;;
        -h | --help) help_with ddp_gd.train ;;
        --)
            shift
            break
            ;;
        *) break ;;
    esac
    shift 2
done

arguments=("$@")
read_arguments "$@"
if ((restarts)) && [[ -z $checkpoint ]]; then
    refuse "--restarts needs --checkpoint FOLDER among the training arguments: what it goes on from."
fi
if ((${#hosts[@]})); then
    slots=$(slots_of "${hosts[@]}")
    workers=${workers:-$slots}
    ((workers <= slots)) || refuse "-np $workers is more than the $slots workers that the hosts take."
elif [[ -n $interface ]]; then
    refuse "--interface $interface is for several hosts: give --hosts or --hostfile."
fi
if [[ $launcher == horovodrun && $mpirun != mpirun ]]; then
    refuse "--launcher horovodrun starts the mpirun of the set-up, not '$mpirun': leave one of the two out."
fi
workers=${workers:-$(nproc)}
least=${least:-$workers}
((least <= workers)) || refuse "--min-np $least is more than the $workers workers of -np."

# ---------------------------------------------------------------- MPI, and the hosts

if [[ $dry_run == false ]]; then
    set_up_if_needed
fi
enter_venv
asked=()
# Set by multi_gpu.sh alone.
if [[ -n ${DDP_GD_FOR_GPUS:-} ]]; then
    asked=(--gpus)
    unset DDP_GD_FOR_GPUS
else
    export CUDA_VISIBLE_DEVICES=-1
    job_settings+=(CUDA_VISIBLE_DEVICES)
    variables+=(CUDA_VISIBLE_DEVICES)
fi
find_mpi
[[ $mpi != mpich || $interface != */* ]] ||
    refuse "--interface: MPICH takes the name of an interface, such as eth0, not the network '$interface'."
if [[ $launcher == horovodrun ]]; then
    horovod_is_installed || die "there is no Horovod here, so no horovodrun. Leave --launcher out."
    [[ $mpi == open-mpi-4 ]] || refuse "--launcher horovodrun: its options are for Open MPI 4, and $(command -v mpirun) isn't. Leave it out."
fi
backend=()
if ! $has_backend && [[ $mpirun != mpirun ]]; then
    backend=(--backend mpi)
elif ! $has_backend && ! horovod_is_installed; then
    say "no Horovod here (bash launch/setup.sh tells why); using the mpi backend"
    backend=(--backend mpi)
fi

# Sets hosts_now, others, network and interface_now to what the hosts that can take part tell.
ask_hosts() { # ask_hosts [--leave-out]
    local answer
    answer=$(python "$repo_root/launch/preflight.py" "$@" "${wrong[@]/#/--wrong=}" "${asked[@]}" "$repo_root" "$venv" "$mpirun" "${hosts[@]}") || exit
    { read -r hosts_now && read -r others && read -r network && read -r interface_now; } <<<"$answer" || true
    if ((others)) && [[ -n $interface ]]; then
        network=$interface interface_now=$interface
    elif ((others)) && [[ -z $network ]]; then
        [[ $launcher != horovodrun ]] ||
            die "can't tell the network between the hosts, and horovodrun needs it: give --interface."
        say "can't tell the network between the hosts, so MPI tries all; --interface chooses one"
    fi
}

hosts_now='' others=0 network='' interface_now='' wrong=()
if ((${#hosts[@]})); then
    for path in "$repo_root" "$venv" "$mpi_prefix"; do
        [[ $path =~ ^[A-Za-z0-9_./+@=-]*$ ]] ||
            die "'$path': MPI starts its daemons on other hosts through a shell, which would read that path otherwise. Move it to one of letters, digits and _./+@=- only."
    done
    ask_hosts
    export_mpi_settings several "$network" "$interface"
else
    export_mpi_settings one '' ''
fi

for name in "${!DDP_GD_@}" "${!FI_@}" "${!HOROVOD_@}" "${!KERAS_@}" "${!MPI4PY_@}" "${!OMP_@}" "${!PYTHON@}" "${!TF_@}" "${!UCX_@}" "${!XLA_@}"; do
    variables+=("$name")
done
[[ ! -v LD_LIBRARY_PATH ]] || variables+=(LD_LIBRARY_PATH)

# ---------------------------------------------------------------- start, and start again

if ((restarts)) && ! $has_resume && [[ -e $(newest "$checkpoint") ]]; then
    refuse "$checkpoint holds the checkpoints of a training. Give --resume to go on with it, or an empty folder."
fi

chosen_out=()
if [[ -z $logs ]]; then
    if [[ -z $out ]]; then
        stamp=runs/$(date +%Y%m%d-%H%M%S) out=$stamp
        for ((i = 2; ; i++)); do
            [[ -e $out ]] || break
            out=$stamp-$i
        done
        chosen_out=(--out "$out")
    fi
    logs=$out/logs
    [[ ! -L $logs ]] || refuse "$logs is a symbolic link, and results stay in their folder. Give --logs, or another --out."
fi
[[ $logs == /* ]] || logs=$PWD/$logs

named=$checkpoint/audit-named-hosts # training/audit.py writes it: host names, one a line
# Hosts that an audit found to compute wrong are left out from now on.
leave_out_wrong() {
    local -a found=()
    [[ ! -f $named ]] || mapfile -t found <"$named"
    if ((! ${#found[@]})); then
        say "the audit can't tell which host computes wrong: run the job on others, or leave one out by hand."
        exit "$job_status"
    fi
    if ((! ${#hosts[@]})); then
        say "the audit named this host, and there is no other to go on with. See docs/audit.md."
        exit "$job_status"
    fi
    wrong+=("${found[@]}")
    say "an audit found that $(join_by ' ' "${found[@]}") computed wrong, which is left out from now on"
}

failures=0 pause=${DDP_GD_RESTART_SECONDS:-30}
while true; do
    now=$workers
    if ((failures && ${#hosts[@]})); then
        ask_hosts --leave-out
        IFS=, read -ra there <<<"$hosts_now"
        slots=$(slots_of "${there[@]}")
        ((now <= slots)) || now=$slots
        if ((now < least)); then
            failures=$((failures + 1))
            ((failures <= restarts)) || die "$now workers can be had, fewer than --min-np $least. Gave up."
            say "$now workers can be had, fewer than --min-np $least; asking the hosts again in $pause seconds"
            sleep "$pause"
            continue
        fi
    fi
    if [[ $launcher == horovodrun ]]; then
        horovodrun_words "$now" "$hosts_now" "$network"
    else
        mpirun_words "$now" "$hosts_now" "$interface_now" "${variables[@]}"
    fi
    go_on=()
    if ((failures)) && ! $has_resume; then
        go_on=(--resume)
    fi
    through_mpi "$logs" "${chosen_out[@]}" "${arguments[@]}" "${backend[@]}" "${go_on[@]}"
    command=("${start[@]}" "${program[@]}")
    if [[ $dry_run == true ]]; then
        print_settings PATH VIRTUAL_ENV "${job_settings[@]}"
        print_words "${command[@]}"
        exit 0
    fi
    before=$(newest "$checkpoint")
    ((! restarts)) || rm -f "$named"
    if [[ $launcher == horovodrun && ${DDP_GD_VERBOSE:-} != 1 ]]; then
        run_family "${command[@]}" 2> >(without_loading >&2)
    else
        run_family "${command[@]}"
    fi
    ((! job_signal)) || exit "$job_status"
    case $job_status in
        0 | 2 | 130 | 143) exit "$job_status" ;; # done, wrong arguments, asked to stop
    esac
    ((restarts)) || exit "$job_status"
    ((job_status != 4)) || leave_out_wrong
    if [[ $(newest "$checkpoint") == "$before" ]]; then
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
