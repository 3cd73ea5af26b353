"""Where the rows of an epoch's steps come from."""

from collections.abc import Callable
from typing import Any, Protocol

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.plan import Plan, Shares

Tensor = Any

SAMPLED_ROWS = 32


def sampled_rows(batch_rows: int, micro_batch_size: int | None, size: int) -> int:
    """How many rows of a global mini-batch `Source.sample` gives.

    Every worker computes them at once: not many more than fit into its memory.
    """
    most = max(2, micro_batch_size) if micro_batch_size else max(8, -(-batch_rows // size))
    return min(batch_rows, most, SAMPLED_ROWS)


class Source(Protocol):
    """Rows of arrays (`array_source`) or of a data set (`item_source`), step by step.

    Attributes:
        plan: of the steps; its steps, micro-batch size and seed hold for every source.
        signature: structure, dtypes and shapes of the rows.
    """

    plan: Plan
    signature: Signature

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        ...

    def sample(self) -> list[Tensor]:
        """Some rows of the first step, the same on every worker. Collective."""
        ...

    def reset(self, epochs: int = 0) -> None:
        """Be as at the beginning, with so many whole epochs behind."""
        ...

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Begin epoch `epoch`, counted from 0, with step `first`."""
        ...

    def end_epoch(self) -> None:
        """Read no more; the epoch may have been left before its last step."""
        ...

    def stop_of_call(self, first: int, stop: int, same_graph: Callable[[int, int], bool]) -> int:
        """Up to where the steps `first` to `stop - 1` can be made in one call.

        Args:
            first: the first step.
            stop: the first one that is not wanted any more.
            same_graph: see `Steps.same_graph`.
        """
        ...

    def start_reading(self, first: int, stop: int) -> Callable[[], tuple[Shares, list[Tensor]]]:
        """Begin to read this worker's rows of the steps.

        Returns:
            What waits for them and returns them. Every worker calls it, in the order of steps.
        """
        ...

    def where(self, step: int, batch_rows: int, rank: int) -> str:
        """Name the rows that `rank` computes of a step with so many rows."""
        ...
