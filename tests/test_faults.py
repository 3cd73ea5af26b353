"""Some of the faults that `python -m tests.faults` injects: each job ends soon, and says why."""

from __future__ import annotations

import dataclasses

import pytest

from tests.faults import kills, messages, trials
from tests.faults.trials import Fault, Outcome


@pytest.mark.jobs
@pytest.mark.timed
@pytest.mark.parametrize(
    "fault",
    [
        Fault("sys.exit(0)", "callback", np=2, rank=1, backend="mpi"),
        Fault("os._exit(0)", "reduction", np=2, rank=1, backend="mpi"),
        Fault("SIGKILL", "step", np=3, rank=1),
        Fault("SIGSTOP", "evaluation", np=2, rank=1),
        Fault("endless loop", "data", np=2, rank=0, backend="mpi"),
        Fault("SIGTERM", "reduction", np=2, rank=1, backend="mpi"),
        Fault("SIGINT", "step", np=3, rank=2),
    ],
    ids=lambda fault: f"{fault.kind}, {fault.phase}",
)
def test_a_fault_ends_the_job(fault: Fault) -> None:
    """Within 5 s, with an exit status that isn't 0, one message, the worker named, nothing left."""
    outcome = trials.run(fault)
    # A machine that does something else besides takes longer to notice a hang than 2 s more.
    problems = [problem for problem in outcome.problems if not problem.startswith("took")]
    assert problems == [], outcome.output
    assert outcome.seconds <= trials.LARGEST


DIED = "ddp_gd: error: rank 1 (process 7 on here) has died; the launcher tells of what, in step 4."
KILLED = "\nmpirun noticed that process rank 1 with PID 0 on node here exited on signal 9 (Killed)."
LEFT = (
    "ddp_gd: error: rank 1 (process 7 on here) ended its program, but rank 0 waits for it, in step "
    "4 of epoch 1."
)
RAISED = (
    "[1,1]<stderr>:ddp_gd: this ended the job (rank 1 on he[1,1]<stderr>:re):\n[1,1]<stderr>:"
    "Traceback (most recent call last):\n[1,1]<stderr>:Struck: this is the fault"
)
STATUS = "\n  Process name: [[28622,1],1]\n  Exit code:    3\n"
SAVED = "ddp_gd: stopped by SIGTERM after epoch 1; saved in a/step-1-f.x. Go on: x --resume\n"
STOPPED = (
    "ddp_gd: error: rank 1 (process 7 on here) is stopped; rank 0 has waited 8 s for it to start"
)
ENDED = (
    "ddp_gd: error: rank 1 (on here) has ended before it came to ddp_gd.init; rank 0 has waited 8 "
    "s for it to start"
)


@pytest.mark.parametrize(
    ("kind", "phase", "text", "wrong"),
    [
        ("SIGKILL", "step", DIED + KILLED, None),
        ("SIGKILL", "step", DIED, "the launcher names another worker, or reason"),
        ("SIGSEGV", "step", DIED + KILLED, "the launcher names another worker, or reason"),
        ("SIGKILL", "step", KILLED, "no message"),
        ("os._exit(3)", "step", STATUS, "no message"),
        ("SIGKILL", "start", KILLED, None),
        ("SIGKILL", "launch", KILLED, None),
        ("SIGKILL", "start", "", "the launcher names another worker, or reason"),
        ("sys.exit(3)", "step", LEFT, None),
        ("sys.exit(3)", "step", LEFT.replace("here", "there"), "wrong or no host"),
        ("sys.exit(3)", "exit", STATUS, None),
        ("sys.exit(3)", "step", STATUS, "no message"),
        ("sys.exit(0)", "step", LEFT.replace("rank 1 (", "rank 0 ("), "wrong or no worker named"),
        ("sys.exit(0)", "step", f"{LEFT}\n{LEFT}", "said more than once"),
        ("exception", "data", RAISED + STATUS, None),
        ("out of memory", "data", RAISED + STATUS, "wrong or no reason"),
        ("SIGSTOP", "step", LEFT, "wrong or no reason"),
        ("SIGSTOP", "step", "ddp_gd: error: rank 1 is missing", "wrong or no host"),
        ("SIGSTOP", "launch", STOPPED, None),
        ("os._exit(0)", "launch", ENDED, None),
        ("SIGSTOP", "launch", ENDED, "wrong or no reason"),
        ("SIGSTOP", "launch", ENDED.replace("rank 1 (", "rank 2 ("), "wrong or no worker named"),
        ("SIGSTOP", "launch", f"{STOPPED}\n{STOPPED}", "said more than once"),
        ("SIGSTOP", "start", STOPPED, "wrong or no reason"),
        ("SIGTERM", "step", SAVED, None),
        ("SIGUSR1", "step", SAVED, None),
        ("SIGINT", "step", SAVED, "not said, or not once, that it was stopped and saved"),
        ("SIGTERM", "step", SAVED + SAVED, "not said, or not once, that it was stopped and saved"),
        ("SIGTERM", "step", SAVED + LEFT, "not said, or not once, that it was stopped and saved"),
    ],
)
def test_what_is_said_is_judged(kind: str, phase: str, text: str, wrong: str | None) -> None:
    """A message that blames another worker, or none, or without host or reason, is found."""
    assert messages.wrong(kind, phase, rank=1, host="here", text=text) == wrong


def test_what_takes_too_long_is_found() -> None:
    """A hang has 2 s after its timeout, any other fault 5 s, and half of many jobs 2 s."""

    def outcome(kind: str, seconds: float) -> Outcome:
        return Outcome(Fault(kind, "step", 2, 1), 1, seconds, 0, 0, None, "")

    assert outcome("SIGKILL", 2.1).problems == []
    assert outcome("SIGSTOP", 2.1).problems == ["took 2.1 s"]
    assert outcome("SIGKILL", 5.1).problems == ["took 5.1 s"]
    assert outcome("SIGTERM", 1.0).problems == ["exit status 1"]
    assert trials.too_slow([outcome("SIGKILL", 2.1)] * 100)
    assert not trials.too_slow([outcome("SIGKILL", 1.9)] * 100)


def test_a_resume_from_nothing_is_found() -> None:
    """It ends in the same bits, too; and kills that never hit the writing say so."""
    resumed = kills.Kill(2, 3, 0, True, True, newest=24, began=24, equal=True)
    assert not kills.summary([resumed] * 10)[1]
    for change in ({"began": 0}, {"began": None}, {"equal": False}):
        assert kills.summary([resumed] * 9 + [dataclasses.replace(resumed, **change)])[1]
    for change in ({"half_written": False}, {"newest": 0, "began": 0}):
        rest = [dataclasses.replace(resumed, **change)] * 8
        assert kills.summary([resumed] * 2 + rest)[1]
