# shellcheck shell=bash
# What the launch scripts share: where things are, how they speak, what a job's processes inherit.
# Sourced, not run.

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# The active virtual environment if there is one, else the repository's own.
venv=${VIRTUAL_ENV:-}
if [[ -z $venv || ! -x $venv/bin/python ]]; then
    venv=$repo_root/.venv
fi

# To stderr: stdout belongs to the program that is started.
say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

refuse() { # refuse <what is wrong>: the exit status for a wrong command line
    say "$*"
    say "See: bash launch/$(basename "$0") --help"
    exit 2
}

usage() { # print the comment at the top of the script that was called
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
}

setup_options=() # for set_up_if_needed
set_up_if_needed() {
    bash "$repo_root/launch/setup.sh" --check "${setup_options[@]}" ||
        bash "$repo_root/launch/setup.sh" "${setup_options[@]}"
}

enter_venv() {
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

is_open_mpi() { # is the mpirun on PATH Open MPI's?
    [[ $(mpirun --version 2>/dev/null || true) == *"Open MPI"* ]]
}

horovod_is_installed() {
    python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("horovod"))'
}

# exec, for a command that starts children and does not pass signals on: the status is the command's,
# and a signal reaches the whole family.
exec_family() {
    local job status=0
    if [[ -t 0 ]]; then
        exec </dev/null # reading a terminal from the background would stop the job
    fi
    set -m # a process group of its own
    "$@" &
    job=$!
    set +m
    # shellcheck disable=SC2064  # the number as it is now
    trap "kill -TERM -- -$job 2>/dev/null || true" TERM HUP
    # shellcheck disable=SC2064
    trap "kill -INT -- -$job 2>/dev/null || true" INT
    wait "$job" || status=$?
    # A signal interrupts the wait, and the first process may end before its children do.
    while kill -0 -- "-$job" 2>/dev/null; do
        sleep 0.1
        wait "$job" || status=$?
    done
    exit "$status"
}

# Settings that a user's own environment overrides.
export_job_settings() {
    # A worker that waits inside MPI gives its core away: Horovod's waiting thread otherwise takes it
    # from the computation of its own worker.
    export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle-1}
    # mpirun, when it is asked to stop, waits so many seconds, asks its workers to stop, waits as
    # long again, and kills them: time to save the training, and 5 s are not passed.
    export OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout-2}
    # Bare mpirun refuses more processes than cores, and root (containers); horovodrun allows both.
    export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe-1}
    export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT-1}
    export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM-1}
    # Without ssh mpirun gives up, even on one machine, unless it is told that there is only one.
    if ! command -v ssh >/dev/null && ! command -v rsh >/dev/null; then
        export OMPI_MCA_plm=${OMPI_MCA_plm-isolated}
    fi
    # PyPI's Open MPI learns from mpirun where its files are; a process without mpirun, from here.
    if [[ -x $venv/bin/mpicxx ]]; then
        export OPAL_PREFIX=${OPAL_PREFIX-$venv}
    fi
    # Every process, horovodrun itself included, otherwise opens with more lines about the CPU.
    export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL-2}
}
