"""The process-wide state of a job: communicator, threads, and how a failure ends every worker."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ddp_gd import cores, gpus, starting
from ddp_gd.comm import Communicator, open_communicator
from ddp_gd.comm.environment import Launch, launch
from ddp_gd.errors import ConfigError, DdpGdError, MismatchError, exit_status
from ddp_gd.watch import PATIENCE, Watch, introduction, stall_seconds

_DIFFERENCES = 8  # so many are named


@dataclass(frozen=True)
class _Job:
    communicator: Communicator
    backend: str
    bitwise: bool


_job: _Job | None = None


def init(backend: str = "auto", bitwise: bool = False) -> None:
    """Join the job: start the collectives, set threads and GPU, let failures end every worker.

    Call it first, before any TensorFlow op: threads cannot change later. Calling it again with the
    same arguments does nothing. Every worker must run the same program with the same arguments.

    Args:
        backend: `"auto"` (Horovod when the launcher started several processes, else single),
            `"horovod"`, `"mpi"` or `"single"`.
        bitwise: make results equal bit for bit at any number of workers.

    Raises:
        ConfigError: Keras does not run on TensorFlow; or `init` was called before with other
            arguments; or `bitwise` comes after TensorFlow's first op, or with GPUs; or a host has
            fewer GPUs than workers.
        LaunchError: the workers do not find each other.
        MismatchError: a worker runs another program, arguments or versions than rank 0.
    """
    global _job
    if _job is not None:
        if (backend, bitwise) != (_job.backend, _job.bitwise):
            raise ConfigError(
                f"ddp_gd.init(backend={backend!r}, bitwise={bitwise}) comes after "
                f"init(backend={_job.backend!r}, bitwise={_job.bitwise}): one process has one job. "
                "Call init once, before everything else in ddp_gd."
            )
        return
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()!r}; ddp_gd needs TensorFlow. Set "
            "KERAS_BACKEND=tensorflow in the environment before Keras is imported."
        )
    started = launch()
    if started.size > 1:
        # Until the backend is up its launcher ends the other workers when one exits with an error.
        _end_job_on_exception(started.rank, functools.partial(_wait_for_lower, started), os._exit)
    limit = stall_seconds()
    with starting.limit(PATIENCE * limit if started.size > 1 else 0):
        communicator = open_communicator(backend)
        board = communicator.open_board(introduction())
    if communicator.size > 1:
        speaks: Callable[[], bool] = functools.partial(_wait_for_lower, communicator)
        if board is not None:
            watch = Watch(communicator, board, limit)
            watch.start()
            atexit.register(watch.leave)
            speaks = watch.fail
        elif communicator.rank == 0:
            sys.stderr.write(
                "ddp_gd: warning: the workers can't watch each other: that needs an MPI with "
                "MPI_THREAD_MULTIPLE. One that hangs or leaves may leave the others waiting.\n"
            )
        _end_job_on_exception(communicator.rank, speaks, communicator.abort)
    # Opening it ran no TensorFlow op; agreeing does.
    gpus.take_one(communicator.local_rank, communicator.local_size, bitwise)
    (_set_bitwise if bitwise else _set_default_threads)(communicator)
    agree(communicator, _program_facts(backend, bitwise))
    _job = _Job(communicator, backend, bitwise)


def communicator() -> Communicator:
    """Return the job's communicator, after `init()` if that was not called."""
    if _job is None:
        init()
    assert _job is not None
    return _job.communicator


def rank() -> int:
    """Return this worker's number, 0 to `size() - 1`."""
    return communicator().rank


def size() -> int:
    """Return how many workers there are."""
    return communicator().size


def local_rank() -> int:
    """Return this worker's number among those of the same host."""
    return communicator().local_rank


def is_bitwise() -> bool:
    """Return whether results shall be equal bit for bit at any number of workers."""
    communicator()
    return _job is not None and _job.bitwise


def intra_op_threads() -> int:
    """Return on how many threads TensorFlow computes one operation in this process."""
    return tf.config.threading.get_intra_op_parallelism_threads() or _threads_of("INTRAOP")


def inter_op_threads() -> int:
    """Return how many operations TensorFlow runs at once in this process."""
    return tf.config.threading.get_inter_op_parallelism_threads() or _threads_of("INTEROP")


def _threads_of(kind: str) -> int:
    variable = os.environ.get(f"TF_NUM_{kind}_THREADS", "")
    return (int(variable) if variable.isdigit() else 0) or (os.cpu_count() or 1)


