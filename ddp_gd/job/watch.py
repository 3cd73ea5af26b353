"""Watching the other workers: one that fails, dies, leaves or hangs ends the job, by name and soon.

A worker that is missing leaves the others waiting in their next collective for ever. Each worker
therefore posts four times a second how far it is (`comm/attendance.py`), from a thread of its own,
and looks at what the others posted. The job ends where it is certain that it can't go on:

- a worker announced that it fails, with an exception;
- the process of a worker on the same host is gone;
- a worker came to the end of its program, and another one is in a collective that it never joined;
- a worker has said nothing for `DDP_GD_STALL_SECONDS` (stopped, or its host or network is lost),
  while another one waits in a collective; ten times as long if its process can be seen to run;
- a worker is alive and has not come to a collective for ten times as long: an endless loop, or a
  callback or a compilation slower than that;
- the launcher is gone.

Not seen: a worker that computes for ever inside a step, since a long step looks the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ddp_gd.comm.base import Board, Communicator
from ddp_gd.job import procfs

TICK = 0.25  # seconds between two looks
PATIENCE = 10  # limits that a worker which answers may take to come to a collective
_RUNNING, _ENDED, _FAILING, _SPEAKING = range(4)


class Report(NamedTuple):
    """What a worker says of itself."""

    state: int = _RUNNING
    process: int = 0
    began: int = 0  # when the process did, since process numbers are used again
    done: int = 0  # as in `Attendance`
    joining: int = 0


def introduction() -> Report:
    """What this worker says before it has done anything."""
    mine = procfs.status(os.getpid())
    return Report(process=os.getpid(), began=mine.began if mine else 0)


class Watch:
    """One worker's eye on the others.

    Args:
        communicator: the workers.
        board: how reports travel.
        limit: seconds after which a silent worker counts as lost; 0 for never.
        end: ends this process at once; other workers, and the launcher, notice.
    """

    def __init__(
        self,
        communicator: Communicator,
        board: Board,
        limit: float,
        end: Callable[[int], object] = os._exit,
    ):
        self._communicator = communicator
        self._rank = communicator.rank
        self._attendance = communicator.attendance
        self._board = board
        self._limit = limit
        self._end = end
        self._state = _RUNNING
        mine = introduction()
        self._process, self._began = mine.process, mine.began
        self._launcher = os.getppid()
        others = [r for r in range(communicator.size) if r != communicator.rank]
        now = time.monotonic()
        self._reports = {rank: Report(*board.first[rank]) for rank in others}
        self._heard = dict.fromkeys(others, now)  # when each one posted last
        self._changed = dict.fromkeys(others, now)  # when it posted something new
        # Those whose process can be seen from here: its number on another host says nothing.
        self._neighbours = {
            rank for rank, report in self._reports.items() if report.began and _is_that_of(report)
        }
        self._doubt = 0  # looks in a row at which some worker had left too early
        self._warned: set[int] = set()
        self._looked = now
        self._quiet_until = now
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ddp_gd_watch", daemon=True)

    def start(self) -> None:
        """Watch, until `leave`."""
        self._thread.start()

    def leave(self) -> None:
        """Return when every worker has come to the end of its program; the watch is then over."""
        if os.getpid() != self._process:
            return  # a child that the program forked off
        self._state = _ENDED
        while True:
            self._look()
            with self._lock:
                ended = all(report.state == _ENDED for report in self._reports.values())
                if ended and self._board.is_sent():
                    break
            time.sleep(TICK / 10)
        self._left.set()
        self._thread.join()
        # The first worker to go on lets Horovod end MPI on all of them: none may be using it.
        self._communicator.barrier()

    def fail(self) -> bool:
        """Announce that this worker fails. Tell whether it's the one that should say why.

        The lowest rank of those that fail at about the same time is, often of the same error; none
        is where another one's death may be the reason.
        """
        with self._lock:
            if self._gone():
                return False
            self._state = _FAILING
        until = time.monotonic() + (3 if self._rank > 0 else 1) * TICK
        while time.monotonic() < until:
            with self._lock:
                self._board.post(self._report())
                self._read()
                failing = [rank for rank in self._in(_FAILING) if rank < self._rank]
                if failing or self._in(_SPEAKING):
                    return False
            time.sleep(TICK / 25)
        with self._lock:
            self._state = _SPEAKING
            self._board.post(self._report())
        return True

    def _run(self) -> None:
        while not self._left.wait(TICK):
            self._look()

    def _look(self) -> None:
        """Post, read, and end the job if it can't go on."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > 4 * TICK:
                # This worker was itself stopped, or had no core: nobody else is to blame for that.
                missed = now - self._looked - TICK
                self._heard = {rank: heard + missed for rank, heard in self._heard.items()}
                self._changed = {rank: then + missed for rank, then in self._changed.items()}
                # It may be the one that the others ended the job for, and be about to be killed.
                self._quiet_until = now + 8 * TICK
            self._looked = now
            gone = self._gone()  # before reading: a last message may be there
            self._board.post(self._report())
            self._read()
            if self._state in (_FAILING, _SPEAKING):
                return
            if self._in(_SPEAKING):
                time.sleep(2 * TICK)  # it says why
                self._end(1)
            gone = {rank for rank in gone if self._reports[rank].state == _RUNNING}
            if gone and now >= self._quiet_until:
                what = "has died; the launcher tells of what"
                self._stop(min(gone), what, gone, self._neighbours)
            if os.getppid() != self._launcher:
                self._say("the launcher of this job is gone")
                self._end(1)
            self._look_at_attendance(now)

    def _look_at_attendance(self, now: float) -> None:
        mine = self._attendance
        waits = mine.joining > mine.done
        early = [
            rank
            for rank, report in self._reports.items()
            if waits and report.state == _ENDED and report.done < mine.joining
        ]
        # Often, because this worker may just be returning from a collective that all were in.
        self._doubt = self._doubt + 1 if early else 0
        if self._doubt > 4:
            self._stop(early[0], f"ended its program, but rank {self._rank} waits for it", early)
        if not self._limit or not (waits or self._state == _ENDED):
            return
        silent = {
            rank: now - heard
            for rank, heard in self._heard.items()
            if now - heard > self._limit * (PATIENCE if self._is_running(rank) else 1)
        }
        if silent:
            rank = min(silent)
            self._stop(rank, f"has not answered for {silent[rank]:.0f} s", silent, hang=True)
        if not waits:
            return
        for rank, report in self._reports.items():
            away = now - self._changed[rank]
            if report.joining > report.done or report.state == _ENDED or away < self._limit:
                continue
            if now - self._heard[rank] > 5 * TICK:  # silent, but not long enough
                continue
            text = f"has not come to a collective for {away:.0f} s, though its process answers"
            if away > PATIENCE * self._limit:
                self._stop(rank, text, [rank], hang=True)
            if rank not in self._warned and self._speaks([rank], self._waiting()):
                self._warned.add(rank)
                self._say(f"{self._name(rank)} {text}; all wait for it in {mine.where}", "warning")

    def _stop(
        self,
        rank: int,
        what: str,
        missing: Iterable[int],
        seen_by: Iterable[int] | None = None,
        hang: bool = False,
    ) -> None:
        """End the job because of `rank`; the first of those who see it says so.

        Args:
            rank: the one to blame.
            what: happened to it.
            missing: those of whom the same is true.
            seen_by: others that see it; by default those that are waiting, too.
            hang: whether their processes go on, and are to be ended.
        """
        if self._speaks(missing, self._waiting() if seen_by is None else seen_by):
            self._state = _SPEAKING  # whoever is blamed, or wakes up, shall not blame this worker
            self._board.post(self._report())
            if not hang:
                time.sleep(2 * TICK)  # the launcher sees a death first, and tells of the right one
            where = self._attendance.where
            self._say(
                f"{self._name(rank)} {what}, in {where}. This ends the job. Go on from its last "
                "checkpoint."
            )
            if hang:
                self._kill(missing)
                time.sleep(TICK)  # the launcher sees that first, too
        else:
            time.sleep(6 * TICK)
        self._end(1)

    def _kill(self, ranks: Iterable[int]) -> None:
        """End those of this host: the launcher alone takes up to two seconds more for it."""
        for rank in self._neighbours.intersection(ranks):
            if _is_that_of(self._reports[rank]):
                with contextlib.suppress(OSError):
                    os.kill(self._reports[rank].process, signal.SIGKILL)

    def _speaks(self, missing: Iterable[int], seen_by: Iterable[int]) -> bool:
        """Tell whether this is the first of the workers that see what is wrong."""
        return min({self._rank, *seen_by} - set(missing)) == self._rank

    def _waiting(self) -> list[int]:
        """The others that wait for somebody."""
        return [
            rank
            for rank, report in self._reports.items()
            if report.joining > report.done or report.state == _ENDED
        ]

    def _name(self, rank: int) -> str:
        report = self._reports[rank]
        return f"rank {rank} (process {report.process} on {self._board.hosts[rank]})"

    def _say(self, text: str, kind: str = "error") -> None:
        with contextlib.suppress(OSError, ValueError):  # the launcher, and its pipes, may be gone
            sys.stdout.flush()
            sys.stderr.write(f"ddp_gd: {kind}: {text}\n")  # in one piece
            sys.stderr.flush()

    def _report(self) -> Report:
        mine = self._attendance
        return Report(self._state, self._process, self._began, mine.done, mine.joining)

    def _read(self) -> None:
        now = time.monotonic() - TICK  # they were posted since the last look
        for rank, message in self._board.read().items():
            report = Report(*message)
            self._heard[rank] = now
            if report != self._reports[rank]:
                self._changed[rank] = now
                self._warned.discard(rank)
            self._reports[rank] = report

    def _in(self, state: int) -> list[int]:
        return [rank for rank, report in self._reports.items() if report.state == state]

    def _gone(self) -> set[int]:
        """The workers whose process could be seen from here, and is there no more."""
        return {rank for rank in self._neighbours if _is_that_of(self._reports[rank]) is False}

    def _is_running(self, rank: int) -> bool:
        """Whether the worker is seen to be at work, or to sleep; not so where it was stopped.

        One call of a library may keep Python from running anything else for minutes.
        """
        theirs = procfs.status(self._reports[rank].process) or procfs.GONE
        return rank in self._neighbours and theirs.state not in "TtX"


def _is_that_of(report: Report) -> bool | None:
    """Whether the process of that number, on this host, is the one that reports; None: unknown."""
    theirs = procfs.status(report.process)
    return None if theirs is None else theirs.began == report.began
