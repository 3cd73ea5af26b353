"""`predict`: the model's outputs for many rows, computed by all workers together."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching import sources
from ddp_gd.batching.arrays import Arrays, Signature
from ddp_gd.batching.items import Items, digest, is_dataset, open_items
from ddp_gd.batching.plan import Plan, block
from ddp_gd.batching.source import warn_of_an_early_end
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import MismatchError, ModelError
from ddp_gd.job import bitwise, runtime
from ddp_gd.training import identity, replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.epochs import BatchHooks

_BYTES_PER_EXCHANGE = 2**28


def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: int | str = "auto",
    steps: int | None = None,
    callbacks: list[keras.callbacks.Callback] | None = None,
) -> Any:
    """Compute the outputs of `model` as `model.predict` would, on all workers of the job together.

    Every worker calls it with the same arguments. Each takes consecutive mini-batches and computes
    them whole, so the outputs are the same bits at any number of workers, on as many threads.

    Args:
        model: built or not, compiled or not; its weights are rank 0's.
        x: features: arrays in memory or memory-mapped, nested dicts, tuples and lists of them, a
            `keras.utils.PyDataset`, of which each worker reads its own items only, or a
            `tf.data.Dataset`, which each worker reads from its beginning to its end.
        batch_size: rows of a mini-batch; None is 32. The items of a data set are mini-batches
            already.
        verbose: as in `fit`; a bar shows rank 0's own part.
        steps: compute so many mini-batches only; None computes all.
        callbacks: as in `fit`. Each worker's see the mini-batches that it computes, counted from 0.
            One may set `model.stop_predicting`: what comes after that mini-batch is left out.

    Returns:
        The outputs for all rows, in their order, on every worker: an array, or what the model
        returns with arrays in the place of tensors.

    Raises:
        ConfigError, DataError: an argument that can't be used.
        ModelError: outputs that are no arrays with the same shape for every mini-batch.
        MismatchError: another worker was called with something else, or read something else.
    """
    communicator = runtime.communicator()
    batches = _batches(x, batch_size, sources.steps_of(model, "steps", steps))
    if runtime.is_bitwise():
        bitwise.require_preconditions()
    if communicator.size > 1:
        agree.require_same_facts(communicator, batches.facts)
    forward = _forward(model, batches.signature)  # builds the model
    if communicator.size > 1:
        agree.require_same_facts(communicator, identity.model_facts(model))
    replicas.synchronize(communicator, model, with_optimizer=False)

    first, stop = block(batches.count, communicator.size, communicator.rank)
    hooks = Hooks(communicator, model, callbacks, verbose, 1, stop - first, "predict")
    looks = agree.any_worker(communicator, hooks.every > 0)
    computed = _Computed(model, forward, hooks)
    communicator.attendance.where = "a prediction"
    digests = []
    batches.begin()
    # What every worker has to read, in one order, is compared to the end.
    numbers = range(batches.count) if batches.in_order else range(first, stop)
    for number, leaves in zip(numbers, _read_ahead(batches, numbers), strict=True):
        if batches.in_order and communicator.size > 1:
            digests.append(digest(leaves))
        if first <= number < stop and not computed.stopped:
            computed.add(leaves)
    computed.end()
    batches.end()
    if digests:
        _require_same(communicator, batches, digests)
    count = batches.count
    if looks:  # one that stopped leaves out what the others have after it
        ends = [first + len(computed) if computed.stopped else count]
        count = min(end for (end,) in agree.gather_json(communicator, ends))
        computed.cut(max(0, count - first))
    joined = _join(communicator, computed.outputs, count)
    return tf.nest.pack_sequence_as(forward.structured_outputs, joined)


class _Computed:
    """The mini-batches that this worker computes, one after the other.

    Attributes:
        outputs: of each place in the model's outputs, those of each mini-batch.
        stopped: whether a callback wanted no more.
    """

    def __init__(self, model: keras.Model, forward: Any, hooks: Hooks):
        self._model, self._forward, self._hooks = model, forward, hooks
        self.outputs: list[list[np.ndarray]] = [[] for _ in tf.nest.flatten(forward.outputs)]
        self.stopped = model.stop_predicting = False
        self._batches = BatchHooks(
            hooks.every,
            hooks.callbacks.on_predict_batch_begin,
            hooks.callbacks.on_predict_batch_end,
        )
        hooks.callbacks.on_predict_begin()

    def __len__(self) -> int:
        return len(self.outputs[0])

    def add(self, leaves: list[np.ndarray]) -> None:
        """Compute one."""
        self._batches.begin(len(self))
        with tf.device("/cpu:0"):
            rows = [tf.convert_to_tensor(leaf) for leaf in leaves]
        result = self._forward(rows)
        for of_leaf, value in zip(self.outputs, tf.nest.flatten(result), strict=True):
            of_leaf.append(value.numpy())
        if self._batches.end(len(self), self._logs()):
            self.stopped = bool(self._model.stop_predicting)

    def end(self) -> None:
        """There are no more."""
        self._batches.finish()
        self._hooks.callbacks.on_predict_end()

    def cut(self, count: int) -> None:
        """Keep the first ones only."""
        self.outputs = [of_leaf[:count] for of_leaf in self.outputs]

    def _logs(self) -> dict[str, Any]:
        """The outputs of the mini-batches that hooks see as one."""
        if not self._hooks.every:
            return {}
        first = (len(self) - 1) // self._hooks.every * self._hooks.every
        joined = [
            np.concatenate(list(map(np.atleast_1d, of_leaf[first:]))) for of_leaf in self.outputs
        ]
        return {"outputs": tf.nest.pack_sequence_as(self._forward.structured_outputs, joined)}


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The mini-batches to compute.

    Attributes:
        count: how many there are.
        signature: of their rows.
        facts: what must be the same on every worker.
        read: returns the rows of a mini-batch.
        in_order: whether they can only be read one after the other.
        threads: how many may be read at once.
        ahead: how many may be read before they are wanted.
        begin: to be called before the first one is read.
        end: and after the last one.
        name: names one for a message.
    """

    count: int
    signature: Signature
    facts: dict[str, str]
    read: Callable[[int], list[np.ndarray]]
    in_order: bool = False
    threads: int = 1
    ahead: int = 1
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None
    name: Callable[[int], str] = str


