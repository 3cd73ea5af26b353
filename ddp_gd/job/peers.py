"""The other workers: what each one says of itself, and what is seen of its process from here."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

from ddp_gd.comm.base import Board
from ddp_gd.job import procfs

TICK = 0.25  # seconds between two reports
RUNNING, ENDED, FAILING, SPEAKING = range(4)


class Report(NamedTuple):
    """What a worker says of itself."""

    state: int = RUNNING
    process: int = 0
    began: int = 0  # when the process did, since process numbers are used again
    done: int = 0  # as in `Attendance`
    joining: int = 0
    errors: int = 0

    def is_alive(self) -> bool | None:
        """Tell whether that process runs on this host; None where that is unknown."""
        status = procfs.status(self.process)
        return None if status is None else status.began == self.began


def introduction() -> Report:
    """Return what this worker says before it has done anything."""
    status = procfs.status(os.getpid())
    return Report(process=os.getpid(), began=status.began if status else 0)


class Peers:
    """The other workers of the job.

    Args:
        board: carries the reports.
        rank: this worker's number.
    """

    def __init__(self, board: Board, rank: int):
        self._board = board
        self.reports = {r: Report(*first) for r, first in enumerate(board.first) if r != rank}
        self.heard = dict.fromkeys(self.reports, time.monotonic())  # when each one posted last
        self.changed = dict(self.heard)  # when it posted something new
        # Those whose process can be seen from here: its number on another host says nothing.
        self.near = {r for r, report in self.reports.items() if report.began and report.is_alive()}

    def read(self) -> set[int]:
        """Read what has come since the last call; return who has said something new."""
        now = time.monotonic() - TICK  # it was posted since the last look
        news = set()
        for rank, message in self._board.read().items():
            report = Report(*message)
            self.heard[rank] = now
            if report != self.reports[rank]:
                self.changed[rank] = now
                news.add(rank)
            self.reports[rank] = report
        return news

    def excuse(self, seconds: float) -> None:
        """Leave so many seconds out of the time since each one was heard."""
        self.heard = {rank: then + seconds for rank, then in self.heard.items()}
        self.changed = {rank: then + seconds for rank, then in self.changed.items()}

    def saying(self, state: int) -> set[int]:
        """Return those that say they are in this state."""
        return {rank for rank, report in self.reports.items() if report.state == state}

    def with_more_errors(self, number: int) -> set[int]:
        """Return those in which more than so many exceptions ended a call of all workers."""
        return {rank for rank, report in self.reports.items() if report.errors > number}

    def with_fewer_errors(self, number: int) -> set[int]:
        """Return those in which fewer did."""
        return {rank for rank, report in self.reports.items() if report.errors < number}

    def waiting(self) -> set[int]:
        """Return those that wait for somebody."""
        joining = {rank for rank, report in self.reports.items() if report.joining > report.done}
        return joining | self.saying(ENDED)

    def gone(self) -> set[int]:
        """Return those whose process could be seen, and is there no more."""
        return {rank for rank in self.near if self.reports[rank].is_alive() is False}

    def is_at_work(self, rank: int) -> bool:
        """Tell whether the process is seen to run or to sleep, and was not stopped.

        One call of a library may keep Python from running anything else for minutes.
        """
        status = procfs.status(self.reports[rank].process) or procfs.GONE
        return rank in self.near and status.state not in "TtX"

    def kill(self, ranks: Iterable[int]) -> None:
        """End those of this host: the launcher alone takes up to two seconds more for it."""
        for rank in self.near.intersection(ranks):
            if self.reports[rank].is_alive():
                with contextlib.suppress(OSError):
                    os.kill(self.reports[rank].process, signal.SIGKILL)

    def name(self, rank: int) -> str:
        """Name a worker with its process and host."""
        return f"rank {rank} (process {self.reports[rank].process} on {self._board.hosts[rank]})"
