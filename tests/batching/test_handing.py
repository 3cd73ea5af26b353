"""What is handed out arrives as it was, in shares, over an exchange that is only a table."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.batches import Batch
from ddp_gd.batching.handing import Handing
from ddp_gd.batching.plan import share_of
from ddp_gd.errors import DataError

SIZE = 3
SPECS = [
    tf.TensorSpec([None, None, 2], tf.float32),
    tf.TensorSpec([None], tf.string),
    tf.TensorSpec([None, 3], tf.uint8),
    tf.TensorSpec([None], tf.bfloat16),
]


class Table:
    """The workers of an exchange, in threads."""

    size = SIZE

    def __init__(self, rank: int, sent: dict[int, list[Any]], barrier: threading.Barrier):
        self.rank, self._sent, self._barrier = rank, sent, barrier

    def alltoall(self, tensor: Any, splits: Any) -> Any:
        self._sent[self.rank] = tf.split(tensor, splits.numpy().tolist())
        self._barrier.wait(30)
        arrived = tf.concat([self._sent[rank][self.rank] for rank in range(SIZE)], 0)
        self._barrier.wait(30)  # all have theirs before the next exchange
        return arrived


def everywhere(act: Any) -> list[Any]:
    """What `act` returns, or raises, on each worker."""
    sent: dict[int, list[Any]] = {}
    barrier = threading.Barrier(SIZE)
    found: list[Any] = [None] * SIZE

    def run(rank: int) -> None:
        handing = Handing(
            Table(rank, sent, barrier),  # type: ignore[arg-type]
            Signature((0, 1, (2, 3)), SPECS),
            lambda rows, _, rank: share_of(rows, None, rank, SIZE),
        )
        try:
            found[rank] = act(handing, rank)
        except DataError as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def batch(rows: int, length: int) -> Batch:
    """A mini-batch of every kind of leaf."""
    random = np.random.default_rng(rows)
    return Batch(
        rows,
        [
            random.normal(size=(rows, length, 2)).astype("float32"),
            np.array([f"ä{n}" * n for n in range(rows)], object),
            random.integers(0, 256, (rows, 3)).astype("uint8"),
            np.arange(rows).astype(tf.bfloat16.as_numpy_dtype),
        ],
    )


@pytest.mark.parametrize("rows", [[5], [1], [7, 2, 3]])
@pytest.mark.parametrize("sender", [0, 2])
def test_shares_arrive_bit_for_bit(rows: list[int], sender: int) -> None:
    """Several mini-batches at once, of fewer rows than workers, too; from any worker."""
    batches = [batch(n, 4) for n in rows]
    found = everywhere(
        lambda handing, rank: handing.hand_out(batches) if rank == sender else handing.receive()
    )
    for rank, got in enumerate(found):
        parts = [share_of(n, None, rank, SIZE) for n in rows]
        assert got.shares.batch_rows.tolist() == rows
        assert got.shares.starts.tolist() == [part.start for part in parts]
        for number, leaf in enumerate(got.leaves):
            wanted = np.concatenate(
                [b.leaves[number][p.start : p.stop] for b, p in zip(batches, parts, strict=True)]
            )
            if leaf.dtype == tf.string:
                assert [text.decode() for text in leaf.numpy()] == wanted.tolist()
            else:
                assert leaf.numpy().tobytes() == wanted.tobytes()


def test_what_was_handed_out_stays() -> None:
    """The next ones, which are as long, don't change it."""

    def twice(handing: Handing, rank: int) -> list[list[bytes]]:
        def hand(*rows: int) -> Any:
            batches = [batch(n, 4) for n in rows]
            return handing.hand_out(batches) if rank == 0 else handing.receive()

        first = hand(9, 3)
        before = [leaf.numpy().tobytes() for leaf in first.leaves if leaf.dtype != tf.string]
        hand(3, 9)
        after = [leaf.numpy().tobytes() for leaf in first.leaves if leaf.dtype != tf.string]
        return [before, after]

    for before, after in everywhere(twice):
        assert before == after


def test_an_end_and_an_error_arrive() -> None:
    """The end is nothing; an error is a DataError with its traceback, or as it was."""
    ended = everywhere(lambda h, rank: h.say_end() if rank == 1 else h.receive())
    assert ended == [None] * SIZE
    for error, text in ((OSError("äh"), "Rank 1 could not read the data:\nOSError: äh"),
                        (DataError("item 3 is odd"), "item 3 is odd")):  # fmt: skip
        found = everywhere(lambda h, rank, e=error: h.say_error(e) if rank == 1 else h.receive())
        assert found[1] is None
        assert {str(found[0]).strip(), str(found[2]).strip()} == {text}
