"""Reading mini-batches before they are wanted, in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ddp_gd.batching.batches import Batch

BYTES_AHEAD = 8 * 2**20  # two mini-batches may be read ahead whatever they hold, others up to this


class ReadAhead:
    """Gives what `read` returns for the places `first`, `first + every`, ..., in this order.

    Its threads end with the process, whatever they wait for.

    Args:
        read: returns a mini-batch, None after the last one, or raises.
        first: the first place.
        stop: the first one that is not read.
        every: the distance of places.
        threads: how many are read at once.
        ahead: how many may be read before they are wanted.
    """

    def __init__(
        self,
        read: Callable[[int], Batch | None],
        first: int,
        stop: int,
        every: int = 1,
        threads: int = 1,
        ahead: int = 2,
    ):
        self._read, self._stop, self._every, self._ahead = read, stop, every, max(ahead, 1)
        self._next = self._wanted = first
        self._found: dict[int, Batch | BaseException | None] = {}
        self._bytes = 0
        self._over = False
        self._changed = threading.Condition()
        for _ in range(threads):
            threading.Thread(target=self._run, name="ddp_gd_reader", daemon=True).start()

    def take(self, place: int) -> Batch | None:
        """Wait for the mini-batch at the next place; None where the data have ended.

        Raises:
            BaseException: what reading it raised.
        """
        with self._changed:
            assert place == self._wanted
            self._changed.wait_for(lambda: place in self._found or self._over)
            found = self._found.pop(place, None)
            if isinstance(found, BaseException):
                raise found
            if found is not None:
                self._wanted += self._every
                self._bytes -= found.nbytes
                self._changed.notify_all()
            else:
                self._found[place] = None  # so it is if asked again
            return found

    def ready(self, place: int) -> Batch | None:
        """The mini-batch at the next place if it is there, to be looked at."""
        with self._changed:
            found = self._found.get(place)
            return found if isinstance(found, Batch) else None

    def close(self) -> None:
        """Read no more; whoever waits is told that the data have ended."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._has_room())
                if self._over:
                    return
                place = self._next
                self._next += self._every
            try:
                found: Batch | BaseException | None = self._read(place)
            except BaseException as error:
                found = error
            with self._changed:
                self._found[place] = found
                self._bytes += found.nbytes if isinstance(found, Batch) else 0
                self._changed.notify_all()
                if not isinstance(found, Batch):
                    return  # nothing comes after it

    def _has_room(self) -> bool:
        if self._next >= self._stop:
            return False
        count = (self._next - self._wanted) // self._every
        return count < min(self._ahead, 2) or (count < self._ahead and self._bytes < BYTES_AHEAD)
