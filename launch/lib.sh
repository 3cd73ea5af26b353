# shellcheck shell=bash
# What the launch scripts share: where things are, how they speak, what a job's processes inherit.
# Sourced, not run.

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# The active virtual environment if there is one, else the repository's own.
venv=${VIRTUAL_ENV:-}
if [[ -z $venv || ! -x $venv/bin/python ]]; then
    venv=$repo_root/.venv
fi

mpirun=mpirun # or the file that --mpirun named

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

usage_if_asked() { # usage_if_asked [arguments ...]: print it and exit, if the first asks for it
    [[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit 0; }
}

help_with() { # help_with <module>: the script's text, then the module's, and exit
    usage
    # The rest needs the package: left out rather than set up for.
    if bash "$repo_root/launch/setup.sh" --check; then
        enter_venv
        cd "$repo_root" || exit
        echo
        exec python -m "$1" --help
    fi
    exit 0
}

was_typed() { # was_typed [arguments ...]: what messages name as the command to go on with
    [[ ! -v DDP_GD_COMMAND ]] || return 0
    DDP_GD_COMMAND="bash launch/$(basename "$0")"
    ((! $#)) || DDP_GD_COMMAND+=$(printf ' %q' "$@")
    ((${#DDP_GD_COMMAND} < 4000)) || DDP_GD_COMMAND= # nobody reads that
    export DDP_GD_COMMAND
}

setup_options=() # for set_up_if_needed
set_up_if_needed() {
    bash "$repo_root/launch/setup.sh" --check "${setup_options[@]}" ||
        bash "$repo_root/launch/setup.sh" "${setup_options[@]}"
}

enter_venv() { # and export what a job's processes want set: ddp_gd/comm/environment.py knows it
    local python=$venv/bin/python lines line
    [[ -x $python ]] || python=python3 # for --dry-run
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
    lines=$(PYTHONPATH=$repo_root "$python" -P -c '
import sys
from ddp_gd.comm.environment import launcher_settings
for setting in launcher_settings(*sys.argv[1:]).items():
    print(*setting, sep="=")' "$venv" "$mpirun") || die "$python could not tell what a job needs."
    while IFS= read -r line; do
        [[ -z $line ]] || set_default "${line%%=*}" "${line#*=}"
    done <<<"$lines"
}

is_open_mpi() { # is mpirun Open MPI's?
    [[ $("$mpirun" --version 2>/dev/null || true) == *"Open MPI"* ]]
}

horovod_is_installed() {
    python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("horovod"))'
}

# Sets checkpoint and out, the folders that the training arguments name, or '', and whether they have
# --backend and --resume.
# shellcheck disable=SC2034  # the scripts use them
read_arguments() { # read_arguments <training arguments ...>
    checkpoint='' out='' has_backend=false has_resume=false
    while (($#)); do
        case $1 in
            --checkpoint) checkpoint=${2:-} ;;
            --checkpoint=*) checkpoint=${1#*=} ;;
            --out) out=${2:-} ;;
            --out=*) out=${1#*=} ;;
            --backend | --backend=*) has_backend=true ;;
            --resume) has_resume=true ;;
        esac
        shift
    done
}

# Sets program to what mpirun is to start for the training with these arguments: worker.sh, which
# undoes what is done here. Python is named whole: an MPI's --prefix puts its own folder first on PATH.
through_mpi() { # through_mpi <folder of the logs, or ''> <training arguments ...>
    local word
    program=(bash "$repo_root/launch/worker.sh" "$1" "$venv/bin/python" -m ddp_gd.train)
    shift
    for word in "$@"; do
        [[ ! $word =~ ^\+*:$ ]] || word=+$word
        program+=("$word")
    done
}

# Run a command that starts children and does not pass signals on. Sets job_status, its exit status,
# or 128 + the number of the signal that ended it. The first signal asks the workers to save
# and stop, the second one ends them.
run_family() {
    job_status=0 job_signal=0 job_killed=0 job='' early=()
    if [[ -t 0 ]]; then
        exec </dev/null # reading a terminal from the background would stop the job
    fi
    trap 'on_signal TERM 15' TERM HUP
    trap 'on_signal INT 2' INT
    set -m # a process group of its own
    "$@" &
    job=$!
    set +m
    ((! ${#early[@]})) || on_signal "${early[@]}"
    wait "$job" || job_status=$?
    # A signal interrupts the wait, and the first process may end before its children do.
    while kill -0 -- "-$job" 2>/dev/null; do
        sleep 0.1 || true # Ctrl-C reaches it, too
        wait "$job" || job_status=$?
    done
    trap - TERM HUP INT
    case $job_status in # ended by the signal; an error of its own stays
        0 | 130 | 138 | 143) ((! job_signal)) || job_status=$((128 + job_signal)) ;;
        137) ((! job_killed)) || job_status=$((128 + job_signal)) ;; # not of a worker that hung
    esac
}

on_signal() { # on_signal <name> <number>
    local stat pids=()
    if [[ -z $job ]]; then
        early=("$@") # nobody to tell yet
        return 0
    fi
    if ((! job_signal)); then
        job_signal=$2
        # mpirun hands SIGUSR1 on at once. SIGTERM it takes as the order to end its workers, which
        # then have a second. horovodrun and the shell between them would die of SIGUSR1.
        for stat in /proc/[0-9]*/stat; do
            if [[ $(cat "$stat" 2>/dev/null || true) =~ ^([0-9]+)\ \((mpirun|mpiexec|orterun|prterun)[^\)]*\)\ .\ [0-9]+\ $job\  ]]; then
                pids+=("${BASH_REMATCH[1]}")
            fi
        done
        if ((${#pids[@]})) && kill -USR1 "${pids[@]}" 2>/dev/null; then
            return 0 # a bare `return` from a trap repeats what `wait` returned, and ends the script
        fi
    fi
    job_killed=1
    kill "-$1" -- "-$job" 2>/dev/null || true
}

newest() { # newest <folder>: the path of its newest checkpoint; progress shows in it
    local -a found=("$1"/step-*.safetensors)
    echo "${found[-1]}"
}

print_settings() { # print_settings <name ...>: `env`, and those of the variables that are set
    local name
    echo env
    for name in "$@"; do
        [[ ! -v $name ]] || print_words "$name=${!name}"
    done
}

print_words() { # print_words <word ...>: one a line, as a shell reads it back
    local word
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:,=@%+-]+$ ]]; then printf '%s\n' "$word"; else printf '%q\n' "$word"; fi
    done
}

job_settings=() # what set_default exported, for --dry-run

set_default() { # set_default <name> <value>: export it, unless the user's environment has another
    export "$1=${!1-$2}"
    job_settings+=("$1")
}