def _batches(x: Any, batch_size: int | None, steps: int | None) -> _Inputs:
    if is_dataset(x):
        sources.refuse_beside_items(x, None, None, batch_size)
        return _of_items(open_items(x), steps)
    arrays = Arrays(x)
    plan = Plan(arrays.rows, sources.batch_size_of(batch_size, arrays.rows, steps))

    def read(number: int) -> list[np.ndarray]:
        start = number * plan.batch_size
        return arrays.take(np.arange(start, start + plan.step_rows(number)))

    facts = {"batch_size": str(plan.batch_size), "steps": str(steps), **arrays.describe()}
    return _Inputs(_limited(plan.steps, steps), arrays.signature, facts, read)


def _limited(count: int, steps: int | None) -> int:
    """So many mini-batches of those that there are."""
    if steps is not None and steps > count:
        warn_of_an_early_end(count, steps)
    return min(count, steps or count)


def _of_items(items: Items, steps: int | None) -> _Inputs:
    def read(number: int) -> list[np.ndarray]:
        arrays = items.item(number)
        return arrays.take(np.arange(arrays.rows))

    return _Inputs(
        _limited(items.count, steps),
        items.signature,
        {"steps": str(steps), **items.describe()},
        read,
        in_order=not items.shuffled,
        threads=items.threads,
        ahead=items.ahead,
        begin=lambda: items.begin_epoch(0),
        end=items.end_epoch,
        name=items.name,
    )


def _forward(model: keras.Model, signature: Signature) -> Any:
    """The traced function of one mini-batch: `model.predict_step`, which a user may override.

    Raises:
        ModelError: its outputs are not tensors of numbers.
    """

    def forward(rows: list[Any]) -> Any:
        return model.predict_step(keras.utils.pack_x_y_sample_weight(*signature.unpack(rows)))

    function = tf.function(forward, input_signature=[signature.specs], autograph=False)
    traced = function.get_concrete_function()
    for output in tf.nest.flatten(traced.structured_outputs):
        dense = tf.is_tensor(output) and not isinstance(output, (tf.RaggedTensor, tf.SparseTensor))
        if not dense or output.dtype in (tf.string, tf.variant):
            raise ModelError(
                f"The model has the output {output}, and only dense tensors of numbers can be "
                "put together from several workers. Use model.predict, or change the output."
            )
    return traced


