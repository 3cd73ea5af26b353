#!/usr/bin/env bash
# Usage: bash launch/test.sh [--quick | pytest arguments]
#
# Runs every check, after a set-up if one is needed, and stops at the first that fails: formatting,
# lint, types, shell scripts, tests. About half an hour on two cores. Arguments go to pytest:
# bash launch/test.sh tests/batching
#
#   --quick     all but the tests that start jobs, train long, or measure seconds: under three minutes
#   -h, --help  this text
#
# With CI=true a missing Horovod is a failure too.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage_if_asked "$@"

setup_options=(--tests)
if [[ ${CI:-} == true ]]; then
    setup_options+=(--require-horovod)
fi
set_up_if_needed
enter_venv
# The tests compare bits: they run on the CPU wherever they run.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES--1}
cd "$repo_root"

# What --quick leaves out besides the tests that are marked: files that train for a while.
slow=(
    tests/training tests/steps tests/comm tests/test_{fuzz,docs,examples}.py tests/data/test_load.py
    tests/batching/test_stream_source.py tests/job/test_start_limit.py
    tests/commands/test_{train,predict_command,contrast,study,verify,models}.py
)

checks=7 number=0
check() { # check <command ...>
    number=$((number + 1))
    say "$number/$checks ($SECONDS s): $*"
    "$@" || die "FAILED: $*"
}

check ruff format --check .
check ruff check .
check mypy
scripts=(launch/*.sh launch/slurm.sbatch benchmarks/*.sh .ci/run)
check shellcheck --external-sources "${scripts[@]}"
check shfmt --indent 4 --case-indent --diff "${scripts[@]}"
if [[ ${1:-} == --quick ]]; then
    checks=6
    check pytest -m "not jobs and not timed and not cluster and not everything" "${slow[@]/#/--ignore=}" "${@:2}"
elif (($#)); then
    checks=6
    check pytest "$@"
else
    # Not reordered: the longest files have few tests, and would come last.
    check pytest -m "not timed and not cluster and not everything" --numprocesses 2 --dist loadfile --no-loadscope-reorder
    check pytest -m timed
fi
say "all checks passed in $SECONDS s"
