"""Which rows make up each step, which of them each worker computes, and what it computes twice.

Integers in, integers out: nothing here knows a communicator, a framework or a clock, so every
worker works out the same plan by itself, and none is ever sent.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ddp_gd.errors import ConfigError

# Other numbers than those of the epochs' orders and of the validation's rows.
_STREAM = 2**32 - 2


def block(total: int, parts: int, index: int) -> tuple[int, int]:
    """Return `(start, stop)` of block `index` when `total` items are cut into `parts` blocks.

    Blocks are consecutive, and their sizes differ by at most one, the larger ones first; with fewer
    items than parts the last blocks are empty.
    """
    size, larger = divmod(total, parts)
    start = index * size + min(index, larger)
    return start, start + size + (index < larger)


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker computes of one step.

    Attributes:
        start: first position in the global mini-batch that it computes.
        stop: first position that it does not compute any more; `stop == start` is an empty share.
        micro_batch: the number, within the global mini-batch, of its first micro-batch.
    """

    start: int
    stop: int
    micro_batch: int


def share_of(rows: int, micro_batch_size: int | None, rank: int, size: int) -> Share:
    """What worker `rank` of `size` computes of a global mini-batch: consecutive micro-batches.

    Args:
        rows: of the global mini-batch.
        micro_batch_size: rows in one micro-batch, or None: a share is then one micro-batch.
        rank: the worker.
        size: how many workers there are.
    """
    if micro_batch_size is None:
        return Share(*block(rows, size, rank), micro_batch=rank)
    micro_batches = -(-rows // micro_batch_size)
    first, last = block(micro_batches, size, rank)
    return Share(
        start=min(rows, first * micro_batch_size),
        stop=min(rows, last * micro_batch_size),
        micro_batch=first,
    )


@dataclasses.dataclass(frozen=True)
class Shares:
    """What one worker computes of n consecutive steps.

    Attributes:
        positions: int64, the places of its rows in the epoch's order, step after step.
        offsets: int32, shape (n + 1,): where each step's rows begin in `positions`, and the end.
        batch_rows: int32, shape (n,): rows of each step's global mini-batch.
        starts: int32, shape (n,): `Share.start` of each step.
    """

    positions: np.ndarray
    offsets: np.ndarray
    batch_rows: np.ndarray
    starts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """The global mini-batches of every epoch, as a pure function of a few integers.

    Attributes:
        rows: observations in the training data.
        batch_size: observations in one global mini-batch; the last of an epoch may be smaller.
        micro_batch_size: rows in one micro-batch, or None: a share is then one micro-batch.
        shuffle: True for a new order each epoch, `"batch"` for a new order inside each global
            mini-batch, False for the order of the data.
        seed: what the order depends on, beside the epoch.
    """

    rows: int
    batch_size: int
    micro_batch_size: int | None = None
    shuffle: bool | Literal["batch"] = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"The data have {self.rows} rows; training needs at least one.")
        for name in ("batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if value is None and name == "micro_batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number, 1 or more.")
        if min(self.batch_size, self.rows) >= 2**31:
            raise ConfigError(
                f"batch_size={self.batch_size} takes {min(self.batch_size, self.rows)} rows in one "
                "update; at most 2**31 - 1 are counted. Take a smaller batch_size."
            )
        if self.shuffle not in (True, False, "batch"):
            raise ConfigError(f"shuffle={self.shuffle!r} must be True, False or 'batch'.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed!r} must be from 0 to 2**63 - 1.")

    @property
    def steps(self) -> int:
        """Steps in one epoch."""
        return -(-self.rows // self.batch_size)

    def step_rows(self, step: int) -> int:
        """Rows of the global mini-batch of `step`."""
        return min(self.batch_size, self.rows - step * self.batch_size)

    def micro_batches(self, step: int) -> int:
        """Micro-batches of a step, where there are any."""
        assert self.micro_batch_size is not None
        return -(-self.step_rows(step) // self.micro_batch_size)

    def micro_batch(self, step: int, number: int) -> np.ndarray:
        """The positions of a micro-batch's rows in the epoch's order, int64."""
        assert self.micro_batch_size is not None
        first = number * self.micro_batch_size
        stop = min(first + self.micro_batch_size, self.step_rows(step))
        return np.arange(first, stop, dtype=np.int64) + step * self.batch_size

    def share(self, step: int, rank: int, size: int) -> Share:
        """What worker `rank` of `size` computes of `step`: consecutive micro-batches."""
        return share_of(self.step_rows(step), self.micro_batch_size, rank, size)

    def has_empty_shares(self, size: int) -> bool:
        """Tell whether, in some step, one of `size` workers has nothing to compute."""
        last = self.share(self.steps - 1, size - 1, size)
        return last.start == last.stop  # the last step is the smallest, the last share too

    def shares(self, first: int, stop: int, rank: int, size: int) -> Shares:
        """Worker `rank`'s shares of the steps `first` to `stop - 1`, ready for arrays."""
        full = min(stop, self.rows // self.batch_size)  # steps before this one are all alike
        positions, lengths, starts = [], [], []
        if first < full:
            share = self.share(first, rank, size)
            begins = np.arange(first, full, dtype=np.int64) * self.batch_size
            within = np.arange(share.start, share.stop, dtype=np.int64)
            positions.append((begins[:, None] + within).ravel())  # (steps, rows of a share) -> flat
            lengths += [len(within)] * len(begins)
            starts += [share.start] * len(begins)
        for step in range(max(first, full), stop):
            share = self.share(step, rank, size)
            positions.append(np.arange(share.start, share.stop) + step * self.batch_size)
            lengths.append(share.stop - share.start)
            starts.append(share.start)
        return Shares(
            positions=np.concatenate(positions),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            batch_rows=np.minimum(
                self.batch_size, self.rows - np.arange(first, stop) * self.batch_size
            ).astype(np.int32),
            starts=np.array(starts, np.int32),
        )


def plan_of(
    rows: int,
    batch_size: int | str,
    micro_batch_size: int | None = None,
    shuffle: bool | Literal["batch"] = False,
    seed: int = 0,
    *,
    bitwise: bool = False,
) -> Plan:
    """Plan a training on the rows of arrays.

    Args:
        rows: observations in the training data.
        batch_size: observations in one global mini-batch, or `"full"` for all there are, as with
            more than there are.
        micro_batch_size: as `Plan` has it.
        shuffle: as `Plan` has it.
        seed: as `Plan` has it.
        bitwise: whether a mini-batch has micro-batches where no size is given, too.

    Raises:
        ConfigError: a size that can't be used.
    """
    if batch_size == "full":
        batch_size = rows
    elif isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise ConfigError(f"batch_size={batch_size!r} must be a whole number or 'full'.")
    batch_size = min(batch_size, rows)
    if micro_batch_size is None and bitwise:
        micro_batch_size = bitwise_micro_batch_size(int(batch_size))
    return Plan(rows, int(batch_size), micro_batch_size, shuffle, seed)


def bitwise_micro_batch_size(batch_size: int) -> int:
    """Rows of a micro-batch where none were asked for: eight pieces or more, of at most 128."""
    return max(1, min(128, batch_size // 8))


class Again(NamedTuple):
    """What one worker computes once more in n consecutive steps, ready for a graph.

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
    """Draws which micro-batches are computed once more, and by whom.

    In bitwise mode what a micro-batch gives depends on weights, rows and its number alone, so any
    worker can compute it again and compare. A share has places 0, 1, 2, ... for its micro-batches.
    Of each step some places are drawn, and for each of them a distance: worker w then computes what
    worker w + distance has at that place, too. So all of them audit equally many, and an audited
    part of 5 % costs 5 %.

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
