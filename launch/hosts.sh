# shellcheck shell=bash
# Which hosts a job may use, and how many workers each takes. Sourced by cpu_mpi.sh.

hosts=() # NAME:WORKERS, each name once

_name='[A-Za-z0-9][A-Za-z0-9_.-]*'
_count='[1-9][0-9]{0,3}'

add_host() { # add_host <name> <workers>: a name that comes again takes so many more
    local i
    for i in "${!hosts[@]}"; do
        if [[ ${hosts[i]%:*} == "$1" ]]; then
            hosts[i]=$1:$((${hosts[i]##*:} + $2))
            return
        fi
    done
    hosts+=("$1:$2")
}

read_hosts() { # read_hosts <NAME:WORKERS,NAME,...>
    local -a list
    local entry
    [[ $1 =~ ^$_name(:$_count)?(,$_name(:$_count)?)*$ ]] ||
        refuse "--hosts needs NAME:WORKERS,NAME:WORKERS,..., not '$1'."
    IFS=, read -ra list <<<"$1"
    for entry in "${list[@]}"; do
        [[ $entry == *:* ]] || entry+=:1
        add_host "${entry%:*}" "${entry##*:}"
    done
}

read_hostfile() { # read_hostfile <file>: as Open MPI or MPICH read it
    local line number=0
    [[ -f $1 && -r $1 ]] || refuse "--hostfile needs a file that can be read, not '$1'."
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%$'\r'}
        line=${line%%#*}
        if [[ $line =~ ^[[:space:]]*($_name)(:($_count))?[[:space:]]*$ ]]; then
            add_host "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]:-1}"
        elif [[ $line =~ ^[[:space:]]*($_name)[[:space:]]+slots[[:space:]]*=[[:space:]]*($_count)[[:space:]]*$ ]]; then
            add_host "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
        elif [[ ! $line =~ ^[[:space:]]*$ ]]; then
            refuse "$1, line $number: '$line' is neither NAME slots=WORKERS nor NAME:WORKERS nor NAME."
        fi
    done <"$1"
    ((${#hosts[@]})) || refuse "$1 names no host."
}

slots_of() { # slots_of <NAME:WORKERS ...>: how many workers they take
    local host total=0
    for host in "$@"; do
        total=$((total + ${host##*:}))
    done
    echo "$total"
}
