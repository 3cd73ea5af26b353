#!/usr/bin/env bash
# Usage: bash launch/test.sh [pytest arguments]
#
# Runs every check, after a set-up if one is needed, and stops at the first that fails: formatting,
# lint, types, shell scripts, tests. Arguments go to pytest: bash launch/test.sh tests/batching
#
#   -h, --help  this text
#
# With CI=true a missing Horovod is a failure too.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage_if_asked "$@"

if [[ ${CI:-} == true ]]; then
    setup_options=(--require-horovod)
fi
set_up_if_needed
enter_venv
# The tests compare bits: they run on the CPU wherever they run.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES--1}
cd "$repo_root"

check() { # check <command ...>
    say "$*"
    "$@" || die "FAILED: $*"
}

check ruff format --check .
check ruff check .
check mypy
scripts=(launch/*.sh launch/slurm.sbatch benchmarks/*.sh .ci/run)
check shellcheck --external-sources "${scripts[@]}"
check shfmt --indent 4 --case-indent --diff "${scripts[@]}"
if (($#)); then
    check pytest "$@"
else
    # Not reordered: the longest files have few tests, and would come last.
    check pytest -m "not timed and not cluster" --numprocesses 2 --dist loadfile --no-loadscope-reorder
    check pytest -m timed
fi
say "all checks passed"