def gather_json(communicator: Communicator, value: Any) -> list[Any]:
    """Return every worker's value, in the order of ranks. Collective; anything JSON can hold."""
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = communicator.allgather(np.array([len(mine)], np.int64)).numpy()
    everyone = communicator.allgather(mine).numpy().tobytes()
    ends = np.cumsum(lengths)
    return [json.loads(everyone[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def agree(communicator: Communicator, facts: Mapping[str, str]) -> None:
    """Stop every worker where one was given something other than rank 0. Collective.

    Args:
        communicator: the workers that have to agree.
        facts: what must be the same on all of them, by name.

    Raises:
        MismatchError: on every worker, with one text: who differs, in what, and both values.
    """
    everyone = gather_json(communicator, dict(facts))
    differences = []
    for key in sorted({key for theirs in everyone for key in theirs}):
        expected = everyone[0].get(key)
        others: dict[str | None, list[int]] = {}
        for number, theirs in enumerate(everyone):
            if theirs.get(key) != expected:
                others.setdefault(theirs.get(key), []).append(number)
        for value, ranks in others.items():
            who = f"rank{'s' * (len(ranks) > 1)} {_shorten(', '.join(map(str, ranks)))}"
            differences.append(f"{key}: rank 0 has {_quote(expected)}, {who} {_quote(value)}")
    if differences:
        if len(differences) > _DIFFERENCES:
            differences[_DIFFERENCES:] = [f"and {len(differences) - _DIFFERENCES} more"]
        raise MismatchError(
            f"the workers were not given the same. {'; '.join(differences)}. "
            "Start every worker with the same program, arguments, data and versions."
        )


def _quote(value: str | None) -> str:
    return "nothing" if value is None else _shorten(repr(value))


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _program_facts(backend: str, bitwise: bool) -> dict[str, str]:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("-")
    try:
        content = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    except OSError:  # python -c, or typed in
        content = "not a file"
    return {
        # Not the folder: hosts may keep the same program in different places.
        "program": f"{script.name} (sha256 {content})",
        "arguments": json.dumps(sys.argv[1:]),
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("ddp_gd", "tensorflow", "keras", "numpy")},
        "ddp_gd.init": f"backend={backend!r}, bitwise={bitwise}",
    }


# Threads


def _set_default_threads(communicator: Communicator) -> None:
    """Give this worker's TensorFlow the cores it has, unless the user chose or it is too late."""
    threads = cores.for_worker(communicator.local_size)
    config = tf.config.threading
    try:
        if not (config.get_intra_op_parallelism_threads() or _user_set("INTRAOP")):
            config.set_intra_op_parallelism_threads(threads)
        if not (config.get_inter_op_parallelism_threads() or _user_set("INTEROP")):
            config.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        pass  # TensorFlow runs already; the threads cost some speed, nothing else


def _set_bitwise(communicator: Communicator) -> None:
    """Fix what changes the bits of a micro-batch or of a sum.

    Raises:
        ConfigError: TensorFlow runs already, so its threads are what they are.
    """
    config = tf.config.threading
    try:
        config.set_intra_op_parallelism_threads(1)
        # Several micro-batches at once: that changes no bits.
        if not (config.get_inter_op_parallelism_threads() or _user_set("INTEROP")):
            config.set_inter_op_parallelism_threads(cores.for_worker(communicator.local_size))
    except RuntimeError:
        raise ConfigError(
            "bitwise=True fixes TensorFlow's threads, but TensorFlow has started already: "
            "call ddp_gd.init() before any TensorFlow op."
        ) from None
    # It would re-order trees of additions, in one graph so and in the next one otherwise.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    tf.config.experimental.enable_op_determinism()


def _user_set(kind: str) -> bool:
    return bool(os.environ.get(f"TF_NUM_{kind}_THREADS"))


# Failures


def _end_job_on_exception(
    rank: int, speaks: Callable[[], bool], abort: Callable[[int], object]
) -> None:
    """Let an exception that nobody catches on any worker end the job, and be shown once.

    A worker that just died would leave the others waiting in their next collective for ever.
    `SystemExit` does not come here; a worker that leaves alone is noticed by the others (watch.py).

    Args:
        rank: this worker's.
        speaks: tells whether this worker should show its exception, or another one shows the same.
        abort: ends the job.
    """

    def end_job(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        where = f" (rank {rank} on {socket.gethostname()})"
        if isinstance(error, DdpGdError) and os.environ.get("DDP_GD_TRACEBACK") != "1":
            # Of what is wrong on all of them rank 0 speaks: no worker is to blame.
            text = f"ddp_gd: error{where if rank > 0 else ''}: {error}\n"
        else:
            lines = "".join(traceback.format_exception(kind, error, trace))
            text = f"ddp_gd: this ended the job{where}:\n{lines}"
        try:
            if speaks():
                sys.stdout.flush()
                sys.stderr.write(text)  # in one piece: other workers write too
                sys.stderr.flush()
            else:
                time.sleep(3)  # the launcher ends this worker, too
        finally:
            abort(exit_status(error))

    sys.excepthook = end_job


def _wait_for_lower(place: Launch | Communicator) -> bool:
    """Give lower ranks the time to show the same error, and end us while we sleep."""
    if place.rank > 0:
        time.sleep(1 + place.rank / place.size)
    return True
