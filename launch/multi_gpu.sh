#!/usr/bin/env bash
# Usage: bash launch/multi_gpu.sh [-np N] [--interface NAME] [--dry-run] [options of cpu_mpi.sh]
#                                 [training arguments]
#
# Trains with one worker for each GPU, on this machine or several: launch/cpu_mpi.sh, with Horovod
# exchanging gradients through NCCL. Needs the set-up for GPUs: bash launch/setup.sh --gpu
#
#   -np N             N workers; default: as many as this machine has GPUs that CUDA_VISIBLE_DEVICES
#                     leaves, or as --hosts or --hostfile take
#   --interface NAME  the network between the hosts, for NCCL and MPI, such as eth0. Default: theirs
#   --dry-run         print the environment that is set and the command instead, a word a line; with
#                     -np or hosts, on a machine without GPUs too
#   -h, --help        this text, then that of cpu_mpi.sh
#
# --hosts, --hostfile, --restarts, --min-np, --launcher, --logs and -x are those of cpu_mpi.sh; other
# hosts get all NCCL_ variables. A host takes no more workers than it has GPUs, each the one of its
# number. Everything after the options, or after --, goes to `python -m ddp_gd.train` as it is.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=launch/gpus.sh
. "$repo_root/launch/gpus.sh"

was_typed "$@"
workers='' interface='' hosts=false dry_run=false
passed=() # to cpu_mpi.sh
while (($#)); do
    case $1 in
        -np)
            [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] ||
                refuse "-np needs a whole number of at least 1, not '${2:-}'."
            workers=$2
            shift 2
            ;;
        --interface)
            [[ ${2:-} =~ ^[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}$ ]] ||
                refuse "--interface needs the name of a network interface, such as eth0, not '${2:-}'."
            interface=$2
            shift 2
            ;;
        --dry-run)
            dry_run=true
            shift
            ;;
        -h | --help)
            usage
            echo
            exec bash "$repo_root/launch/cpu_mpi.sh" --help
            ;;
        --hosts | --hostfile | --restarts | --min-np | --launcher | --logs | -x)
            [[ $1 != --host* ]] || hosts=true
            (($# > 1)) || refuse "$1 needs a value."
            passed+=("$1" "$2")
            shift 2
            ;;
        --)
            shift
            break
            ;;
        *) break ;;
    esac
done

if ! $hosts && ! { $dry_run && [[ -n $workers ]]; }; then
    command -v nvidia-smi >/dev/null ||
        die "there is no GPU here that NVIDIA's driver knows: no nvidia-smi on PATH. On CPUs: bash launch/cpu_mpi.sh"
    nvidia-smi --list-gpus >/dev/null 2>&1 ||
        die "NVIDIA's driver does not work: nvidia-smi ends in an error. On CPUs: bash launch/cpu_mpi.sh"
    gpus=$(count_gpus)
    if ((gpus == 0)); then
        [[ ! -v CUDA_VISIBLE_DEVICES ]] || say "CUDA_VISIBLE_DEVICES='$CUDA_VISIBLE_DEVICES' leaves none."
        die "there is no GPU here. On CPUs: bash launch/cpu_mpi.sh"
    fi
    workers=${workers:-$gpus}
    ((workers <= gpus)) ||
        refuse "-np $workers is more than the $gpus GPUs of this machine. Each worker needs one of its own."
fi
[[ -z $workers ]] || passed+=(-np "$workers")

if ! $dry_run; then
    setup_options=(--gpu --require-horovod)
    set_up_if_needed
fi

if [[ -n $interface ]]; then
    # = : that one, not those whose names begin so.
    export NCCL_SOCKET_IFNAME="=$interface"
    if $hosts; then
        passed+=(--interface "$interface")
    fi
fi
settings=("${!NCCL_@}")
if $hosts; then
    for name in "${settings[@]}"; do
        passed+=(-x "$name")
    done
fi
if $dry_run; then
    [[ ! -v CUDA_VISIBLE_DEVICES ]] || settings+=(CUDA_VISIBLE_DEVICES)
    ((! ${#settings[@]})) || print_settings "${settings[@]}"
    passed+=(--dry-run)
fi
DDP_GD_FOR_GPUS=1 exec bash "$repo_root/launch/cpu_mpi.sh" "${passed[@]}" -- "$@"
