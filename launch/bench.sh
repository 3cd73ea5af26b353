#!/usr/bin/env bash
# Usage: bash launch/bench.sh [--no-torch] [benchmark arguments]
#
# Times ddp_gd beside what a user would pick instead, in turns, after a set-up if one is needed:
# keras.Model.fit, a loop by hand over Horovod's tape, PyTorch DistributedDataParallel. Writes
# results.json, results.md and results.png to docs/benchmark. About half an hour on 2 cores; use a
# machine that does nothing else.
#
#   --no-torch  leave PyTorch out. Otherwise it is installed, into an environment of its own in
#               .venv-torch: a large download.
#   -h, --help  this text, then the benchmark's arguments
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

torch_requirement=torch==2.13.0 # the one whose numbers docs/ quotes

with_torch=true
if [[ ${1:-} == --no-torch ]]; then
    with_torch=false
    shift
elif [[ ${1:-} == -h || ${1:-} == --help ]]; then
    help_with benchmarks.bench
fi

setup_options=(--require-horovod)
set_up_if_needed
enter_venv
cd "$repo_root"

torch=()
if [[ $with_torch == true ]]; then
    torch_venv=$repo_root/.venv-torch
    if [[ ! -f $torch_venv/ready ]]; then
        say "installing $torch_requirement into .venv-torch"
        python -m venv "$torch_venv"
        "$torch_venv/bin/python" -m pip install --quiet "$torch_requirement" numpy
        touch "$torch_venv/ready"
    fi
    torch=(--torch-python "$torch_venv/bin/python")
fi
exec python -m benchmarks.bench "${torch[@]}" "$@"
