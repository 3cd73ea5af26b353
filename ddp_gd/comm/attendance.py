"""How far a worker has come with the collectives, for the other workers to know (`job.watch`)."""

from collections.abc import Iterator
from contextlib import contextmanager


class Attendance:
    """One worker's count of the collectives, the same on every worker that has come as far.

    A step counts as one, whatever is exchanged in it; so does a collective outside of a step.

    Attributes:
        done: how many this worker has ended.
        joining: how far it is going in what it is just doing; `done` where it is not in one.
        where: the steps that were entered last, in words.
        errors: how many exceptions left a call that all workers make, each telling in `error` what
            the last one was. The same on every worker, or else some wait for others.
    """

    def __init__(self) -> None:
        self.done = 0
        self.joining = 0
        self.where = "its beginning"
        self.errors = 0
        self.error = ""

    @contextmanager
    def join(self, count: int = 1) -> Iterator[None]:
        """Be in `count` collectives; `done` counts all of them unless the caller added its own."""
        before = self.done
        self.joining = before + count
        try:
            yield
            if self.done == before:
                self.done += count
        finally:
            self.joining = self.done
