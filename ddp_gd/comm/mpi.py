"""MPI through mpi4py's buffer calls (the upper-case ones: nothing is pickled), on host memory."""

import atexit
import copy
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import mpi4py
import numpy as np
import tensorflow as tf
from mpi4py import MPI

from ddp_gd.comm import board
from ddp_gd.comm.attendance import Attendance
from ddp_gd.comm.base import Board, Tensor
from ddp_gd.comm.tensors import MOVE_DTYPES, SUM_DTYPES, ProgramOrder, as_flat_buffers, as_movable
from ddp_gd.errors import LaunchError

if not hasattr(mpi4py, "MPI"):
    mpi4py.rc.initialize = False  # not at the import: `_start` does

_MAX_COUNT = 2**31 - 1  # MPI 3 counts in C ints
_SECONDS_BETWEEN_LOOKS = 3e-4


class MpiCommunicator:
    """The `Communicator` of a job whose workers talk through mpi4py."""

    name = "mpi"

    def __init__(self) -> None:
        if not MPI.Is_initialized():
            _start()
        if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
            # TensorFlow runs Python inside graphs on whichever thread is free.
            raise LaunchError(
                f"MPI was started with thread level {MPI.Query_thread()}, but calls come from "
                f"several threads: at least MPI_THREAD_SERIALIZED ({MPI.THREAD_SERIALIZED}) is "
                "needed. Leave mpi4py.rc.thread_level at its default, or use an MPI built with "
                "thread support."
            )
        # Copies, so that MPI calls of the user's own can never meet ours.
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        host = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank: int = host.Get_rank()
        self.local_size: int = host.Get_size()
        host.Free()
        self.attendance = Attendance()
        self._order = ProgramOrder(self.attendance)
        self._lock = threading.Lock()
        self._polls = False
        self._other: MpiCommunicator | None = None

    def allreduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum each tensor over all workers; one MPI call for each dtype on the wire."""

        def add(flat: np.ndarray) -> np.ndarray:
            total = np.empty_like(flat)
            self._mpi("Allreduce", _checked(flat), total)
            return total

        return as_flat_buffers(tensors, SUM_DTYPES, lambda *flats: self._each(add, flats))

    def allgather(self, tensor: Tensor) -> Tensor:
        """Concatenate every worker's tensor along axis 0, in the order of ranks."""

        def gather(rows: np.ndarray) -> np.ndarray:
            counts = np.empty(self.size, np.int64)  # rows of each worker
            self._mpi("Allgather", np.array([len(rows)], np.int64), counts)
            everything = np.empty((counts.sum(), *rows.shape[1:]), rows.dtype)
            width = int(np.prod(rows.shape[1:]))
            self._mpi("Allgatherv", rows, [_checked(everything), counts * width])
            return everything

        return as_movable(tensor, lambda rows: self._call(gather, rows))

    def alltoall(self, tensor: Tensor, splits: Tensor) -> Tensor:
        """Send `splits[r]` rows to each rank r; concatenate what arrives, in the order of ranks."""

        def trade(rows: np.ndarray, send: np.ndarray) -> np.ndarray:
            if send.shape != (self.size,) or send.sum() != len(rows):
                raise ValueError(
                    f"splits {send.tolist()} do not cut {len(rows)} rows for {self.size} workers"
                )
            send = send.astype(np.int64)
            receive = np.empty(self.size, np.int64)
            self._mpi("Alltoall", send, receive)
            arrived = np.empty((receive.sum(), *rows.shape[1:]), rows.dtype)
            width = int(np.prod(rows.shape[1:]))
            self._mpi(
                "Alltoallv", [_checked(rows), send * width], [_checked(arrived), receive * width]
            )
            return arrived

        splits = tf.cast(splits, tf.int32)
        return as_movable(tensor, lambda rows: self._call(trade, rows, splits))

    def broadcast(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return rank 0's tensors on every worker; one MPI call for each dtype on the wire."""

        def send(flat: np.ndarray) -> np.ndarray:
            buffer = flat.copy()  # TensorFlow's memory is not ours to write
            self._mpi("Bcast", _checked(buffer))
            return buffer

        return as_flat_buffers(tensors, MOVE_DTYPES, lambda *flats: self._each(send, flats))

    def barrier(self) -> None:
        """Return only when every worker has called it."""
        with self.attendance.join(), self._lock:
            self._comm.Barrier()

    def abort(self, code: int = 1) -> None:
        """End every process of the job through MPI_Abort."""
        sys.stdout.flush()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(code)

    def beside(self) -> "MpiCommunicator | None":
        """The same workers again, on a copy of MPI's communicator."""
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            return None
        if self._other is not None:
            return self._other
        self._other = other = copy.copy(self)
        other._comm = self._comm.Dup()
        other.attendance = Attendance()
        other._order = ProgramOrder(other.attendance)
        other._lock = threading.Lock()
        other._polls = True
        return other

    def measure(self, deterministic: bool = False) -> Callable[[], float]:
        """Measure the collectives of the graphs traced from now on."""
        return self._order.measure(deterministic)

    def open_board(self, message: Sequence[int]) -> Board | None:
        """Open a board over MPI."""
        return board.open_board(message)

    def _mpi(self, name: str, *buffers: Any) -> None:
        """Call MPI. Its own waiting takes a core, which beside the step the step needs."""
        if not self._polls:
            getattr(self._comm, name)(*buffers)
            return
        request = getattr(self._comm, f"I{name.lower()}")(*buffers)
        while not request.Test():
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _each(
        self, function: Callable[[np.ndarray], np.ndarray], tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        return [self._call(function, tensor) for tensor in tensors]

    def _call(self, function: Callable[..., np.ndarray], *tensors: Tensor) -> Tensor:
        """Run `function` on the tensors' memory in its turn; the result has the first's dtype."""

        def locked(*arrays: np.ndarray) -> np.ndarray:
            with self._lock:
                return function(*arrays)

        def collective(*inputs: Tensor) -> list[Tensor]:
            with tf.device("/cpu:0"):
                return [tf.numpy_function(locked, inputs, inputs[0].dtype)]

        return self._order.run(collective, *tensors)[0]


def _start() -> None:
    """Start MPI as mpi4py does, but let other threads of Python run meanwhile.

    It returns when all workers have come, and the thread that limits the wait must run till then.
    `MPI.Init_thread` holds Python's lock (mpi4py 4.1), what is called through ctypes doesn't.
    """
    provided = ctypes.c_int()
    library = ctypes.CDLL(MPI.__file__)  # finds what that is linked with, whichever MPI it is
    error = library.MPI_Init_thread(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(provided))
    if error != MPI.SUCCESS:
        raise LaunchError(f"MPI_Init_thread returned the error {error}")
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        comm.Set_errhandler(MPI.ERRORS_RETURN)  # an error of the user's calls is an exception
    atexit.register(_end)


def _end() -> None:
    if not MPI.Is_finalized():
        MPI.Finalize()


def _checked(buffer: np.ndarray) -> np.ndarray:
    if buffer.size > _MAX_COUNT:
        raise ValueError(
            f"one MPI call cannot move {buffer.size} values, at most {_MAX_COUNT}: "
            "use the Horovod backend or a smaller model"
        )
    return buffer
