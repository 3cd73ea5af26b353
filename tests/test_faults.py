"""Some of the faults that `python -m tests.faults` injects: each job ends soon, and says why."""

from __future__ import annotations

import pytest

from tests.faults import trials
from tests.faults.trials import Fault

pytestmark = [pytest.mark.jobs, pytest.mark.timed]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("exception", "checkpoint", np=2, rank=0),
        Fault("sys.exit(0)", "callback", np=2, rank=1, backend="mpi"),
        Fault("os._exit(0)", "reduction", np=2, rank=1, backend="mpi"),
        Fault("SIGKILL", "step", np=3, rank=1),
        Fault("SIGSTOP", "evaluation", np=2, rank=1),
        Fault("endless loop", "data", np=2, rank=0, backend="mpi"),
    ],
    ids=lambda fault: f"{fault.kind}, {fault.phase}",
)
def test_a_fault_ends_the_job(fault: Fault) -> None:
    """Within 5 s, with an exit status that isn't 0, one message, the worker named, nothing left."""
    outcome = trials.run(fault)
    assert outcome.problems == [], outcome.output
