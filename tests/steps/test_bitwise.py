"""Bit for bit at any number of workers: real jobs, compared by what they left."""

import functools
import json
import re
import tempfile
from pathlib import Path

import pytest
from jobs import run_job

pytestmark = pytest.mark.jobs

PROGRAM = str(Path(__file__).parents[1] / "programs" / "bitwise.py")


@functools.cache
def left_by(workers, launcher, backend, inter_op, which="few", audit="0"):
    """What the trainings left: fingerprints and Histories by case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "left.json"
        job = run_job(
            workers,
            [PROGRAM, str(out), which],
            launcher=launcher,
            env={
                "BACKEND": backend,
                "TF_NUM_INTEROP_THREADS": str(inter_op),
                "AUDIT": audit,
                "EXCHANGED_AT_ONCE": str(2**25 if workers < 3 else 500),
            },
            timeout=600,
        )
        assert job.returncode == 0, job.stderr[-3000:]
        return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("workers", "launcher", "backend", "inter_op", "which", "audit"),
    [
        (2, "mpirun", "horovod", 2, "few", "0"),
        (3, "mpirun", "mpi", 1, "one", "0.1"),  # more are in test_everything.py
    ],
)
def test_the_number_of_workers_leaves_no_trace(workers, launcher, backend, inter_op, which, audit):
    """Weights, optimizer state and History are those of one process with one thread, to the bit.

    Nor does an audit, which finds nothing, or a gradient that is exchanged piece by piece.
    """
    alone = left_by(1, "python", "single", 1)
    left = left_by(workers, launcher, backend, inter_op, which, audit)
    assert left == {name: alone[name] for name in left}
    assert len(left) == {"few": 4, "one": 1}[which]


def test_aligned_shares_cost_the_bytes_of_a_ring_allreduce():
    """With one node of the tree each, a worker sends 2 (n - 1) / n gradients a step."""
    job = run_job(
        4,
        [str(Path(PROGRAM).with_name("wire.py"))],
        launcher="mpirun",
        env={"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"},
        timeout=600,
    )
    assert job.returncode == 0, job.stderr[-3000:]
    found = re.search(r"sent (\d+) expected (\d+)", job.stdout)
    assert found, job.stdout
    assert int(found[1]) == pytest.approx(int(found[2]), rel=0.03)  # TCP's headers, the metrics
