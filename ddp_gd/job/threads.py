"""How many cores a worker may keep busy: its own, or its part of those that workers share."""

import os

import tensorflow as tf

from ddp_gd.job import procfs


def for_worker(local_size: int) -> int:
    """Return how many threads suit one of the `local_size` workers of this host; at least 1.

    Args:
        local_size: workers on this host, in the same container if they are in one.
    """
    return max(1, int(min(_by_affinity(local_size), procfs.cores_limit() / local_size)))


def _by_affinity(local_size: int) -> int:
    own = os.sched_getaffinity(0)
    try:
        # A launcher's workers of this host are its children, pinned to cores or not.
        sets = [os.sched_getaffinity(process) for process in procfs.children(os.getppid())]
    except OSError:
        sets = []
    if len(sets) >= local_size:  # mpirun's own host: its connections to others are children, too
        return len(own) // min(local_size, sets.count(own))
    return min(len(own), (os.cpu_count() or 1) // local_size)


def intra_op_threads() -> int:
    """Return on how many threads TensorFlow computes one operation in this process."""
    return tf.config.threading.get_intra_op_parallelism_threads() or _threads_of("INTRAOP")


def inter_op_threads() -> int:
    """Return how many operations TensorFlow runs at once in this process."""
    return tf.config.threading.get_inter_op_parallelism_threads() or _threads_of("INTEROP")


def _threads_of(kind: str) -> int:
    chosen = os.environ.get(f"TF_NUM_{kind}_THREADS", "")
    return (int(chosen) if chosen.isdigit() else 0) or (os.cpu_count() or 1)


def set_for_worker(local_size: int, intra_op: int | None = None) -> None:
    """Let this worker's TensorFlow use the cores that it may, unless the user chose the threads.

    Args:
        local_size: workers on this host.
        intra_op: compute one operation on so many threads, whatever the user chose.

    Raises:
        RuntimeError: TensorFlow runs already, and its threads are what they are.
    """
    config = tf.config.threading
    threads = for_worker(local_size)
    if intra_op or not (
        config.get_intra_op_parallelism_threads() or os.environ.get("TF_NUM_INTRAOP_THREADS")
    ):
        config.set_intra_op_parallelism_threads(intra_op or threads)
    if not (config.get_inter_op_parallelism_threads() or os.environ.get("TF_NUM_INTEROP_THREADS")):
        config.set_inter_op_parallelism_threads(threads)
