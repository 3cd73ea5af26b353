"""One process: every collective is the identity."""

import os
import sys
from collections.abc import Callable, Sequence

import tensorflow as tf

from ddp_gd.comm.attendance import Attendance
from ddp_gd.comm.base import Tensor


class SingleCommunicator:
    """The `Communicator` of a job of one worker."""

    name = "single"
    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def __init__(self) -> None:
        self.attendance = Attendance()

    def allreduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors."""
        return [tf.convert_to_tensor(t) for t in tensors]

    def allgather(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tf.convert_to_tensor(tensor)

    def alltoall(self, tensor: Tensor, splits: Tensor) -> Tensor:
        """Return the tensor."""
        return tf.convert_to_tensor(tensor)

    def broadcast(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors."""
        return [tf.convert_to_tensor(t) for t in tensors]

    def barrier(self) -> None:
        """Return."""

    def abort(self, code: int = 1) -> None:
        """End this process at once."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def beside(self) -> "SingleCommunicator":
        """There is nobody to wait for."""
        return self

    def measure(self, deterministic: bool = False) -> Callable[[], float]:
        """There are no collectives to wait for."""
        return lambda: 0.0

    def open_board(self, message: Sequence[int]) -> None:
        """There is nobody to send messages to."""