def _read_ahead(batches: _Inputs, numbers: Iterable[int]) -> Iterator[list[np.ndarray]]:
    """Read the mini-batches in threads of their own, some of them before they are wanted."""
    readers = ThreadPoolExecutor(batches.threads, thread_name_prefix="ddp_gd_reader")
    reading: deque[Future[list[np.ndarray]]] = deque()
    try:
        for number in numbers:
            reading.append(readers.submit(batches.read, number))
            if len(reading) > batches.ahead:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
    finally:
        readers.shutdown(cancel_futures=True)


def _require_same(communicator: Communicator, batches: _Inputs, digests: list[bytes]) -> None:
    """Refuse outputs of which nobody knows which rows they belong to. Collective.

    Raises:
        MismatchError: on every worker, where they have not read the same mini-batches.
    """
    own = np.frombuffer(b"".join(digests), np.uint8).reshape(1, len(digests), -1)
    found = communicator.allgather(tf.constant(own)).numpy()  # (workers, mini-batches, 32)
    different = (found != found[0]).any(axis=2)
    if not different.any():
        return
    number = int(different.any(axis=0).argmax())
    ranks = ", ".join(map(str, np.flatnonzero(different[:, number])))
    raise MismatchError(
        f"The workers read different mini-batches as {batches.name(number)}: rank {ranks} did not "
        "read what rank 0 read, so its outputs would belong to other rows. Let every worker read "
        "the same: leave out Dataset.shuffle, or give it a seed."
    )


def _join(communicator: Communicator, outputs: list[list[np.ndarray]], count: int) -> list[Any]:
    """Every worker's outputs, one array for each place in the model's outputs. Collective."""
    mine: list[dict[str, Any]] = []
    for of_leaf in outputs:
        kinds = {(v.dtype.name, v.shape[1:], v.ndim) for v in of_leaf}
        mine.append({"kinds": sorted(kinds), "rows": sum(len(np.atleast_1d(v)) for v in of_leaf)})
    everyone = agree.gather_json(communicator, mine) if communicator.size > 1 else [mine]
    joined = []
    for place, of_leaf in enumerate(outputs):
        found = {repr(kind): kind for theirs in everyone for kind in theirs[place]["kinds"]}
        if len(found) > 1:
            shapes = " and ".join(f"{name}{list(shape)}" for name, shape, _ in found.values())
            raise ModelError(
                f"Output {place} of the model has rows of different kinds, {shapes}, in different "
                "mini-batches. Let it have one shape: pad the rows of x to the same length."
            )
        ((name, shape, ndim),) = found.values()
        rows = [theirs[place]["rows"] for theirs in everyone]
        empty = np.empty((0, *shape), tf.as_dtype(name).as_numpy_dtype)
        own = np.concatenate([empty, *map(np.atleast_1d, of_leaf)])
        of_leaf.clear()
        whole = own if communicator.size == 1 else _gather(communicator, own, rows)
        # Keras gives one number of each mini-batch as an array, but of a single one as it is.
        joined.append(whole[0] if ndim == 0 and count == 1 else whole)
    return joined


def _gather(communicator: Communicator, own: np.ndarray, rows: list[int]) -> np.ndarray:
    """All workers' rows, in the order of ranks: in pieces, so that no message is too large."""
    whole = np.empty((sum(rows), *own.shape[1:]), own.dtype)
    # As bytes: every dtype travels. (rows, bytes of a row)
    sent = own.reshape(-1).view(np.uint8).reshape(len(own), -1) if own.size else own
    width = whole.nbytes // max(len(whole), 1)
    if width == 0:
        return whole
    received = whole.reshape(-1).view(np.uint8).reshape(len(whole), width)
    most = max(1, _BYTES_PER_EXCHANGE // (width * len(rows)))
    begins = np.cumsum([0, *rows])
    for start in range(0, max(rows), most):
        piece = np.ascontiguousarray(sent[start : start + most]).reshape(-1).view(np.uint8)
        arrived = communicator.allgather(tf.constant(piece)).numpy().reshape(-1, width)
        for begin, length in zip(begins, rows, strict=False):
            taken = min(most, max(length - start, 0))
            received[begin + start : begin + start + taken] = arrived[:taken]
            arrived = arrived[taken:]
    return whole
