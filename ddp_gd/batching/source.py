"""Where the rows of an epoch's steps come from."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.plan import Again, Shares

Tensor = Any
SameGraph = Callable[[int, int], bool]


class Rows(NamedTuple):
    """One worker's rows of some consecutive steps, and how they are cut."""

    shares: Shares
    leaves: list[Tensor]
    again: Again | None = None  # what it computes once more, see `Audit`


SAMPLED_ROWS = 32


def sampled_rows(batch_rows: int, micro_batch_size: int | None, size: int) -> int:
    """How many rows of a global mini-batch `Source.sample` gives.

    Every worker computes them at once: not many more than fit into its memory. But two rows that a
    layer shuffles are in their own order every other time.
    """
    most = max(3, micro_batch_size) if micro_batch_size else max(8, -(-batch_rows // size))
    return min(batch_rows, most, SAMPLED_ROWS)


class Source(Protocol):
    """Rows of arrays (`array_source`) or of a data set (`item_source`), step by step.

    Attributes:
        signature: structure, dtypes and shapes of the rows.
        micro_batch_size: rows of a micro-batch; None makes each share one micro-batch.
        seed: of the order, 0 where there is none.
        steps: of the epoch that was begun last, before that of the first one; None where nobody
            knows before it ends.
        batch_rows: of a whole global mini-batch, as far as that is known.
        marks: whether `mark` will be asked for.
    """

    signature: Signature
    micro_batch_size: int | None
    seed: int
    steps: int | None
    batch_rows: int
    marks: bool

    def has_empty_shares(self, size: int) -> bool:
        """Tell whether, in some step, one of `size` workers may have nothing to compute."""
        ...

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        ...

    def sample(self) -> list[Tensor]:
        """Some rows of the first step, the same on every worker. Collective."""
        ...

    def reset(self, epochs: int = 0) -> None:
        """Be as at the beginning, with so many whole epochs behind."""
        ...

    def mark(self, step: int) -> dict[str, str]:
        """What tells, when a checkpoint is gone on with, that the data are still the same.

        Args:
            step: of this epoch, before which the training would go on; 0 for the next epoch's.
        """
        ...

    def go_to(self, epoch: int, step: int, mark: Mapping[str, str]) -> bool:
        """Be before this step, with all epochs before behind. Collective.

        Args:
            epoch: counted from 0; `begin_epoch` comes next, with this epoch and step.
            step: of the epoch.
            mark: what `mark` returned there.

        Returns:
            False where the data come in another order than they did.
        """
        ...

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Begin epoch `epoch`, counted from 0, with step `first`."""
        ...

    def end_epoch(self) -> None:
        """Read no more; the epoch may have been left before its last step."""
        ...

    def start_reading(
        self, first: int, stop: int, same_graph: SameGraph
    ) -> Callable[[], Rows | None]:
        """Begin to read this worker's rows of steps from `first` on, up to `stop` at most.

        Args:
            first: the first step.
            stop: the first one that is not wanted any more.
            same_graph: tells whether steps of so many rows can be made in one call, see
                `Steps.same_graph`.

        Returns:
            What waits for the rows of one step or more, and returns them; None where the data have
            ended. Every worker calls it, in the order of steps.
        """
        ...

    def where(self, step: int, batch_rows: int, rank: int) -> str:
        """Name the rows that `rank` computes of a step with so many rows."""
        ...

    def close(self) -> None:
        """Give back threads; the source isn't used any more."""
        ...


def warn_of_an_early_end(made: int, wanted: int) -> None:
    """Say that an epoch has fewer steps than were asked for, as Keras does."""
    warnings.warn(
        f"The data ran out after {made} of the {wanted} steps of this epoch; the next one begins "
        "with them anew. Give data for steps_per_epoch * epochs mini-batches, for example with "
        "Dataset.repeat(), or fewer steps.",
        stacklevel=2,
    )
