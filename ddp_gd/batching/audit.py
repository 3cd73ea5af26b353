"""Which micro-batches are computed once more, and by whom.

In bitwise mode what a micro-batch gives depends on weights, rows and its number alone, so any
worker can compute it again and compare. Integers only, as the plan is: every worker draws the same
by itself, and nobody needs a message.

A share has places 0, 1, 2, ... for its micro-batches. Of each step some places are drawn, and for
each of them a distance: worker w then computes, too, what worker w + distance has at that place. So
all of them audit equally many, and an audited part of 5 % costs 5 %.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddp_gd.batching.plan import Plan, block
from ddp_gd.errors import ConfigError

# Other numbers than those of the epochs' orders and of the validation's rows.
_STREAM = 2**32 - 2


class Again(NamedTuple):
    """What one worker computes once more in some consecutive steps, ready for a graph.

    The positions of its rows in the epoch's order are `positions`; whoever reads them puts them
    into `leaves`.
    """

    places: np.ndarray  # bool, (steps, places): which of its share another worker computes, too
    numbers: np.ndarray  # int32, (audits,): micro-batches, step after step
    offsets: np.ndarray  # int32, (steps + 1,): where each step's begin in `numbers`, and the end
    row_offsets: np.ndarray  # int32, (audits + 1,): where the rows of each begin, and the end
    positions: np.ndarray  # int64, (rows,)
    leaves: Sequence[Any] = ()


@dataclasses.dataclass(frozen=True)
class Audit:
    """Draws what is computed once more.

    Attributes:
        part: of all micro-batches, above 0 and up to 1.
        seed: of the plan.
        hosts: of each worker, by its rank.
    """

    part: float
    seed: int
    hosts: tuple[str, ...]

    def pairs(self, epoch: int, step: int, micro_batches: int) -> dict[int, tuple[int, int]]:
        """The micro-batches of a step that are audited, each with its `(owner, auditor)`."""
        size = len(self.hosts)
        found = {}
        for place, distance in self._drawn(epoch, step, micro_batches):
            for owner in range(size):
                first, stop = block(micro_batches, size, owner)
                if first + place < stop:
                    found[first + place] = owner, (owner - distance) % size
        return dict(sorted(found.items()))

    def again(self, plan: Plan, epoch: int, steps: range, rank: int) -> Again:
        """What worker `rank` computes once more in these steps, and which of its own others do.

        Args:
            plan: of the training, with micro-batches.
            epoch: counted from 0; its order is that of the rows.
            steps: all with equally many micro-batches.
            rank: the worker.
        """
        count = plan.micro_batches(steps[0])
        places = np.zeros((len(steps), block(count, len(self.hosts), 0)[1]), bool)
        numbers: list[int] = []
        offsets, row_offsets, positions = [0], [0], [np.zeros(0, np.int64)]
        for row, step in enumerate(steps):
            places[row, [place for place, _ in self._drawn(epoch, step, count)]] = True
            for number, (_, auditor) in self.pairs(epoch, step, count).items():
                if auditor == rank:
                    numbers.append(number)
                    positions.append(plan.micro_batch(step, number))
                    row_offsets.append(row_offsets[-1] + len(positions[-1]))
            offsets.append(len(numbers))
        return Again(
            places,
            np.array(numbers, np.int32),
            np.array(offsets, np.int32),
            np.array(row_offsets, np.int32),
            np.concatenate(positions),
        )

    def _drawn(self, epoch: int, step: int, micro_batches: int) -> list[tuple[int, int]]:
        """The places that are audited in a step, each with the distance of owner and auditor."""
        places = block(micro_batches, len(self.hosts), 0)[1]
        r = np.random.default_rng([self.seed, _STREAM, epoch, step])
        taken = r.random(places) < self.part
        which = r.integers(len(self._distances), size=places)
        return [(place, self._distances[which[place]]) for place in np.flatnonzero(taken).tolist()]

    @functools.cached_property
    def _distances(self) -> list[int]:
        """Those at which most workers have one of another host; of one process its own, 0."""
        size = len(self.hosts)
        if size == 1:
            return [0]
        apart = [
            sum(self.hosts[w] != self.hosts[(w + d) % size] for w in range(size))
            for d in range(1, size)
        ]
        return [d for d, count in enumerate(apart, 1) if count == max(apart)]


def require_part(part: Any) -> float:
    """Return the part as a number.

    Raises:
        ConfigError: it is none from 0 to 1.
    """
    number = isinstance(part, (int, float, np.integer, np.floating)) and not isinstance(part, bool)
    if not number or not 0 <= part <= 1:
        raise ConfigError(
            f"audit={part!r} must be the part of all micro-batches that is computed once more: "
            "from 0, which is none, to 1, such as 0.01."
        )
    return float(part)
