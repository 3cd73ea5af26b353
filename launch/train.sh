#!/usr/bin/env bash
# Usage: bash launch/train.sh [-np N] [training arguments]
#
# Trains, after a set-up if one is needed (bash launch/setup.sh).
#
#   -np N       N workers on this machine, which exchange gradients through Horovod, or through mpi4py
#               where Horovod could not be built. Without it: one plain process. --np and -n mean the
#               same, and it may stand anywhere; what comes after -- is not looked at
#   -h, --help  this text, then the training arguments
#
# It is `ddp-gd train`. The number of workers changes the speed, not the result: batch_size stays the
# rows averaged into one update. The first Ctrl-C lets a training with --checkpoint save and stop.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || help_with ddp_gd.train
arguments=("$@")
for i in "${!arguments[@]}"; do
    case ${arguments[i]} in
        --) break ;;
        -np | --np | -n)
            [[ ${arguments[i + 1]:-} =~ ^[1-9][0-9]{0,5}$ ]] ||
                refuse "${arguments[i]} needs the number of workers, a whole number of at least 1, not '${arguments[i + 1]:-}'."
            break
            ;;
    esac
done

set_up_if_needed
enter_venv
was_typed "$@"
exec python -m ddp_gd train "$@"
