"""What the workers tell each other beside the collectives: small messages that nobody waits for."""

import socket
from collections.abc import Sequence

import mpi4py
import numpy as np
from mpi4py import MPI

if not hasattr(mpi4py, "MPI"):
    # Horovod has started MPI; if that was another MPI than mpi4py's, this one shall stay as it is.
    mpi4py.rc.initialize = False

_HOST_BYTES = 64


class MpiBoard:
    """Messages of a fixed number of whole numbers, over a communicator of their own.

    Collective to open. Needs MPI_THREAD_MULTIPLE, because they go on while another thread waits in
    a collective.

    Args:
        message: this worker's first one; all have as many numbers.

    Attributes:
        hosts: the name of each worker's host.
        first: the first message of each worker.
    """

    def __init__(self, message: Sequence[int]):
        self._comm = MPI.COMM_WORLD.Dup()
        self._length = len(message)
        self._others = [r for r in range(self._comm.Get_size()) if r != self._comm.Get_rank()]
        # What is on its way to each worker: a buffer must live until it has been sent.
        self._sending: dict[int, tuple[MPI.Request, np.ndarray]] = {}
        mine = np.zeros(_HOST_BYTES, np.uint8)
        name = socket.gethostname().encode()[:_HOST_BYTES]
        mine[: len(name)] = np.frombuffer(name, np.uint8)
        everyone = np.empty((self._comm.Get_size(), _HOST_BYTES), np.uint8)
        self._comm.Allgather(mine, everyone)
        self.hosts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everyone]
        first = np.empty((self._comm.Get_size(), self._length), np.int64)
        self._comm.Allgather(np.array(message, np.int64), first)
        self.first = first.tolist()

    def post(self, message: Sequence[int]) -> None:
        """Send `message` to every other worker, unless the one before is still on its way."""
        for rank in self._others if not MPI.Is_finalized() else ():
            if rank not in self._sending or self._sending[rank][0].Test():
                buffer = np.array(message, np.int64)
                self._sending[rank] = self._comm.Isend(buffer, dest=rank), buffer

    def read(self) -> dict[int, list[int]]:
        """The newest message of each worker that has sent one since the last call."""
        newest = {}
        buffer = np.empty(self._length, np.int64)
        status = MPI.Status()
        while not MPI.Is_finalized() and self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            self._comm.Recv(buffer, source=status.Get_source())
            newest[status.Get_source()] = buffer.tolist()
        return newest

    def is_sent(self) -> bool:
        """Tell whether nothing is on its way any more."""
        return MPI.Is_finalized() or all(r.Test() for r, _ in self._sending.values())


def open_board(message: Sequence[int]) -> MpiBoard | None:
    """Open a board; None where MPI isn't running, or doesn't offer MPI_THREAD_MULTIPLE."""
    if not MPI.Is_initialized() or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return None
    return MpiBoard(message)
