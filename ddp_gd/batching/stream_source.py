"""Steps whose global mini-batches a data set gives: one worker reads each, and hands it out.

Who reads, and whom it is handed to:

    "one"   rank 0 reads every mini-batch, and hands each worker its share;
    "deal"  worker k mod N reads mini-batch k of a pass, and hands each worker its share;
    "all"   every worker reads every mini-batch, takes its share, and they compare what they read.

Reading goes on in threads (`ReadAhead`). So does handing out: another thread gets the next call's
rows while this call computes. It uses collectives of its own (`Communicator.beside`), always in the
order of steps, one at a time, so that they neither wait for those of the steps nor make them wait.
How many steps a hand-out is for, and where the data end, says the worker that has read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.batches import Batch, Feed, digest, in_words
from ddp_gd.batching.feeds import Stream
from ddp_gd.batching.handing import Different, Handing, require_same_read
from ddp_gd.batching.plan import Share, share_of
from ddp_gd.batching.read_ahead import BYTES_AHEAD, ReadAhead
from ddp_gd.batching.source import Rows, SameGraph, sampled_rows, warn_of_an_early_end
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import DataError

Pattern = Literal["one", "deal", "all"]
# Places of which it is remembered what was read there: more than two hand-outs are ahead.
_DIGESTS = 1024


class StreamSource:
    """The `Source` (see loop.py) of one worker's rows of a data set's mini-batches.

    Args:
        feed: the data set; None on workers that don't read.
        told: what rank 0 says of it: `kind`, `count` of mini-batches in a pass or None.
        signature: of the rows.
        rows: of the first mini-batch.
        pattern: who reads.
        micro_batch_size: rows of a micro-batch, or None.
        seed: of the order, where it is ours.
        steps_per_epoch: None, or how many steps an epoch has: a pass may then last over several.
        communicator: the workers.
        lives_on: whether what an epoch leaves is for the next one; else no more is read.

    Attributes:
        marks: whether `mark` will be asked for.
    """

    def __init__(
        self,
        feed: Feed | None,
        told: dict[str, Any],
        signature: Signature,
        rows: int,
        pattern: Pattern,
        micro_batch_size: int | None,
        seed: int,
        steps_per_epoch: int | None,
        communicator: Communicator,
        lives_on: bool = True,
    ):
        self._lives_on, self.marks = lives_on, False
        self.signature, self.micro_batch_size, self.seed = signature, micro_batch_size, seed
        self.batch_rows = rows
        self._feed, self._pattern = feed, pattern
        self._kind, self._count = told["kind"], told["count"]
        self._wanted = steps_per_epoch
        self.steps = self._steps_from(0)
        self._communicator = communicator
        self._rank, self._size = communicator.rank, communicator.size
        beside = communicator.beside()
        self._compares = pattern == "all" and self._size > 1
        self._beside = beside or communicator
        self._handing = Handing(
            self._beside,
            signature,
            lambda rows, _, rank: share_of(rows, micro_batch_size, rank, communicator.size),
        )
        # Without collectives of its own, a hand-out takes its turn among the others.
        threaded = beside is not None and self._size > 1
        self._hander = ThreadPoolExecutor(1, "ddp_gd_hander") if threaded else None
        self._pending: Future[Rows | None] | None = None
        self._reader: ReadAhead | None = None  # None, too, where this worker doesn't read
        self._alive = False  # whether a pass has been begun and not ended
        self._passes = 0
        self._base = 0  # place in the pass of this epoch's first step
        self._made = 0
        self._ready = False  # whether `go_to` has found the place already
        self._digests: dict[int, str] = {}  # of mini-batches, by their places in the pass

    def has_empty_shares(self, size: int) -> bool:
        """Any mini-batch may have fewer rows than there are workers."""
        return size > 1

    def describe(self) -> dict[str, str]:
        """What must be the same on every worker, in words."""
        count = "mini-batches" if self._count is None else f"{self._count} mini-batches"
        return {
            # Not the content: it may be drawn anew each time.
            "data": f"{count} of {self._kind}: {in_words(self.signature)}",
            "read by": {"one": "rank 0", "deal": "one worker each", "all": "every worker"}[
                self._pattern
            ],
            "micro_batch_size": str(self.micro_batch_size),
            "steps_per_epoch": str(self._wanted),
            "seed": str(self.seed),
        }

    def sample(self) -> list[Any]:
        """Some rows of rank 0's first mini-batch."""
        count = sampled_rows(self.batch_rows, self.micro_batch_size, self._size)
        handing = Handing(
            self._communicator, self.signature, lambda rows, size, rank: Share(0, rows, 0)
        )
        if self._rank > 0:
            found = handing.receive()
        else:
            assert self._feed is not None
            batch = Batch(count, [leaf[:count] for leaf in self._feed.sample.leaves])
            found = handing.own([batch]) if self._size == 1 else handing.hand_out([batch])
        assert found is not None
        return found.leaves

    def reset(self, epochs: int = 0) -> None:
        """Let the next epoch be the one after so many."""
        self._stop_reading()
        self._passes, self._ready = 0, False
        if self._feed is not None:
            self._feed.reset(epochs)

    def mark(self, step: int) -> dict[str, str]:
        """What the first mini-batch of all is, and the one before this step."""
        if self._feed is None or not self._feed.in_order:
            return {}
        last = self._digests.get(self._base + (step or self._made) - 1, "")
        return {"first": self._feed.first, "last": last}

    def go_to(self, epoch: int, step: int, mark: Mapping[str, str]) -> bool:
        """Read up to the place before this step, and look whether it is what was read then."""
        self.reset(epoch)
        if epoch:
            self._skip_epochs(epoch)
        if step:
            self._find_base(epoch)
            self._made, self._ready = step, True
        feed, same = self._feed, True
        if feed is not None and feed.in_order and mark:
            same = feed.first == mark.get("first")
            if same and self._alive and (step or self._wanted):
                batch = feed.read(self._base + self._made - 1)
                same = batch is not None and digest(batch.leaves).hex() == mark.get("last")
        return not agree.any_worker(self._communicator, not same)

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Begin an epoch, which goes on with the pass of the one before, or begins another one."""
        if self._feed is not None:
            self._feed.begin_epoch()
        if self._ready:
            self._ready = False
        else:
            self._find_base(epoch)
        self._made = first
        self.steps = self._steps_from(self._base)

    def end_epoch(self) -> None:
        """Read no more. The data set is told if it was used to the end, as Keras does."""
        if self._pending is not None:  # the epoch was left; so it is for every worker
            pending, self._pending = self._pending, None
            if self._reader is not None:
                self._reader.close()
            self._alive = False
            pending.exception()
        elif self._made == self.steps and self._feed is not None:
            self._feed.end_epoch()
        if self._wanted is None:
            self._stop_reading()

    def start_reading(
        self, first: int, stop: int, same_graph: SameGraph
    ) -> Callable[[], Rows | None]:
        """Begin to hand out the rows of steps from `first` on."""
        if self._hander is not None:
            self._pending = self._hander.submit(self._get, first, stop, same_graph)
        return lambda: self._finish(first, stop, same_graph)

    def where(self, step: int, batch_rows: int, rank: int) -> str:
        """Name the rows that `rank` computes of a step with so many rows."""
        part = share_of(batch_rows, self.micro_batch_size, rank, self._size)
        return f"{part.start} to {part.stop - 1} of {self._name(self._base + step)}"

    def close(self) -> None:
        """Let the threads end."""
        self._stop_reading()
        if self._hander is not None:
            self._hander.shutdown(wait=False, cancel_futures=True)

    def _steps_from(self, base: int) -> int | None:
        """Steps of an epoch that begins at a place of a pass, as far as that is known."""
        if self._count is None:
            return self._wanted
        left = self._count - base
        return left if self._wanted is None else min(self._wanted, left)

    def _find_base(self, epoch: int) -> None:
        """Go on with the pass where the epoch before ended, or begin another one."""
        if self._alive and self._wanted is not None and self._base + self._made != self._count:
            self._base += self._made
            return
        self._stop_reading()
        self._base, self._alive, self._digests = 0, True, {}
        if self._feed is not None:
            self._feed.begin_pass(self._passes if self._wanted else epoch)
        self._passes += 1

    def _skip_epochs(self, epochs: int) -> None:
        """Be where so many epochs end, without using what is in them. Collective."""
        feed = self._feed
        for before in range(epochs if feed is not None else 0):
            assert feed is not None
            self._find_base(before)
            steps = self._steps_from(self._base)
            self._made = steps or 0
            if self._count is None and feed.in_order and (steps or feed.once):
                last = sys.maxsize if steps is None else self._base + steps - 1
                self._alive = feed.read(last) is not None
            if isinstance(feed, Stream):
                feed.end_epoch()  # those of other data sets were called by `reset`
        if self._pattern == "one" and self._size > 1:
            where = [self._passes, int(self._alive), self._base, self._made]
            passes, alive, base, made = agree.gather_json(self._communicator, where)[0]
            self._passes, self._alive, self._base, self._made = passes, bool(alive), base, made

    def _read_from(self, place: int) -> None:
        """Begin to read, with the first place from this one on that is this worker's."""
        feed = self._feed
        assert feed is not None
        every = self._size if self._pattern == "deal" else 1
        if every > 1:
            place += (self._rank - place) % every
        # A pipeline that is read further may draw what the next pass would draw.
        stop = sys.maxsize
        if self.steps is not None and (self._wanted is None or not self._lives_on):
            stop = self._base + self.steps
        self._reader = ReadAhead(feed.read, place, stop, every, feed.threads, feed.ahead)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._alive = None, False

    def _finish(self, first: int, stop: int, same_graph: SameGraph) -> Rows | None:
        """Wait for the hand-out that begins with step `first`.

        Raises:
            DataError, MismatchError: on every worker.
            BaseException: what reading raised, on the worker that has read; DataError on others.
        """
        try:
            # It counts as a collective: whoever waits here is not away.
            with self._communicator.attendance.join():
                if self._pending is None:
                    found = self._get(first, stop, same_graph)
                else:
                    found = self._pending.result()
        except BaseException as error:
            self._pending = None
            self._stop_reading()
            if isinstance(error, Different):
                where = self._communicator.attendance.where
                raise error.named(where, self._name(self._base + first)) from error.__cause__
            raise
        self._pending = None
        if found is not None:
            self._made = first + len(found.shares.batch_rows)
            return found
        if self._wanted and first == 0 and self._base > 0:
            # The data ended with the epoch before, and nobody knew.
            self._alive = False
            self._find_base(0)
            return self.start_reading(first, stop, same_graph)()
        self._alive = False
        if self._wanted and self._rank == 0:
            warn_of_an_early_end(first, self._wanted)
        if first == 0:
            raise DataError(f"The {self._kind} gave nothing in this epoch; nothing was trained.")
        if self._count is not None and self._base + first < self._count:
            raise DataError(
                f"The {self._kind} ended after {self._base + first} elements, and said it has "
                f"{self._count}; see tf.data.experimental.assert_cardinality."
            )
        self.steps = self._made = first
        return None

    def _get(self, first: int, stop: int, same_graph: SameGraph) -> Rows | None:
        """Read, or wait for who reads, and hand out."""
        place = self._base + first
        if self._feed is not None and self._reader is None:
            self._read_from(place)
        if self._compares:
            return self._compared(place)
        reads = self._pattern != "deal" or place % self._size == self._rank
        if self._feed is None or not reads:
            return self._handing.receive()
        most = 1 if self._pattern == "deal" and self._size > 1 else stop - first
        try:
            batches = self._read(place, most, same_graph)
        except BaseException as error:
            if self._size > 1:
                self._handing.say_error(error)
            raise
        if not batches:
            if self._size > 1:
                self._handing.say_end()
            return None
        return self._handing.own(batches) if self._size == 1 else self._handing.hand_out(batches)

    def _read(self, place: int, most: int, same_graph: SameGraph) -> list[Batch]:
        """One mini-batch, and those after it that are there and go with it; none at the end."""
        assert self._reader is not None
        first = self._reader.take(place)
        if first is None:
            return []
        batches, held = [first], first.nbytes
        self._note(place, first)
        while len(batches) < most:
            following = self._reader.ready(place + len(batches))
            if following is None or not _alike(first, following):
                break
            held += following.nbytes
            if held > BYTES_AHEAD or not same_graph(first.rows, following.rows):
                break
            self._reader.take(place + len(batches))
            self._note(place + len(batches), following)
            batches.append(following)
        return batches

    def _note(self, place: int, batch: Batch) -> None:
        """Remember what was read there, for checkpoints."""
        if self.marks:
            self._digests[place] = digest(batch.leaves).hex()
            self._digests.pop(place - _DIGESTS, None)

    def _compared(self, place: int) -> Rows | None:
        """What this worker has read, if all have read the same. Collective."""
        assert self._reader is not None
        batch: Batch | None = None
        error: BaseException | None = None
        try:
            batch = self._reader.take(place)
        except BaseException as found:  # maybe on this worker alone
            error = found
        require_same_read(self._beside, batch, error)
        if error is not None:
            raise error
        if batch is None:
            return None
        self._note(place, batch)
        return self._handing.own([batch])

    def _name(self, place: int) -> str:
        if self._feed is not None:
            return self._feed.name(place)
        return f"{'element' if 'tf.data' in self._kind else 'item'} {place} of the {self._kind}"


def _alike(one: Batch, other: Batch) -> bool:
    """Whether the rows of two mini-batches can stand one after the other."""
    return [leaf.shape[1:] for leaf in one.leaves] == [leaf.shape[1:] for leaf in other.leaves]
