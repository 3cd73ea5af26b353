"""A worker that checks the runtime, then fails: `runtime_worker.py BACKEND RANK|all|other-argv`."""

from __future__ import annotations

import os
import sys
import time

import tensorflow as tf

from ddp_gd.errors import ConfigError
from ddp_gd.job import runtime


def main(backend: str, failing: str) -> None:
    """Check what must hold in every job, then fail where told."""
    if failing == "other-argv" and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        sys.argv.append("--epochs=7")
    runtime.init(backend)
    comm = runtime.communicator()
    assert (runtime.rank(), runtime.size()) == (comm.rank, comm.size)
    assert runtime.local_rank() == comm.local_rank
    assert not runtime.is_bitwise()
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    assert 1 <= threads <= max(1, (os.cpu_count() or 1) // comm.size), threads

    runtime.init(backend)
    try:
        runtime.init(backend, bitwise=True)
        raise AssertionError("a second init with other arguments was accepted")
    except ConfigError:
        pass

    if failing in ("all", str(comm.rank)):
        print(f"failing at {time.time()}", flush=True)
        raise ValueError("this is the failure")
    while True:  # the others are in the middle of their training
        comm.allreduce_sum([tf.ones([3])])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
