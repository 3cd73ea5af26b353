"""Watching the other workers: one that fails, dies, leaves or hangs ends the job, by name and soon.

A worker that is missing leaves the others waiting in their next collective for ever. Each worker
therefore posts four times a second how far it is (`comm.attendance`), from a thread of its own,
and looks at what the others posted. The job ends where it is certain that it can't go on:

- a worker announced that it fails, with an exception;
- the process of a worker on the same host is gone;
- a worker came to the end of its program, and another one is in a collective that it never joined;
- an exception left `fit` or another such call on a worker, whose program caught it, and another one
  is in a collective still;
- a worker has said nothing for `DDP_GD_STALL_SECONDS` (stopped, or its host or network is lost),
  while another one waits in a collective; ten times as long if its process can be seen to run;
- a worker is alive and has not come to a collective for ten times as long: an endless loop, or a
  callback or a compilation slower than that;
- the launcher is gone.

Not seen: a worker that computes for ever inside a step, since a long step looks the same.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable

from ddp_gd.comm.base import Board, Communicator
from ddp_gd.job import procfs
from ddp_gd.job.peers import ENDED, FAILING, RUNNING, SPEAKING, TICK, Peers, introduction

PATIENCE = 10  # limits that a worker which answers may take to come to a collective
_LOOKS = 12  # in a row: time for a program that ends with an exception to do so


class Watch:
    """One worker's eye on the others.

    Args:
        communicator: the workers.
        board: carries the reports.
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
        self._state = RUNNING
        self._introduction = introduction()
        self._launcher = os.getppid()
        self._killed_before = procfs.memory_kills()
        self._peers = Peers(board, self._rank)
        self._doubt = 0  # looks in a row at which some worker had left too early
        self._alone = 0  # and at which one was waited for that had an exception alone
        self._warned: set[int] = set()
        self._looked = self._quiet_until = time.monotonic()
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ddp_gd_watch", daemon=True)

    def start(self) -> None:
        """Watch, until `leave`."""
        self._thread.start()

    def leave(self) -> None:
        """Return when every worker has come to the end of its program; the watch is then over."""
        if os.getpid() != self._introduction.process:
            return  # a child that the program forked off
        self._state = ENDED
        while True:
            self.look()
            with self._lock:
                ended = len(self._peers.saying(ENDED)) == len(self._peers.reports)
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
            if self._peers.gone():
                return False
            self._state = FAILING
        until = time.monotonic() + (3 if self._rank > 0 else 1) * TICK
        while time.monotonic() < until:
            with self._lock:
                self._post()
                self._peers.read()
                failing = min(self._peers.saying(FAILING), default=self._rank)
                if failing < self._rank or self._peers.saying(SPEAKING):
                    return False
            time.sleep(TICK / 25)
        with self._lock:
            self._state = SPEAKING
            self._post()
        return True

    def look(self) -> None:
        """Post, read, and end the job if it can't go on; the watch does so every `TICK` seconds."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > 4 * TICK:
                # This worker was itself stopped, or had no core: nobody else is to blame for that.
                self._peers.excuse(now - self._looked - TICK)
                # It may be the one that the others ended the job for, and be about to be killed.
                self._quiet_until = now + 8 * TICK
            self._looked = now
            gone = self._peers.gone()  # before reading: a last message may be there
            self._post()
            self._warned -= self._peers.read()
            if self._state in (FAILING, SPEAKING):
                return
            if self._peers.saying(SPEAKING):
                time.sleep(2 * TICK)  # it says why
                seen = self._peers.with_fewer_errors(self._attendance.errors)
                if seen and self._attendance.error:
                    time.sleep(2 * TICK)  # first
                    self._say(f"what rank {self._rank} caught:\n{self._attendance.error}")
                self._end(1)
            gone &= self._peers.saying(RUNNING)
            if gone and now >= self._quiet_until:
                self._stop(min(gone), self._death(), gone, seen_by=self._peers.near)
            if os.getppid() != self._launcher:
                self._say("the launcher of this job is gone")
                self._end(1)
            waits = self._attendance.joining > self._attendance.done
            self._look_for_early_leavers(waits)
            self._look_for_caught_errors(waits)
            if self._limit and (waits or self._state == ENDED):
                self._look_for_silent_ones(now)
            if self._limit and waits:
                self._look_for_absent_ones(now)

    def _run(self) -> None:
        while not self._left.wait(TICK):
            self.look()

    def _death(self) -> str:
        """What a process of this host has died of, as far as can be told."""
        if procfs.memory_kills() == self._killed_before:
            return "has died; the launcher tells of what"
        limit = procfs.memory_limit()
        may = f", which may hold {limit / 1e9:.1f} GB" if math.isfinite(limit) else ""
        return (
            f"was killed by the kernel: no memory is left for its control group{may} (less is held "
            "with a micro_batch_size, memory-mapped arrays, or fewer workers on this host)"
        )

    def _look_for_early_leavers(self, waits: bool) -> None:
        early = {
            rank
            for rank in self._peers.saying(ENDED)
            if waits and self._peers.reports[rank].done < self._attendance.joining
        }
        # Often, because this worker may just be returning from a collective that all were in.
        self._doubt = self._doubt + 1 if early else 0
        if self._doubt > 4:
            what = f"ended its program, but rank {self._rank} waits for it"
            self._stop(min(early), what, early)

    def _look_for_caught_errors(self, waits: bool) -> None:
        failed = self._peers.with_more_errors(self._attendance.errors) if waits else set()
        self._alone = self._alone + 1 if failed else 0
        if self._alone > _LOOKS:
            what = f"caught an exception that ended its part, but rank {self._rank} waits for it"
            self._stop(min(failed), what, failed)

    def _look_for_silent_ones(self, now: float) -> None:
        silent = {
            rank: now - heard
            for rank, heard in self._peers.heard.items()
            if now - heard > self._limit * (PATIENCE if self._peers.is_at_work(rank) else 1)
        }
        if silent:
            rank = min(silent)
            self._stop(rank, f"has not answered for {silent[rank]:.0f} s", silent, hang=True)

    def _look_for_absent_ones(self, now: float) -> None:
        for rank in sorted(self._peers.reports.keys() - self._peers.waiting()):
            away = now - self._peers.changed[rank]
            if away < self._limit:
                continue
            if now - self._peers.heard[rank] > 5 * TICK:  # silent, but not long enough
                continue
            text = f"has not come to a collective for {away:.0f} s, though its process answers"
            if away > PATIENCE * self._limit:
                self._stop(rank, text, [rank], hang=True)
            if rank not in self._warned and self._speaks([rank], self._peers.waiting()):
                self._warned.add(rank)
                where = self._attendance.where
                self._say(f"{self._peers.name(rank)} {text}; all wait for it in {where}", "warning")

    def _stop(
        self,
        rank: int,
        what: str,
        missing: Iterable[int],
        seen_by: Iterable[int] | None = None,
        hang: bool = False,
    ) -> None:
        """End the job because of `rank`; the first of those who see it says so.

        The same is true of all of `missing`; if they `hang`, their processes are ended. Those that
        wait see it, unless `seen_by` names others.
        """
        if self._speaks(missing, self._peers.waiting() if seen_by is None else seen_by):
            self._state = SPEAKING  # whoever is blamed, or wakes up, shall not blame this worker
            self._post()
            if not hang:
                time.sleep(2 * TICK)  # the launcher sees a death first, and tells of the right one
            self._say(
                f"{self._peers.name(rank)} {what}, in {self._attendance.where}. This ends the job. "
                "Go on from its last checkpoint."
            )
            if hang:
                self._peers.kill(missing)
                time.sleep(TICK)  # the launcher sees that first, too
        else:
            time.sleep(6 * TICK)
        self._end(1)

    def _speaks(self, missing: Iterable[int], seen_by: Iterable[int]) -> bool:
        """Tell whether this is the first of the workers that see what is wrong."""
        return min({self._rank, *seen_by} - set(missing)) == self._rank

    def _say(self, text: str, kind: str = "error") -> None:
        with contextlib.suppress(OSError, ValueError):  # the launcher, and its pipes, may be gone
            sys.stdout.flush()
            sys.stderr.write(f"ddp_gd: {kind}: {text}\n")  # in one piece
            sys.stderr.flush()

    def _post(self) -> None:
        own = self._attendance
        report = self._introduction._replace(
            state=self._state, done=own.done, joining=own.joining, errors=own.errors
        )
        self._board.post(report)
