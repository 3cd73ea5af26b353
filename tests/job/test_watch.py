"""When a worker ends the job because of another one, and whom it names."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from types import SimpleNamespace

import pytest

from ddp_gd.comm.attendance import Attendance
from ddp_gd.job import peers, procfs, watch
from ddp_gd.job.peers import ENDED, TICK, Peers, Report, introduction
from ddp_gd.job.watch import PATIENCE, Watch

LIMIT = 5.0


class Ended(Exception):
    """The process would have ended."""


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Board:
    """What workers post, kept in a table that all of them share."""

    def __init__(self, table: dict[int, dict[int, list[int]]], rank: int, first: Report):
        self.hosts = ["alpha", "beta", "gamma"][: len(table)]
        self.first = [list(first) for _ in table]
        self.table, self.rank = table, rank

    def post(self, message: Report) -> None:
        for rank, inbox in self.table.items():
            if rank != self.rank:
                inbox[self.rank] = list(message)

    def read(self) -> dict[int, list[int]]:
        inbox = dict(self.table[self.rank])
        self.table[self.rank].clear()
        return inbox

    def is_sent(self) -> bool:
        return True


class Job:
    """Some workers; number 0 is the one that is tested.

    Args:
        size: how many.
        first: what each says of itself at the beginning.
        apart: whether they are on hosts of their own, and nobody sees another one's process.
    """

    def __init__(self, size: int, first: Report | None = None, apart: bool = False):
        def end(code: int) -> None:
            raise Ended

        first = Report(began=0) if apart else first or introduction()
        self.table: dict[int, dict[int, list[int]]] = {rank: {} for rank in range(size)}
        self.boards = [Board(self.table, rank, first) for rank in range(size)]
        self.attendance = [Attendance() for _ in range(size)]
        self.watches = [
            Watch(
                SimpleNamespace(rank=r, size=size, attendance=a, barrier=lambda: None),
                self.boards[r],
                LIMIT,
                end,
            )
            for r, a in enumerate(self.attendance)
        ]

    def look(self, seconds: float, clock: Clock, ranks: tuple[int, ...] = (0, 1)) -> None:
        """Let time pass in which these workers look."""
        for _ in range(int(seconds / TICK)):
            for rank in ranks:
                self.watches[rank].look()
            clock.now += TICK


@pytest.fixture(autouse=True)
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranks' processes that were killed, not really: all ranks are this one."""
    found: list[int] = []
    real = os.kill

    def kill(process: int, number: int) -> None:
        if process == os.getpid() and number == signal.SIGKILL:
            found.append(process)
        else:
            real(process, number)

    monkeypatch.setattr(os, "kill", kill)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for the module `time`."""
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(peers, "time", clock)
    return clock


@pytest.fixture
def job(clock: Clock) -> Job:
    """Two workers that have seen each other."""
    job = Job(2)
    job.look(1, clock)
    return job


@pytest.fixture
def job_apart(clock: Clock) -> Job:
    """The same on two hosts."""
    job = Job(2, apart=True)
    job.look(1, clock)
    return job


def test_a_silent_worker_ends_the_job_that_waits(job_apart: Job, clock: Clock, capsys) -> None:
    """Named with its host and what is waited for; not before the limit, nor if nobody waits."""
    job_apart.look(3 * LIMIT, clock, ranks=(0,))
    attendance = job_apart.attendance[0]
    attendance.where = "steps 3 to 9 of epoch 2"
    with attendance.join(7), pytest.raises(Ended):
        job_apart.look(1, clock, ranks=(0,))
    said = capsys.readouterr().err
    assert "rank 1 (process" in said
    assert "on beta) has not answered for 15 s, in steps 3 to 9 of epoch 2" in said


def test_a_silent_worker_is_not_waited_for_at_the_end(job_apart: Job, clock: Clock, capsys) -> None:
    """All are to end together; one that was stopped after the training never will."""
    began = clock.now
    with pytest.raises(Ended):
        job_apart.watches[0].leave()
    assert clock.now < began + 2 * LIMIT
    assert "has not answered" in capsys.readouterr().err


def test_a_worker_that_answers_has_more_time(job: Job, clock: Clock, capsys) -> None:
    """A slow callback is not a hang: first a warning, once; an endless loop is."""
    with job.attendance[0].join():
        job.look(PATIENCE * LIMIT - 1, clock)
        said = capsys.readouterr().err
        assert said.count("warning: rank 1") == 1
        assert "has not come to a collective for 5 s" in said
        with pytest.raises(Ended):
            job.look(2, clock)


def test_a_long_step_is_not_a_hang(job: Job, clock: Clock) -> None:
    """All workers are in it, and answer."""
    with job.attendance[0].join(3), job.attendance[1].join(2):
        job.look(100 * LIMIT, clock)


def test_a_worker_that_was_stopped_itself_blames_nobody(job: Job, clock: Clock) -> None:
    """After a suspend of the machine everybody seems to have been silent."""
    with job.attendance[0].join():
        clock.now += 10 * LIMIT
        job.look(LIMIT / 2, clock, ranks=(0,))
        job.look(1, clock)


@pytest.mark.parametrize(("done", "ends"), [(3, True), (4, False)])
def test_a_worker_that_leaves_too_early(
    job: Job, clock: Clock, capsys, done: int, ends: bool
) -> None:
    """It has come to the end of its program; whether others still need it shows in the counts."""
    report = Report(ENDED, 1, 0, done, done)
    job.attendance[0].done = 2
    with job.attendance[0].join(2):
        for _ in range(10):
            job.table[0][1] = list(report)
            if ends and _ == 4:
                with pytest.raises(Ended):
                    job.look(TICK, clock, ranks=(0,))
                break
            job.look(TICK, clock, ranks=(0,))
    assert ("rank 1 (process 1 on beta) ended its program" in capsys.readouterr().err) == ends


def test_an_exception_that_one_program_catches_ends_the_job(job: Job, clock: Clock, capsys) -> None:
    """Seen by who waits; where it happened it is shown. All that catch the same go on."""
    for attendance in job.attendance:
        attendance.errors, attendance.error = 1, "ValueError: the same"
    waiting, failed = job.attendance
    with waiting.join():
        job.look(10, clock)
        failed.errors, failed.error = 2, "ValueError: only here"
        job.look(2, clock)
        with pytest.raises(Ended):
            job.look(2, clock, ranks=(0,))
        assert (
            "caught an exception that ended its part, but rank 0 waits" in capsys.readouterr().err
        )
        with pytest.raises(Ended):
            job.watches[1].look()
    assert "what rank 1 caught:\nValueError: only here" in capsys.readouterr().err


def test_a_dead_worker_is_noticed_at_once(clock: Clock, capsys) -> None:
    """By its process, which others of the same host can see, even if it has never posted."""
    with subprocess.Popen(["sleep", "60"]) as process:
        job = Job(2, Report(0, process.pid, procfs.status(process.pid).began))
        job.look(1, clock, ranks=(0,))
        process.kill()
        process.wait()
        with pytest.raises(Ended):
            job.look(TICK, clock, ranks=(0,))
    assert f"rank 1 (process {process.pid} on beta) has died" in capsys.readouterr().err


def test_a_worker_that_had_no_memory_is_said_to(clock: Clock, capsys, monkeypatch) -> None:
    """The kernel counts whom it kills for a control group's limit."""
    monkeypatch.setattr(procfs, "memory_kills", lambda: 3)
    monkeypatch.setattr(procfs, "memory_limit", lambda: 2e9)
    with subprocess.Popen(["sleep", "60"]) as process:
        job = Job(2, Report(0, process.pid, procfs.status(process.pid).began))
        monkeypatch.setattr(procfs, "memory_kills", lambda: 4)
        process.kill()
        process.wait()
        with pytest.raises(Ended):
            job.look(TICK, clock, ranks=(0,))
    said = capsys.readouterr().err
    assert "on beta) was killed by the kernel" in said
    assert "may hold 2.0 GB" in said
    assert "micro_batch_size" in said


