# shellcheck shell=bash
# One job in the words of each MPI: Open MPI 4, Open MPI 5 (and what follows), MPICH. Sourced by
# cpu_mpi.sh, after lib.sh.
: "${repo_root:?}" "${mpirun:?}"

# Sets mpi to open-mpi-4, open-mpi-5 or mpich, and mpi_prefix to where it lies, if that isn't where
# a shell on another host looks by itself.
find_mpi() {
    local version major found
    found=$(command -v "$mpirun") ||
        die "there is no mpirun. bash launch/setup.sh installs one, or name it with --mpirun."
    version=$("$mpirun" --version 2>/dev/null) || version=
    case $version in
        *"Open MPI) "*)
            major=${version#*Open MPI) }
            [[ ${major%%.*} -ge 5 ]] && mpi=open-mpi-5 || mpi=open-mpi-4
            ;;
        *HYDRA*) mpi=mpich ;;
        *) die "$found is neither Open MPI nor MPICH: '${version%%$'\n'*}'. Name another with --mpirun." ;;
    esac
    mpi_prefix=$(dirname "$(dirname "$found")")
    [[ $mpirun == mpirun ]] || export_library
    [[ $mpi_prefix != /usr ]] || mpi_prefix=
}

# Tells mpi4py where the library of --mpirun is; it would load the set-up's.
export_library() {
    local folder name=libmpi.so.40
    [[ $mpi != mpich ]] || name=libmpi.so.12
    for folder in "$mpi_prefix"/{lib,lib64,lib/*-linux-gnu}; do # the last one is Debian's
        if [[ -e $folder/$name ]]; then
            set_default MPI4PY_LIBMPI "$folder/$name"
        fi
    done
    [[ -v MPI4PY_LIBMPI ]] ||
        refuse "--mpirun '$mpirun' needs its library for mpi4py: there is no $name in $mpi_prefix/lib. Name another mpirun, or the library in the variable MPI4PY_LIBMPI."
}

# What is the same at every start of the job.
#
#   $1  one host, or several
#   $2  the network between them, or ''
#   $3  the interface that was asked for, or ''
export_mpi_settings() {
    case $mpi in
        open-mpi-4)
            if [[ $1 == one ]]; then
                set_default OMPI_MCA_btl self,vader # shared memory: no worker opens a port
            else
                set_default OMPI_MCA_plm_rsh_agent "$repo_root/launch/connect.sh"
            fi
            ;;
        open-mpi-5)
            if [[ $1 == one ]]; then
                set_default OMPI_MCA_btl self,sm
            else
                set_default PRTE_MCA_plm_ssh_agent "$repo_root/launch/connect.sh"
            fi
            ;;
        mpich)
            # At the end UCX warns of workers' reports to each other that nobody needed any more.
            set_default UCX_LOG_LEVEL error
            # UCX knows the fastest way, and that may not be TCP; a choice is heeded all the same.
            [[ -z $3 ]] || set_default UCX_NET_DEVICES "$3"
            ;;
    esac
    if [[ -n $2 && $mpi != mpich ]]; then
        set_default OMPI_MCA_btl_tcp_if_include "$2"
        if [[ $mpi == open-mpi-4 ]]; then
            set_default OMPI_MCA_oob_tcp_if_include "$2"
        else
            set_default PRTE_MCA_prte_if_include "$2"
        fi
    fi
}

# Sets start to the words of the launcher in front of the program.
#
#   $1  workers
#   $2  hosts, NAME:WORKERS,...; empty for this one alone
#   $3  the network's interface; MPICH takes a name only
#   ... names of the variables that workers on other hosts get
mpirun_words() {
    local workers=$1 hosts=$2 interface=$3 name
    shift 3
    # Workers are bound to no cores. An MPI would bind two workers to one core each, whatever else
    # is free, and those of another job to the same two. Each worker counts the cores that it has
    # its part of, and takes as many threads.
    case $mpi in
        mpich) start=("$mpirun" -bind-to none -np "$workers") ;;
        open-mpi-4) start=("$mpirun" --bind-to none -np "$workers") ;;
        open-mpi-5) start=("$mpirun" --bind-to none --map-by slot:OVERSUBSCRIBE -np "$workers") ;;
    esac
    [[ -n $hosts ]] || return 0
    if [[ $mpi == mpich ]]; then
        start+=(-hosts "$hosts" -launcher ssh -launcher-exec "$repo_root/launch/connect.sh")
        [[ -z $interface ]] || start+=(-iface "$interface")
        start+=(-genvlist "$(join_by , "$@")")
    else
        [[ -z $mpi_prefix ]] || start+=(--prefix "$mpi_prefix")
        start+=(-H "$hosts")
        for name in "$@"; do
            start+=(-x "$name")
        done
    fi
}

# The same for horovodrun, which passes the whole environment and binds nothing by itself.
horovodrun_words() { # horovodrun_words <workers> <hosts> <network; empty where all is on this host>
    # It would have Open MPI put the rank before each line. This option goes through a shell.
    local mpi_words='--mca orte_tag_output 0'
    [[ -z $3 || -z $mpi_prefix ]] || mpi_words+=" --prefix $(printf %q "$mpi_prefix")"
    start=(horovodrun -np "$1" "--mpi-args=$mpi_words")
    if [[ -n $3 ]]; then
        # Without a network horovodrun finds one, by servers on all hosts; its cache of what it found
        # an hour ago is of no use here.
        start+=(-H "$2" --disable-cache --network-interfaces "$3")
    fi
}

# What TensorFlow prints in horovodrun itself, which loads it to see whether Horovod has MPI.
without_loading() {
    trap '' INT TERM USR1 # it ends when the job does
    grep --line-buffered -vE '^(WARNING: All log messages before absl::|To enable the following instructions: |[IWE][0-9]{4} [0-9:.]+ +[0-9]+ (port|cudart_stub|cpu_feature_guard|cuda_platform)\.cc:)' || true
}

join_by() { # join_by <separator> <words ...>
    local IFS=$1
    shift
    echo "$*"
}
