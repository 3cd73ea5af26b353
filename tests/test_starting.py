"""The limit for the start: who is missing is named, by one of those that wait."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

# What a launcher starts: one worker for each word. They share a parent, as a launcher's do.
_LAUNCHER = textwrap.dedent(
    """
    import os, subprocess, sys, textwrap
    waits = textwrap.dedent('''
        import os, sys, time
        from ddp_gd import starting
        rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
        if sys.argv[1] == "comes":
            with starting.limit(1.5):
                time.sleep(60)
        elif sys.argv[1] == "stops":
            os.kill(os.getpid(), 19)
        elif sys.argv[1] == "sleeps":
            time.sleep(60)
    ''')
    workers = []
    here = sys.argv[1]
    for rank, what in enumerate(sys.argv[2:]):
        env = {
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": str(len(sys.argv) - 2),
            "OMPI_COMM_WORLD_LOCAL_SIZE": here,
        }
        argv = [sys.executable, "-c", waits, what]
        workers.append(subprocess.Popen(argv, env=os.environ | env))
    for worker, what in zip(workers, sys.argv[2:]):
        if what == "leaves":
            worker.wait()
    first = next(w for w, what in zip(workers, sys.argv[2:]) if what == "comes")
    status = first.wait()
    for worker in workers:
        worker.kill()
        worker.wait()
    print([worker.pid for worker in workers])
    sys.exit(status)
    """
)


@pytest.mark.parametrize(
    ("here", "workers", "said"),
    [
        (
            2,
            "comes stops",
            "rank 1 (process {1} on {host}) is stopped; rank 0 has waited 1.5 s for",
        ),
        (3, "sleeps comes comes", "rank 0 (process {0} on {host}) has not come to ddp_gd.init;"),
        (2, "comes leaves", "rank 1 (on {host}) has ended before it came to ddp_gd.init; rank 0"),
        (4, "comes stops comes leaves", "has waited 1.5 s for it to start, and for rank 3."),
        (2, "comes comes", "rank 0 on {host} has waited 1.5 s for the other workers to start."),
        # The others may be on another host.
        (1, "comes leaves", "rank 0 on {host} has waited 1.5 s for the other workers to start."),
    ],
)
def test_who_is_missing_at_the_start_is_named(here: int, workers: str, said: str) -> None:
    """Once, with host and what is wrong, whatever is wrong; the exit status is 1."""
    argv = [sys.executable, "-c", _LAUNCHER, str(here), *workers.split()]
    job = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    processes = job.stdout.strip("[]\n").split(", ")
    said = said.format(*processes, host=os.uname().nodename)
    assert job.returncode == 1, job.stderr
    assert job.stderr.count("ddp_gd: error: ") == 1, job.stderr
    assert said in job.stderr


def test_nobody_is_blamed_where_others_cannot_be_seen() -> None:
    """With a program between the launcher and each worker, a worker has no siblings."""
    text = "import time\nfrom ddp_gd import starting\nwith starting.limit(0.2): time.sleep(9)"
    place = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    job = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", text],
        env=os.environ | place | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert job.returncode == 1
    assert "has waited 0.2 s for the other workers to start" in job.stderr


def test_a_start_in_time_has_no_end_afterwards() -> None:
    """The limit is over when the workers have met; 0 is none."""
    text = (
        "import time\nfrom ddp_gd import starting\n"
        "for seconds in (0.2, 0):\n    with starting.limit(seconds): pass\ntime.sleep(0.5)"
    )
    job = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=50, check=False)
    assert (job.returncode, job.stderr) == (0, b"")
