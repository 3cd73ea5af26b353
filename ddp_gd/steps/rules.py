"""How what the shares of a global mini-batch compute makes up what the whole is."""

from __future__ import annotations

import dataclasses


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
