"""How what the shares of a global mini-batch compute makes up what the whole is."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class Options(NamedTuple):
    """How steps are to be made.

    Attributes:
        training: False for evaluation: no gradient, no update, layers in inference mode.
        micro_batch_size: rows of a micro-batch; None makes each share one micro-batch.
        empty_shares: whether some share may be empty.
        bitwise_lanes: 0, or how many micro-batches to compute at once in bitwise mode, which needs
            `micro_batch_size`.
        stop_on_nan: stop after a step whose loss or gradient isn't finite.
    """

    training: bool
    micro_batch_size: int | None = None
    empty_shares: bool = False
    bitwise_lanes: int = 0
    stop_on_nan: bool = True

    def micro_batches(self, batch_rows: int) -> int:
        """Micro-batches of a step, where the graph is made for their number; else 0."""
        if not self.bitwise_lanes:
            return 0
        assert self.micro_batch_size is not None
        return -(-batch_rows // self.micro_batch_size)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is a mean over rows, unless it is listed here. Found out on real rows, see `proof`.

    Attributes:
        summed_losses: entries of `model.losses` that are sums over rows.
        met_losses: compiled losses in which rows meet: computed of the outputs of all workers.
        met_metrics: whether rows meet in the metrics, or their states are no sums.
        summed_state: places of the variables whose increments are sums over rows.
        same_state: places of those that every share changes in the same way.
    """

    summed_losses: frozenset[int] = frozenset()
    met_losses: frozenset[int] = frozenset()
    met_metrics: bool = False
    summed_state: frozenset[str] = frozenset()
    same_state: frozenset[str] = frozenset()
