"""Is what a user's step does on shares what it does on the whole? Found out on real rows.

Before the first update the step is run on some rows as it is, and on the workers' shares of them
or on micro-batches, and everything that it writes or returns is compared: gradients, weights, the
optimizers' state, metrics. All variables are put back afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps import graph
from ddp_gd.steps.own.own_step import OwnRules, OwnStep
from ddp_gd.steps.own.pieces_trial import PiecesTrial
from ddp_gd.steps.own.points import InPasses
from ddp_gd.steps.own.trial import Trial, rows_of
from ddp_gd.steps.rows import statistics

Tensor = Any
# What is the same on all workers or a mean over rows, or a sum, is found out; these are tried.
_TRIED = (
    OwnRules(),
    OwnRules(blocks=True),
    OwnRules(met_metrics=True),
    OwnRules(blocks=True, met_metrics=True),
)


@dataclasses.dataclass
class OwnProof:
    """Finds out how shares make up the whole of a user's step. Collective.

    Attributes:
        make: traces the step by some rules, on shares or micro-batches, or as it is where they are
            None. The moments are those of a batch for BatchNormalization, where they are given.
        communicator: the workers.
        rows: the same on every worker; of what has no rows, numbers.
        names: of variables, by `id` of their `tf.Variable`.
        in_pieces: whether a step has micro-batches, which don't wait for other workers.
        begin: called with the variables before the step is first run.
    """

    make: Callable[[OwnRules | None, Any], OwnStep | InPasses]
    communicator: Communicator
    rows: Sequence[Tensor]
    names: dict[int, str]
    in_pieces: bool = False
    begin: Callable[[list[Any]], None] = lambda variables: None

    def prove(self) -> tuple[OwnRules, OwnStep | InPasses]:
        """Return the rules, and the step by them.

        Raises:
            ModelError: on every worker, where none holds.
            MismatchError: the step is another one on some worker.
        """
        rows = list(self.rows)
        if rows_of(rows) == 1:  # nothing to cut
            rows = [tf.concat([row, row], 0) if row.shape.rank else row for row in rows]
        # Micro-batches normalise by statistics of their own, on purpose: here by none.
        none = _NoStatistics() if self.in_pieces else None
        whole = self.make(None, none)
        assert isinstance(whole, OwnStep)
        self.begin(whole.variables)
        refused: ModelError | None = None
        for rules in _TRIED:
            if rules.met_metrics and self.in_pieces:
                continue
            try:
                step = self.make(rules, none)
                if refused is None:
                    self._require_same_step(step)
                found = self._trial(whole, step, rows).rules(rules)
                return found, self.make(found, None) if none and none.used else step
            except ModelError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _trial(self, whole: OwnStep, step: OwnStep | InPasses, rows: list[Tensor]) -> Trial:
        kind = PiecesTrial if isinstance(step, InPasses) else Trial
        return kind(self.communicator, self.names, whole, step, rows)

    def _require_same_step(self, step: OwnStep | InPasses) -> None:
        traced = step.update.traced if isinstance(step, InPasses) else step.traced
        words = [operation.type for operation in graph.operations(traced)]
        words += [f"{v.dtype}{v.shape}" for v in step.variables]
        digest = hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
        agree.require_same_facts(self.communicator, {"the training step's graph": digest})


class _NoStatistics:
    """Moments of a batch that depend on nothing.

    Attributes:
        used: whether anything has asked for them.
    """

    def __init__(self) -> None:
        self.used = False

    def __call__(
        self, inputs: Tensor, mask: Tensor | None, axes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The mean and variance of numbers that need no normalising."""
        self.used = True
        return statistics.neutral(inputs, mask, axes)
