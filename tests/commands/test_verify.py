"""`python -m ddp_gd.verify`, run as users run it."""

from pathlib import Path

import pytest
from jobs import run_job

pytestmark = pytest.mark.jobs

PLANTED = str(Path(__file__).parents[1] / "programs" / "planted.py")


def verify(*arguments):
    """Run the command."""
    return run_job(1, ["-m", "ddp_gd.verify", *arguments], launcher="python", timeout=200)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("a random layer", "not the same on every worker"),
        ("graph rewriting", "graph rewriting"),
        ("threads", "threads"),
        ("writes to a tf.Variable", "writes to a tf.Variable"),
    ],
)
def test_a_planted_cause_is_caught_and_named(planted, said):
    """What makes trainings part ends verify with status 1 and is named."""
    job = verify("-np", "1", "2", "--script", PLANTED, planted)
    assert job.returncode == 1, job.stdout + job.stderr
    _, found, after = job.stdout.partition("BROKEN")
    assert found
    assert said in after


def test_equal_bits_are_called_equal():
    """A bitwise training keeps its promise, with nothing but a table and a verdict printed."""
    job = verify("-np", "1", "2", "--bitwise", "--epochs", "2", "--batch-size", "50")
    assert job.returncode == 0, job.stdout + job.stderr
    assert "EQUAL to the last bit with 1, 2 workers, after each of 16 steps." in job.stdout
    prints = {
        line.split()[3] for line in job.stdout.splitlines() if line.split()[:1] in (["1"], ["2"])
    }
    assert len(prints) == 1


def test_default_mode_is_equal_to_rounding():
    """Without --bitwise the bits differ, and that is called rounding, first step or last."""
    job = verify("-np", "1", "2", "--epochs", "2")
    assert job.returncode == 0, job.stdout + job.stderr
    assert "EQUAL to rounding" in job.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-np", "1"], "two or more counts"),
        (["-np", "0", "2"], "two or more counts"),
        (["--script", "missing.py"], "missing.py"),
        (["--out", "somewhere"], "--out"),
    ],
)
def test_wrong_use_is_refused_at_once(arguments, said):
    """What verify can't do is refused before anything is trained."""
    job = verify(*arguments)
    assert job.returncode == 2
    assert said in job.stderr
