"""The job that this process is a worker of: it is joined once, and asked for rank and size."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import keras

from ddp_gd.comm import agree, open_communicator
from ddp_gd.comm.base import Communicator
from ddp_gd.comm.environment import launch
from ddp_gd.errors import ConfigError
from ddp_gd.job import gpus, start_limit, threads
from ddp_gd.job.bitwise import fix_bits
from ddp_gd.job.failures import end_job_on_exception, show_briefly
from ddp_gd.job.peers import introduction
from ddp_gd.job.versions import version
from ddp_gd.job.watch import PATIENCE, Watch
from ddp_gd.loading import quietly
from ddp_gd.settings import stall_seconds

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


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
    if _job is None:
        if sys.excepthook is sys.__excepthook__:
            show_briefly()
        _job = _join(backend, bitwise)
    elif (backend, bitwise) != (_job.backend, _job.bitwise):
        raise ConfigError(
            f"ddp_gd.init(backend={backend!r}, bitwise={bitwise}) comes after "
            f"init(backend={_job.backend!r}, bitwise={_job.bitwise}): one process has one job. "
            "Call init once, before everything else in ddp_gd."
        )


def communicator() -> Communicator:
    """Return the job's communicator; join the job with `init()` first if nobody did."""
    return _joined().communicator


def collective(
    function: Callable[_Parameters, _Returned],
) -> Callable[_Parameters, _Returned]:
    """Note the exceptions that leave a function which all workers call.

    The program may catch one, and then the others, where it didn't happen, wait for this worker:
    `job.watch` ends such a job.
    """

    @functools.wraps(function)
    def called(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Returned:
        attendance = communicator().attendance
        try:
            return function(*args, **kwargs)
        except (Exception, SystemExit) as error:
            if isinstance(error, Exception):
                attendance.error = "".join(traceback.format_exception(error))
            attendance.errors += 1
            raise

    return called


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
    return _joined().bitwise


def _joined() -> _Job:
    if _job is None:
        init()
    assert _job is not None
    return _job


def _join(backend: str, bitwise: bool) -> _Job:
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()!r}; ddp_gd needs TensorFlow. Set "
            "KERAS_BACKEND=tensorflow in the environment before Keras is imported."
        )
    communicator = _meet(backend)
    # Opening it ran no TensorFlow op; agreeing does.
    with quietly():  # TensorFlow looks for GPUs
        gpus.take_one(communicator.local_rank, communicator.local_size, bitwise)
    if bitwise:
        fix_bits(communicator.local_size)
    else:
        with contextlib.suppress(RuntimeError):  # the threads cost some speed, nothing else
            threads.set_for_worker(communicator.local_size)
    agree.require_same_facts(communicator, _program_facts(backend, bitwise))
    return _Job(communicator, backend, bitwise)


def _meet(backend: str) -> Communicator:
    """Find the other workers; from then on a failure of one of them ends all."""
    started = launch()
    if started.size > 1:
        # Until the backend is up its launcher ends the other workers when one exits with an error.
        end_job_on_exception(started.rank, started.size, os._exit)
    limit = stall_seconds()
    with start_limit.limit(PATIENCE * limit if started.size > 1 else 0):
        communicator = open_communicator(backend)
        board = communicator.open_board(introduction())
    if communicator.size > 1:
        speaks = None
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
        end_job_on_exception(communicator.rank, communicator.size, communicator.abort, speaks)
    return communicator


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
        **{name: version(name) for name in ("ddp_gd", "tensorflow", "keras", "numpy")},
        "ddp_gd.init": f"backend={backend!r}, bitwise={bitwise}",
    }
