"""The limit for the start: who is missing is named, by one of those that wait."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import pytest

# What a launcher starts: a worker for each word. When the first one fails it ends all, 2 s later.
_LAUNCHER = textwrap.dedent(
    """
    import os, subprocess, sys, textwrap, time
    program = textwrap.dedent('''
        import os, signal, sys, time
        from ddp_gd.job import start_limit
        if sys.argv[1] == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif sys.argv[1] == "sleeps":
            time.sleep(60)
        elif sys.argv[1] != "leaves":
            if sys.argv[1] == "later":
                time.sleep(0.8)
            with start_limit.limit(3):
                time.sleep(60)
    ''')
    here, *words = sys.argv[1:]
    workers = []
    for rank, word in enumerate(words):
        place = {
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": str(len(words)),
            "OMPI_COMM_WORLD_LOCAL_SIZE": here,
        }
        worker = subprocess.Popen([sys.executable, "-c", program, word], env=os.environ | place)
        workers.append(worker)
    print(*(worker.pid for worker in workers))
    while not any(worker.poll() for worker in workers):
        time.sleep(0.01)
    time.sleep(2)
    for worker in workers:
        worker.kill()
        worker.wait()
    """
)


class Case(NamedTuple):
    """Workers, how many of them their launcher says are on this host, and what is to be said."""

    workers: str
    here: int
    said: str


CASES = [
    Case("comes stops", 2, "rank 1 (process {1} on {host}) is stopped; rank 0 has waited 3 s for"),
    Case("sleeps comes comes", 3, "rank 0 (process {0} on {host}) has not come to ddp_gd.init; "),
    Case("comes leaves", 2, "rank 1 (on {host}) has ended before it came to ddp_gd.init; rank 0"),
    Case("comes stops comes leaves", 4, "rank 0 has waited 3 s for it to start, and for rank 3."),
    # One that has spoken is gone when the other one looks, or comes first and is to speak second.
    Case("comes later stops", 3, "rank 2 (process {2} on {host}) is stopped; rank 0 has waited"),
    Case("later comes stops", 3, "rank 2 (process {2} on {host}) is stopped; rank 0 has waited"),
    # Who is missing may be on another host.
    Case("comes comes", 2, "rank 0 on {host} has waited 3 s for the other workers to start."),
    Case("comes leaves", 1, "rank 0 on {host} has waited 3 s for the other workers to start."),
]


@pytest.fixture(scope="module")
def jobs() -> Iterator[dict[Case, subprocess.Popen[str]]]:
    """All cases at once: they sleep nearly all of the time."""
    pipe = subprocess.PIPE
    found = {}
    for case in CASES:
        argv = [sys.executable, "-c", _LAUNCHER, str(case.here), *case.workers.split()]
        found[case] = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True)
    yield found
    for job in found.values():
        job.kill()
        job.communicate()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.workers}, {case.here} here")
def test_who_is_missing_at_the_start_is_named(
    case: Case, jobs: dict[Case, subprocess.Popen[str]]
) -> None:
    """Once, with its process, its host and what is wrong with it."""
    out, err = jobs[case].communicate(timeout=600)
    assert err.count("ddp_gd: error: ") == 1, err
    assert case.said.format(*out.split(), host=os.uname().nodename) in err


def test_nobody_is_blamed_where_others_cannot_be_seen() -> None:
    """With a program between the launcher and each worker, a worker has no siblings."""
    text = (
        "import time\nfrom ddp_gd.job import start_limit\n"
        "with start_limit.limit(0.2): time.sleep(9)"
    )
    place = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    job = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", text],
        env=os.environ | place | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert job.returncode == 1
    assert "has waited 0.2 s for the other workers to start" in job.stderr


def test_a_start_in_time_has_no_end_afterwards() -> None:
    """The limit is over when the workers have met; 0 is none."""
    text = (
        "import time\nfrom ddp_gd.job import start_limit\n"
        "for seconds in (0.2, 0):\n    with start_limit.limit(seconds): pass\ntime.sleep(1)"
    )
    job = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, timeout=600, check=False
    )
    assert (job.returncode, job.stderr) == (0, b"")
