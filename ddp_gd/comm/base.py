"""What a backend must offer: the `Communicator` protocol.

Every method is collective (all workers call it, in the same order) unless its text says otherwise,
and every method that takes tensors works eagerly and inside a `tf.function`, loops included.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from ddp_gd.comm.attendance import Attendance

Tensor = Any  # tf.Tensor; TensorFlow ships no types


class Board(Protocol):
    """Small messages between the workers beside the collectives, see `comm.board`."""

    hosts: list[str]
    first: list[list[int]]

    def post(self, message: Sequence[int]) -> None:
        """Send `message` to every other worker, unless the one before is still on its way."""
        ...

    def read(self) -> dict[int, list[int]]:
        """The newest message of each worker that has sent one since the last call."""
        ...

    def is_sent(self) -> bool:
        """Tell whether nothing is on its way any more."""
        ...


@runtime_checkable
class Communicator(Protocol):
    """The workers of one job, and how they exchange tensors.

    Attributes:
        name: `"single"`, `"horovod"` or `"mpi"`.
        rank: this worker's number, 0 to `size - 1`.
        size: how many workers there are.
        local_rank: this worker's number among those of the same host.
        local_size: how many workers run on this host.
        attendance: how far this worker has come with the collectives.
    """

    name: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    attendance: Attendance

    def allreduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum each tensor over all workers; every worker gets the same bits.

        Args:
            tensors: dense tensors of any numeric dtypes; shapes and dtypes equal on every worker.

        Returns:
            The sums, in the same order, shapes and dtypes.
        """
        ...

    def allgather(self, tensor: Tensor) -> Tensor:
        """Concatenate every worker's tensor along axis 0, in the order of ranks.

        The first dimensions may differ between workers (zero included), the others may not.
        """
        ...

    def alltoall(self, tensor: Tensor, splits: Tensor) -> Tensor:
        """Send consecutive slices of axis 0, one to each worker; concatenate what arrives.

        Args:
            tensor: shape (sum of `splits`, ...).
            splits: int32, shape (size,): how many rows go to each rank.

        Returns:
            The slices received, in the order of the ranks that sent them.
        """
        ...

    def broadcast(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return rank 0's tensors on every worker; shapes and dtypes equal on every worker."""
        ...

    def barrier(self) -> None:
        """Return only when every worker has called it. Not for use inside a `tf.function`."""
        ...

    def abort(self, code: int = 1) -> None:
        """End every process of the job at once with exit status `code`. Not collective.

        Never returns. Whatever should be read must have been printed and flushed before.
        """
        ...

    def beside(self) -> "Communicator | None":
        """The same workers again, for one other thread: its collectives wait for none of these.

        Collective. They are to be called eagerly, and are not counted in `attendance`.

        Returns:
            None where there is no other way: the MPI can't be used by several threads.
        """
        ...

    def measure(self, deterministic: bool = False) -> Callable[[], float]:
        """Measure the collectives of the graphs that are traced from now on. Not collective.

        Args:
            deterministic: whether TensorFlow's operations are: its own clock isn't among them.

        Returns:
            A function: how many seconds this worker has spent in them so far, from when its own
            tensors were there to when the result was, waiting for the other workers included.
        """
        ...

    def open_board(self, message: Sequence[int]) -> Board | None:
        """Open a way to send messages of some whole numbers beside the collectives.

        Args:
            message: this worker's first one; all have as many numbers.

        Returns:
            None where there is none: one process, or no MPI that several threads may use.
        """
        ...
