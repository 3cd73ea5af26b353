"""Joining a job, agreeing, and ending it when one worker fails."""

from __future__ import annotations

import time
from pathlib import Path

import jobs
import pytest

pytestmark = pytest.mark.jobs

_WORKER = str(Path(__file__).with_name("runtime_worker.py"))


@pytest.mark.timed
@pytest.mark.parametrize(
    ("backend", "launcher", "failing"),
    [
        ("auto", "horovodrun", "all"),
        ("auto", "mpirun", "1"),
        ("mpi", "mpirun", "0"),
        ("mpi", "mpirun", "all"),
    ],
)
def test_a_failure_anywhere_ends_the_job_and_shows_once(
    backend: str, launcher: str, failing: str
) -> None:
    """Within 5 s of an exception the job is over, with a non-zero status and one traceback."""
    job = jobs.run_job(2, [_WORKER, backend, failing], launcher)
    ended = time.time()
    assert job.returncode != 0
    assert job.stderr.count("ValueError: this is the failure") == 1, job.stderr
    assert ("(rank 1 on" in job.stderr) == (failing == "1")
    for piece in job.stdout.split("failing at ")[1:]:
        assert ended - float(piece.split()[0].split("[")[0]) < 5


def test_other_arguments_on_one_worker_are_refused() -> None:
    """`init` names the worker that was started differently, once, without a traceback."""
    job = jobs.run_job(2, [_WORKER, "auto", "other-argv"])
    assert job.returncode != 0
    assert job.stderr.count("ddp_gd: error: the workers were not given the same.") == 1
    assert 'rank 1 \'["auto", "other-argv", "--epochs=7"]\'' in job.stderr
    assert "Traceback" not in job.stderr


def test_bitwise_after_the_first_op_is_refused() -> None:
    """Threads that cannot be fixed any more are an error, not other bits."""
    program = (
        "import tensorflow as tf; tf.ones(1); import ddp_gd.job.runtime as r; r.init(bitwise=True)"
    )
    job = jobs.run_job(1, ["-c", program], "python")
    assert job.returncode != 0
    assert "ddp_gd: error: bitwise=True" in job.stderr
    assert "call ddp_gd.init() before any TensorFlow op" in job.stderr


def test_bitwise_fixes_threads_and_the_order_of_additions() -> None:
    """What changes bits is the same in every process that asked for bitwise."""
    program = (
        "import tensorflow as tf, ddp_gd.job.runtime as r; r.init(bitwise=True)\n"
        "assert r.is_bitwise()\n"
        "assert tf.config.threading.get_intra_op_parallelism_threads() == 1\n"
        "assert tf.config.optimizer.get_experimental_options()['arithmetic_optimization'] is False"
    )
    job = jobs.run_job(1, ["-c", program], "python")
    assert job.returncode == 0, job.stderr
