"""Handing global mini-batches out: each worker gets the rows of its share from whoever read them.

One `alltoall` of whole numbers carries what it takes for one or several steps: what is in it, then
the rows as they lie in memory, and nothing where there is nothing to send. Where every worker reads
all of them nothing is handed out: they compare what they have read.
"""

from __future__ import annotations

import itertools
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.batches import Batch, digest
from ddp_gd.batching.plan import Share, Shares
from ddp_gd.batching.source import Rows
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import DataError, MismatchError

_ROWS, _END, _ERROR = range(3)
_WORD = 8  # bytes
_MOST_CHARACTERS = 4000


class Handing:
    """One worker's end of it.

    Args:
        communicator: the workers; alone it hands nothing on.
        signature: of the rows.
        share: what a worker gets of a mini-batch: called with its rows, its number among those that
            are handed out together, and the worker's rank.
    """

    def __init__(
        self,
        communicator: Communicator,
        signature: Signature,
        share: Callable[[int, int, int], Share],
    ):
        self._communicator = communicator
        self._rank, self._size = communicator.rank, communicator.size
        self._signature = signature
        self._share = share
        has_gpu = bool(tf.config.list_logical_devices("GPU"))
        self._device = "/gpu:0" if has_gpu else "/cpu:0"
        # Memory for what TensorFlow copies at once; the system would clear new pages each time.
        self._memory: dict[int | str, np.ndarray] = {}

    def own(self, batches: Sequence[Batch]) -> Rows:
        """This worker's rows of mini-batches that it has read itself."""
        parts = self._parts(batches, self._rank)
        leaves = [
            self._joined(n, list(arrays)) for n, arrays in enumerate(zip(*parts, strict=True))
        ]
        return self._rows([batch.rows for batch in batches], leaves)

    def hand_out(self, batches: Sequence[Batch]) -> Rows:
        """Send every worker its rows, and return this one's. Collective with `receive`."""
        header = [_ROWS, len(batches)]
        for batch in batches:
            header += [batch.rows, *(n for leaf in batch.leaves for n in leaf.shape[1:])]
        messages = [
            [] if rank == self._rank else self._message(header, batches, rank)
            for rank in range(self._size)
        ]
        self._exchange(messages)
        return self.own(batches)

    def say_end(self) -> None:
        """Tell the others that the data have ended. Collective with `receive`."""
        self._exchange(self._to_others([_words(_END)]))

    def say_error(self, error: BaseException) -> None:
        """Tell the others that reading has failed. Collective with `receive`."""
        text = str(error)
        if not isinstance(error, DataError):
            lines = "".join(traceback.format_exception(error))[-_MOST_CHARACTERS:]
            text = f"Rank {self._rank} could not read the data:\n{lines}"
        content = text.encode()
        pad = bytes(_padded(len(content)) - len(content))
        self._exchange(self._to_others([_words(_ERROR, len(content)), content, pad]))

    def receive(self) -> Rows | None:
        """This worker's rows of what another one has read; None where the data have ended.

        Raises:
            DataError: reading it has failed.
        """
        content = self._exchange([[]] * self._size)
        header = np.frombuffer(content[: 2 * _WORD], np.int64)
        if header[0] == _END:
            return None
        if header[0] == _ERROR:
            raise DataError(content[2 * _WORD :][: header[1]].tobytes().decode())
        place = 2 * _WORD
        count = int(header[1])

        def numbers(length: int) -> list[int]:
            nonlocal place
            place += length * _WORD
            return np.frombuffer(content[place - length * _WORD : place], np.int64).tolist()

        mine = 0
        batch_rows: list[int] = []
        shapes: list[list[int]] = []
        for number in range(count):
            batch_rows += numbers(1)
            theirs = [numbers(spec.shape.rank - 1) for spec in self._signature.specs]
            part = self._share(batch_rows[-1], number, self._rank)
            if not shapes or part.stop > part.start:
                shapes = theirs  # of those that it gets rows of all are alike
            mine += part.stop - part.start
        leaves = []
        for spec, shape in zip(self._signature.specs, shapes, strict=True):
            (length,) = numbers(1)
            piece = content[place : place + length]
            place += _padded(length)
            if spec.dtype == tf.string:
                leaves.append(tf.io.parse_tensor(piece.tobytes(), tf.string))
            else:
                dtype = np.dtype(spec.dtype.as_numpy_dtype)
                leaves.append(np.frombuffer(piece, dtype).reshape(mine, *shape))
        return self._rows(batch_rows, leaves)

    def _parts(self, batches: Sequence[Batch], rank: int) -> list[list[np.ndarray]]:
        """The rows of mini-batches that a worker gets; none of those of which it gets none."""
        parts = []
        for number, batch in enumerate(batches):
            share = self._share(batch.rows, number, rank)
            parts.append([leaf[share.start : share.stop] for leaf in batch.leaves])
        return [part for part in parts if len(part[0])] or parts[:1]

    def _joined(self, place: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Rows one after the other, until the next call."""
        if len(arrays) == 1 or arrays[0].dtype == object:
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        memory = self._kept(place, arrays[0].dtype.itemsize * math.prod(shape))
        return np.concatenate(arrays, out=memory.view(arrays[0].dtype).reshape(shape))

    def _kept(self, name: int | str, size: int) -> np.ndarray:
        """So many bytes of memory, the same each time."""
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = np.empty(size, np.uint8)
        return self._memory[name][:size]

    def _rows(self, batch_rows: Sequence[int], leaves: Sequence[Any]) -> Rows:
        parts = [self._share(rows, n, self._rank) for n, rows in enumerate(batch_rows)]
        lengths = [part.stop - part.start for part in parts]
        shares = Shares(
            positions=np.concatenate([np.arange(part.start, part.stop) for part in parts]),
            offsets=np.cumsum([0, *lengths]).astype(np.int32),
            batch_rows=np.array(batch_rows, np.int32),
            starts=np.array([part.start for part in parts], np.int32),
        )
        # In one copy, by the thread that hands out: the loop would copy a step's slice.
        with tf.device(self._device):
            tensors = [
                tf.identity(tf.convert_to_tensor(leaf, spec.dtype))
                for leaf, spec in zip(leaves, self._signature.specs, strict=True)
            ]
        return Rows(shares, tensors)

    def _message(self, header: list[int], batches: Sequence[Batch], rank: int) -> list[Any]:
        """The pieces of a worker's message, not copied yet; together they are whole words."""
        message: list[Any] = [_words(*header)]
        parts = self._parts(batches, rank)
        for spec, arrays in zip(self._signature.specs, zip(*parts, strict=True), strict=True):
            if spec.dtype == tf.string:
                with tf.device("/cpu:0"):
                    texts = tf.convert_to_tensor(np.concatenate(arrays), tf.string)
                pieces = [tf.io.serialize_tensor(texts).numpy()]
            else:
                pieces = [np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays]
            length = sum(map(len, pieces))
            message += [_words(length), *pieces, bytes(_padded(length) - length)]
        return message

    def _to_others(self, message: list[Any]) -> list[list[Any]]:
        return [[] if rank == self._rank else message for rank in range(self._size)]

    def _exchange(self, messages: Sequence[list[Any]]) -> np.ndarray:
        """Send each worker its message; what comes from all of them, as bytes."""
        splits = tf.constant([sum(map(len, m)) // _WORD for m in messages], tf.int32)
        length = sum(len(piece) for message in messages for piece in message)
        content = self._kept("message", length)
        place = 0
        for piece in itertools.chain(*messages):
            content[place : place + len(piece)] = np.frombuffer(piece, np.uint8)
            place += len(piece)
        with tf.device("/cpu:0"):
            sent = tf.convert_to_tensor(content.view(np.int64))
            arrived = tf.identity(self._communicator.alltoall(sent, splits))
        # Not `numpy()`, which copies.
        return np.asarray(memoryview(arrived)).view(np.uint8)


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


def _words(*numbers: int) -> bytes:
    return np.array(numbers, np.int64).tobytes()


def _padded(length: int) -> int:
    return -(-length // _WORD) * _WORD
