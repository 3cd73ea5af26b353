"""The mini-batches of a prediction: each is computed whole, by one worker."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.batching import sources
from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.batches import Batch, Feed, digest, from_json, in_words, kind_of
from ddp_gd.batching.feeds import Numbered, Stream
from ddp_gd.batching.handing import Handing
from ddp_gd.batching.plan import Plan, Share, block
from ddp_gd.batching.read_ahead import ReadAhead
from ddp_gd.batching.source import warn_of_an_early_end
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import MismatchError


class Inputs:
    """Mini-batches that can be read by their numbers: each worker reads its own, consecutive ones.

    Args:
        signature: of their rows.
        facts: what must be the same on every worker.
        read: returns the mini-batch with a number.
        own: the first number of this worker, and the first one that isn't its any more.
        threads: how many may be read at once.
        ahead: how many may be read before they are wanted.
        begin: to be called before the first one is read.
        end: and after the last one.

    Attributes:
        signature: of their rows.
        facts: what must be the same on every worker.
        steps: how many this worker computes; None where nobody knows.
    """

    def __init__(
        self,
        signature: Signature,
        facts: dict[str, str],
        read: Callable[[int], Batch | None],
        own: tuple[int, int],
        threads: int = 1,
        ahead: int = 2,
        begin: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
    ):
        self.signature, self.facts = signature, facts
        self._read, self._own, self._threads, self._ahead = read, own, threads, ahead
        self._begin, self._end = begin, end
        self.steps: int | None = own[1] - own[0]

    def own(self, stopped: Callable[[], bool]) -> Iterator[tuple[int, list[Any]]]:
        """This worker's mini-batches, with their numbers; no more once it has `stopped`."""
        first, stop = self._own
        self._begin()
        reader = ReadAhead(
            self._read,
            first,
            stop,
            threads=self._threads,
            ahead=self._ahead,
        )
        try:
            for number in range(first, stop):
                batch = reader.take(number)
                assert batch is not None
                yield number, batch.leaves
                if stopped():
                    break
        finally:
            reader.close()
        self._end()


class StreamInputs:
    """Mini-batches that come one after the other: rank 0 reads, and hands them out in turn.

    Args:
        communicator: the workers.
        feed: the data; None on workers that don't read.
        told: what rank 0 says of it, see `sources.open_feed`.
        most: how many to compute; None for all.
        everywhere: whether every worker reads all of them, and keeps its own.

    Attributes:
        signature, facts, steps: as of `Inputs`.
    """

    def __init__(
        self,
        communicator: Communicator,
        feed: Feed | None,
        told: dict[str, Any],
        most: int | None,
        everywhere: bool,
    ):
        self.signature = from_json(told["signature"])
        count = told["count"]
        self.facts = {
            "data": f"{told['kind']}: {in_words(self.signature)}",
            "mini-batches": f"{most} of {count}",
        }
        counts = [n for n in (most, count) if n is not None]
        self.steps = -(-min(counts) // communicator.size) if counts else None
        self._communicator, self._feed, self._most = communicator, feed, most
        self._rank, self._size = communicator.rank, communicator.size
        self._compares = everywhere and communicator.size > 1
        self._handing = Handing(communicator, self.signature, self._whole)

    def own(self, stopped: Callable[[], bool]) -> Iterator[tuple[int, list[Any]]]:
        """This worker's mini-batches, with their numbers; no more once one has `stopped`."""
        reader = None
        if self._feed is not None:
            self._feed.reset(0)
            self._feed.begin_epoch()
            self._feed.begin_pass(0)
            reader = ReadAhead(
                self._feed.read,
                0,
                sys.maxsize if self._most is None else self._most,
                ahead=self._feed.ahead,
            )
        try:
            if self._compares:
                yield from self._compared(reader)
            else:
                yield from self._rounds(reader, stopped)
        finally:
            if reader is not None:
                reader.close()

    def _rounds(
        self, reader: ReadAhead | None, stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, list[Any]]]:
        """As many mini-batches at a time as there are workers, one for each."""
        first = 0
        while self._most is None or first < self._most:
            rows = self._handed(reader, first)
            if rows is None:
                if self._most is not None and self._rank == 0:
                    warn_of_an_early_end(first, self._most)
                break
            if rows.shares.offsets[-1] > 0:
                yield first + self._rank, rows.leaves
            first += len(rows.shares.batch_rows)
            if agree.any_worker(self._communicator, stopped()):
                break
            if len(rows.shares.batch_rows) < self._size:
                break

    def _handed(self, reader: ReadAhead | None, first: int) -> Any:
        if reader is None:
            return self._handing.receive()
        stop = first + self._size
        batches = []
        try:
            for number in range(first, stop if self._most is None else min(stop, self._most)):
                batch = reader.take(number)
                if batch is None:
                    break
                batches.append(batch)
        except BaseException as error:
            if self._size > 1:
                self._handing.say_error(error)
            raise
        if self._size == 1:
            return self._handing.own(batches) if batches else None
        if not batches:
            self._handing.say_end()
            return None
        return self._handing.hand_out(batches)

    def _compared(self, reader: ReadAhead | None) -> Iterator[tuple[int, list[Any]]]:
        """This worker's own of those that all read; at the end they compare what they have read."""
        assert reader is not None
        digests = []
        number = 0
        error: BaseException | None = None
        try:
            while (self._most is None or number < self._most) and (batch := reader.take(number)):
                digests.append(digest(batch.leaves))
                if number % self._size == self._rank:
                    yield number, batch.leaves
                number += 1
        except (Exception, SystemExit) as found:  # maybe of this worker alone
            error = found
        agree.raise_together(self._communicator, error)
        lengths = {n for (n,) in agree.gather_json(self._communicator, [len(digests)])}
        if len(lengths) > 1:
            raise MismatchError(
                f"The workers read different numbers of mini-batches, {sorted(lengths)}. Let every "
                "worker read the same, or let rank 0 alone read (read='rank 0')."
            )
        if digests:
            self._require_same(digests)

    def _require_same(self, digests: list[bytes]) -> None:
        """Refuse outputs of which nobody knows which rows they belong to. Collective."""
        own = np.frombuffer(b"".join(digests), np.uint8).reshape(1, len(digests), -1)
        found = self._communicator.allgather(tf.constant(own)).numpy()  # (workers, batches, 32)
        different = (found != found[0]).any(axis=2)
        if not different.any():
            return
        number = int(different.any(axis=0).argmax())
        ranks = ", ".join(map(str, np.flatnonzero(different[:, number])))
        assert self._feed is not None
        raise MismatchError(
            f"The workers read different mini-batches as {self._feed.name(number)}: rank {ranks} "
            "did not read what rank 0 read, so its outputs would belong to other rows. Let every "
            "worker read the same: leave out Dataset.shuffle, or give it a seed; or let rank 0 "
            "alone read (read='rank 0')."
        )

    def _whole(self, rows: int, number: int, rank: int) -> Share:
        return Share(0, rows if number % self._size == rank else 0, 0)