def test_who_wakes_up_to_a_dead_worker_is_quiet(clock: Clock) -> None:
    """The others may have ended the job because of this one; if not, it speaks a little later."""
    with subprocess.Popen(["sleep", "60"]) as process:
        job = Job(2, Report(0, process.pid, procfs.status(process.pid).began))
        job.look(1, clock, ranks=(0,))
        process.kill()
        process.wait()
        clock.now += 60
        job.look(8 * TICK, clock, ranks=(0,))
        with pytest.raises(Ended):
            job.look(TICK, clock, ranks=(0,))


@pytest.mark.parametrize("first_waits", [True, False])
def test_one_of_those_that_wait_speaks(clock: Clock, capsys, first_waits: bool) -> None:
    """Of three workers number 1 is silent: number 0 says so if it waits, else number 2."""
    job = Job(3, apart=True)
    job.look(1, clock, ranks=(0, 1, 2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(job.attendance[2].join())
        if first_waits:
            stack.enter_context(job.attendance[0].join())
        with pytest.raises(Ended):
            job.look(2 * LIMIT, clock, ranks=(2, 0))
    assert ("rank 1 (process" in capsys.readouterr().err) != first_waits


def test_a_worker_that_holds_python_is_not_lost(job: Job, clock: Clock, killed: list[int]) -> None:
    """One call of a library may let no other thread run; the process is seen to be at work."""
    with job.attendance[0].join():
        job.look(PATIENCE * LIMIT - 1, clock, ranks=(0,))
        assert killed == []
        with pytest.raises(Ended):
            job.look(2, clock, ranks=(0,))
    assert killed == [os.getpid()]


@pytest.mark.parametrize("changed", ["host", "process", "nothing"])
def test_only_who_is_seen_to_be_there_is_killed(killed: list[int], changed: str) -> None:
    """Not what has its number on another host, or has it now."""
    job = Job(2, apart=changed == "host")
    others = Peers(job.boards[0], 0)
    now = introduction()
    job.boards[1].post(now._replace(began=1) if changed == "process" else now)
    others.read()
    others.kill([1])
    assert killed == ([os.getpid()] if changed == "nothing" else [])


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1), (2, 1)])
def test_the_lowest_of_those_that_fail_speaks(failing: tuple[int, ...]) -> None:
    """Each of several workers meets the same error: one shows it."""
    job = Job(3)
    speaks = {}

    def fail(rank: int) -> None:
        speaks[rank] = job.watches[rank].fail()

    threads = [threading.Thread(target=fail, args=(rank,)) for rank in failing]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rank for rank in failing if speaks[rank]] == [min(failing)]
