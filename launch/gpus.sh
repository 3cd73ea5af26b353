# shellcheck shell=sh
# How many GPUs a host's workers can have. multi_gpu.sh sources it; preflight.py sends it to each host.

count_gpus() { # those that the driver lists, and CUDA_VISIBLE_DEVICES leaves
    listed=$(nvidia-smi --list-gpus </dev/null 2>/dev/null | grep -c '^GPU ' || true)
    if [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
        echo "$listed"
        return
    fi
    printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr , '\n' | while read -r name; do
        case $name in
            GPU-* | MIG-*) ;;
            '' | *[!0-9]*) break ;; # CUDA stops at the first that does not exist
            *) [ "$name" -lt "$listed" ] 2>/dev/null || break ;;
        esac
        echo "$name"
    done | grep -c . || true
}
