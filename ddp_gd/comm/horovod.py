"""Horovod's raw collectives.

Only those: `DistributedOptimizer` silently reduces nothing with Keras 3. Horovod matches the
workers' tensors by op name, so every op has an explicit one; TensorFlow numbers equal names within
a graph in the order of writing, the same on every worker, and `ignore_name_scope` drops what
inlining functions and lowering loops put in front. Names may repeat between graphs, because
`ProgramOrder` never lets two collectives be on their way at once; the buffers of one are numbered.

Flat buffers of our own rather than `grouped_allreduce`: 10 to 30 % faster at 2 workers on CPUs,
since Horovod agrees on fewer names and needs no fusion buffer of its own.
"""

import copy
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from ddp_gd.comm.attendance import Attendance
from ddp_gd.comm.base import Board, Tensor
from ddp_gd.comm.tensors import MOVE_DTYPES, SUM_DTYPES, ProgramOrder, as_flat_buffers, as_movable


class HorovodCommunicator:
    """The `Communicator` of a job whose workers talk through Horovod (over MPI or Gloo)."""

    name = "horovod"

    def __init__(self) -> None:
        hvd.init()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.local_size: int = hvd.local_size()
        self.attendance = Attendance()
        self._order = ProgramOrder(self.attendance)
        self._prefix = "ddp_gd"  # of the names of its ops
        self._other: HorovodCommunicator | None = None

    def allreduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum each tensor over all workers; one Horovod op for each flat buffer."""

        def exchange(*flats: Tensor) -> list[Tensor]:
            return self._for_each(flats, hvd.allreduce, "allreduce", op=hvd.Sum)

        return as_flat_buffers(
            tensors, SUM_DTYPES, lambda *flats: self._order.run(exchange, *flats, overlapping=True)
        )

    def allgather(self, tensor: Tensor) -> Tensor:
        """Concatenate every worker's tensor along axis 0, in the order of ranks."""

        def exchange(rows: Tensor) -> list[Tensor]:
            name = f"{self._prefix}_allgather"
            return [hvd.allgather(rows, name=name, ignore_name_scope=True)]

        return as_movable(tensor, lambda rows: self._order.run(exchange, rows)[0])

    def alltoall(self, tensor: Tensor, splits: Tensor) -> Tensor:
        """Send `splits[r]` rows to each rank r; concatenate what arrives, in the order of ranks."""

        def exchange(rows: Tensor, counts: Tensor) -> list[Tensor]:
            name = f"{self._prefix}_alltoall"
            return list(hvd.alltoall(rows, splits=counts, name=name, ignore_name_scope=True))

        splits = tf.cast(splits, tf.int32)
        return as_movable(tensor, lambda rows: self._order.run(exchange, rows, splits)[0])

    def broadcast(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return rank 0's tensors on every worker; one Horovod op for each flat buffer."""

        def exchange(*flats: Tensor) -> list[Tensor]:
            return self._for_each(flats, hvd.broadcast, "broadcast", root_rank=0)

        return as_flat_buffers(
            tensors, MOVE_DTYPES, lambda *flats: self._order.run(exchange, *flats)
        )

    def barrier(self) -> None:
        """Return only when every worker has called it."""
        self.allreduce_sum([tf.zeros([1], tf.int32)])

    def abort(self, code: int = 1) -> None:
        """End this process without its exit handlers; the launcher then ends the others.

        An orderly exit would wait for the peers in MPI_Finalize, and they wait for us.
        """
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def beside(self) -> "HorovodCommunicator":
        """The same workers again: Horovod asks all of them what is ready, by the ops' names.

        They are run as graphs: an eager op has the name of the first one that was like it.
        """
        if self._other is None:
            self._other = other = copy.copy(self)
            other.attendance = Attendance()
            other._order = ProgramOrder(other.attendance)
            other._prefix = "ddp_gd_beside"
            for name in ("allreduce_sum", "allgather", "alltoall", "broadcast"):
                vars(other)[name] = _as_graphs(getattr(other, name))
        return self._other

    def measure(self, deterministic: bool = False) -> Callable[[], float]:
        """Measure the collectives of the graphs traced from now on."""
        return self._order.measure(deterministic)

    def open_board(self, message: Sequence[int]) -> Board | None:
        """Open a board over the MPI that Horovod uses; None where it uses Gloo."""
        if not hvd.mpi_enabled():
            return None
        from ddp_gd.comm import board  # not above: mpi4py would start an MPI nobody asked for

        return board.open_board(message)

    def _for_each(
        self, flats: Sequence[Tensor], collective: Callable[..., Tensor], kind: str, **options: Any
    ) -> list[Tensor]:
        names = [
            f"{self._prefix}_{kind}_{flat.dtype.name}_{number}" for number, flat in enumerate(flats)
        ]
        return [
            collective(flat, name=unique, ignore_name_scope=True, **options)
            for flat, unique in zip(flats, names, strict=True)
        ]


def _as_graphs(collective: Callable[..., Any]) -> Callable[..., Any]:
    """The collective as graphs, one for each dtype and rank; the lengths of axes are left open."""
    graphs: dict[Any, Any] = {}

    def call(*arguments: Any) -> Any:
        arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)
        kinds = tuple((t.dtype, t.shape.rank) for t in tf.nest.flatten(arguments))
        if kinds not in graphs:
            graphs[kinds] = tf.function(collective, autograph=False, reduce_retracing=True)
        return graphs[kinds](*arguments)

    return call
