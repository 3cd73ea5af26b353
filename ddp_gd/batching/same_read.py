"""Whether all workers have read the same mini-batch, where every worker reads."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ddp_gd.batching.batches import Batch, digest
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import MismatchError


class Different(Exception):
    """The workers have not read the same; what each one has, in words, in the order of ranks."""

    def __init__(self, words: list[str]):
        super().__init__(words)
        self.words = words

    def named(self, where: str, name: str) -> MismatchError:
        """The error to raise.

        Args:
            where: the step that the mini-batch was read for.
            name: of the mini-batch.
        """
        others: dict[str, list[str]] = {}
        for rank, text in enumerate(self.words):
            others.setdefault(text, []).append(str(rank))
        found = "; ".join(
            f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)} read {text}"
            for text, ranks in others.items()
        )
        return MismatchError(
            f"The workers read different mini-batches for {where}, {name}: {found}. Nothing was "
            "computed of it. Let every worker read the same: seed what is drawn at random "
            "(Dataset.shuffle(seed=...), or a generator made from a seed, the epoch and the "
            "item's number), and give all of them the same files; or let rank 0 alone read "
            "(read='rank 0')."
        )


def require_same_read(
    communicator: Communicator, batch: Batch | None, error: BaseException | None
) -> None:
    """Compare what this worker has read with what the others have. Collective.

    Args:
        communicator: the workers.
        batch: what it has read; None where the data have ended, or can't be read.
        error: why not.

    Raises:
        Different: on every worker.
    """
    text = "the end" if error is None else f"{type(error).__name__}: {error}"
    told = digest([np.array(text)] if batch is None else batch.leaves)
    own = np.frombuffer(told, np.uint8)
    digests = communicator.allgather(tf.constant(own[None])).numpy()  # (workers, 32)
    if (digests == digests[0]).all():
        return
    words = f"no mini-batch ({text})"
    if batch is not None:
        words = f"{batch.rows} rows with SHA-256 {told.hex()[:16]}"
    raise Different(agree.gather_json(communicator, words)) from error
