"""Audits: what is found, who is named, and that they leave no trace where nothing is wrong."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from ddp_gd.batching import sources
from ddp_gd.comm.single import SingleCommunicator
from ddp_gd.errors import AUDIT_STATUS, AuditError, ConfigError, exit_status
from ddp_gd.job import runtime
from ddp_gd.training import audit
from ddp_gd.training.audit import Difference, verdict
from tests.faults import audits

RIGHT, WRONG, OTHER = (5, 1, 2), (5, 1, 3), (5, 1, 4)
HOSTS = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("of_owner", "of_auditor", "again", "ranks", "said"),
    [
        # A third worker, or two more, tell.
        (WRONG, RIGHT, {0: WRONG, 1: RIGHT, 2: RIGHT}, (0,), "rank 0 (on a) computed it wrong"),
        (RIGHT, WRONG, {0: RIGHT, 1: RIGHT, 2: RIGHT}, (1,), "rank 1 (on b) computed it wrong"),
        (WRONG, RIGHT, {0: RIGHT, 1: RIGHT, 2: RIGHT, 3: RIGHT}, (0,), "ranks 1, 2, 3 got"),
        (
            WRONG,
            OTHER,
            {0: WRONG, 1: OTHER, 2: RIGHT, 3: RIGHT},
            (0, 1),
            "rank 0 (on a) and rank 1 (on b) computed it wrong",
        ),
        (WRONG, RIGHT, {0: WRONG, 1: RIGHT, 2: OTHER}, (), "no majority of the workers tells"),
        # Two workers compute it again: one that never was wrong again is likely.
        (WRONG, RIGHT, {0: RIGHT, 1: RIGHT}, (0,), "wrong, or rank 1 did; of two workers"),
        (RIGHT, WRONG, {0: RIGHT, 1: RIGHT}, (1,), "rank 1 got what rank 0 had got"),
        (WRONG, RIGHT, {0: WRONG, 1: RIGHT}, (), "rank 0 (on a) and rank 1 (on b) computed"),
        (WRONG, RIGHT, {0: OTHER, 1: RIGHT}, (0,), "rank 0 got yet another result"),
        (WRONG, RIGHT, {0: OTHER, 1: OTHER}, (), "rank 1 got yet another result"),
        # One process is compared with itself.
        (WRONG, RIGHT, {0: RIGHT}, (0,), "rank 0 (on a) computed it twice"),
    ],
)
def test_the_one_that_differs_from_most_is_named(of_owner, of_auditor, again, ranks, said) -> None:
    """Where it can be told; else both are, and nobody is to be left out."""
    auditor = 1 if len(again) > 1 else 0
    found = Difference(0, 5, 0, auditor, of_owner, of_auditor)
    wrong, text = verdict(found, again, HOSTS, "it")
    assert wrong == ranks
    assert said in text


def test_hosts_are_left_for_who_starts_again(tmp_path) -> None:
    """One a line; and the exit status is of its own."""
    error = AuditError("wrong", (1,), ("node-b",))
    with pytest.raises(AuditError), audit.left_in(tmp_path / "new"):
        raise error
    assert (tmp_path / "new" / audit.NAMED).read_text() == "node-b\n"
    with pytest.raises(AuditError), audit.left_in(tmp_path):
        raise AuditError("nobody knows")
    assert not (tmp_path / audit.NAMED).exists()
    assert exit_status(error) == AUDIT_STATUS == 4


def test_what_cannot_be_audited_is_refused(monkeypatch) -> None:
    """Outside of bitwise mode; mini-batches that one worker hands out; a step of the user's."""

    class Own(keras.Model):
        def train_step(self, data):
            return {}

    model = keras.Sequential([keras.layers.Dense(1)])

    def source(x, y=None):
        return sources.for_training(
            SingleCommunicator(), (x, y, None), None, None, 2, False, 0, steps=2
        )

    arrays = source(np.zeros((8, 2)), np.zeros((8, 1)))
    stream = source((np.zeros((4, 2)), np.zeros((4, 1))) for _ in range(4))
    for given in (arrays, stream):
        audit.require_possible(0.0, model, given)
        with pytest.raises(ConfigError, match=r"audit=0.5 compares results to the last bit"):
            audit.require_possible(0.5, model, given)
    monkeypatch.setattr(runtime, "is_bitwise", lambda: True)
    audit.require_possible(0.5, model, arrays)
    with pytest.raises(ConfigError, match=r"audit=0.5 needs rows that any worker can read"):
        audit.require_possible(0.5, model, stream)
    with pytest.raises(ConfigError, match=r"audit=0.5 is for Keras's own step, and Own overrides"):
        audit.require_possible(0.5, Own(), arrays)


@pytest.mark.jobs
@pytest.mark.parametrize(("np_", "count", "backend"), [(2, 3, "horovod"), (3, 6, "mpi")])
def test_a_wrong_result_is_found(np_, count, backend) -> None:
    """Before its update, with the worker named; and nothing is found where nothing is wrong."""
    found = audits.run(count, np_, "suite", clean=1, backend=backend)
    assert [one.problem for one in found if one.problem] == []
    assert len(found) == count