def open_inputs(
    communicator: Communicator, x: Any, batch_size: int | None, steps: int | None, read: str
) -> Inputs | StreamInputs:
    """The mini-batches of `x`; the rest as `predict` has it. Collective."""
    sources.require_same_kind(communicator, "x", x, read)
    kind = kind_of(x)
    if kind in ("items", "stream"):
        sources.refuse_beside_items(x, None, None, batch_size)
    if kind == "stream":
        everywhere = read == "every worker"
        feed, told = sources.open_feed(
            communicator, lambda: Stream(x, None, steps is None), "all" if everywhere else "one"
        )
        return StreamInputs(communicator, feed, told, steps, everywhere)
    if kind == "items":
        return _of_items(communicator, Numbered(x, None, steps is None), steps)
    arrays = sources.rows_of(x)
    plan = Plan(arrays.rows, sources.batch_size_of(batch_size, arrays.rows, steps))

    def rows_of(number: int) -> Batch:
        start = number * plan.batch_size
        rows = plan.step_rows(number)
        return Batch(rows, arrays.take(np.arange(start, start + rows)))

    facts = {"batch_size": str(plan.batch_size), "steps": str(steps), **arrays.describe()}
    count = _limited(plan.steps, steps)
    return Inputs(arrays.signature, facts, rows_of, _block(communicator, count))


def _of_items(communicator: Communicator, feed: Numbered, steps: int | None) -> Inputs:
    count = steps if feed.count is None else _limited(feed.count, steps)
    assert count is not None

    def begin() -> None:
        feed.begin_epoch()
        feed.begin_pass(0)

    return Inputs(
        feed.signature,
        {"data": f"{count} items: {in_words(feed.signature)}"},
        feed.read,
        _block(communicator, count),
        feed.threads,
        feed.ahead,
        begin,
        feed.end_epoch,
    )


def _block(communicator: Communicator, count: int) -> tuple[int, int]:
    return block(count, communicator.size, communicator.rank)


def _limited(count: int, steps: int | None) -> int:
    """So many mini-batches of those that there are."""
    if steps is not None and steps > count:
        warn_of_an_early_end(count, steps)
    return min(count, steps or count)
