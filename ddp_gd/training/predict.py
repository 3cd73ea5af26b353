"""`predict`: the model's outputs for many rows, computed by all workers together."""

import sys
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching import sources
from ddp_gd.batching.arrays import Signature
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.job import bitwise, runtime
from ddp_gd.training import identity, replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.epochs import BatchHooks
from ddp_gd.training.inputs import open_inputs

_BYTES_PER_EXCHANGE = 2**28


@runtime.collective
def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: int | str = "auto",
    steps: int | None = None,
    callbacks: list[keras.callbacks.Callback] | None = None,
    read: Literal["rank 0", "every worker"] = "rank 0",
) -> Any:
    """Compute the outputs of `model` as `model.predict` would, on all workers of the job together.

    Every worker calls it with the same arguments. Each takes consecutive mini-batches and computes
    them whole, so the outputs are the same bits at any number of workers, on as many threads.

    Args:
        model: built or not, compiled or not; its weights are rank 0's.
        x: features: arrays in memory or memory-mapped, nested dicts, tuples and lists of them, a
            `keras.utils.PyDataset`, of which each worker reads its own items only, or a
            `tf.data.Dataset`, a generator or another iterable, read by rank 0.
        batch_size: rows of a mini-batch; None is 32. The items of a data set are mini-batches
            already.
        verbose: as in `fit`; a bar shows rank 0's own part.
        steps: compute so many mini-batches only; None computes all.
        callbacks: as in `fit`. Each worker's see the mini-batches that it computes, counted from 0.
            One may set `model.stop_predicting`: what comes after that mini-batch is left out.
        read: `"every worker"` lets all read all that can only be read in order, as in `fit`.

    Returns:
        The outputs for all rows, in their order, on every worker: an array, or what the model
        returns with arrays in the place of tensors.

    Raises:
        ConfigError, DataError: an argument that can't be used.
        ModelError: outputs that are no arrays with the same shape for every mini-batch.
        MismatchError: another worker was called with something else, or read something else.
    """
    communicator = runtime.communicator()
    wanted = sources.steps_of(model, "steps", steps)
    inputs = open_inputs(communicator, x, batch_size, wanted, read)
    if runtime.is_bitwise():
        bitwise.require_preconditions()
    if communicator.size > 1:
        agree.require_same_facts(communicator, inputs.facts)
    forward = _forward(model, inputs.signature)  # builds the model
    if communicator.size > 1:
        agree.require_same_facts(communicator, identity.model_facts(model))
    replicas.synchronize(communicator, model, with_optimizer=False)

    hooks = Hooks(communicator, model, callbacks, verbose, 1, inputs.steps, "predict")
    looks = agree.any_worker(communicator, hooks.every > 0)
    computed = _Computed(model, forward, hooks)
    communicator.attendance.where = "a prediction"
    numbers: list[int] = []
    for number, leaves in inputs.own(lambda: looks and computed.stopped):
        if not computed.stopped:
            computed.add(leaves)
            numbers.append(number)
    computed.end()
    if looks:  # one that stopped leaves out what the others have after it
        ends = [numbers[-1] + 1 if computed.stopped else sys.maxsize]
        end = min(end for (end,) in agree.gather_json(communicator, ends))
        numbers = [number for number in numbers if number < end]
        computed.cut(len(numbers))
    joined = _join(communicator, computed.outputs, numbers)
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


def _join(
    communicator: Communicator, outputs: list[list[np.ndarray]], numbers: list[int]
) -> list[Any]:
    """Every worker's outputs, one array for each place in the model's outputs. Collective.

    Args:
        communicator: the workers.
        outputs: this one's, of each place those of each of its mini-batches.
        numbers: of these mini-batches.
    """
    mine: list[dict[str, Any]] = []
    for of_leaf in outputs:
        kinds = {(v.dtype.name, v.shape[1:], v.ndim) for v in of_leaf}
        rows = [len(np.atleast_1d(v)) for v in of_leaf]
        mine.append({"kinds": sorted(kinds), "rows": rows, "numbers": numbers})
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
        rows = [sum(theirs[place]["rows"]) for theirs in everyone]
        empty = np.empty((0, *shape), tf.as_dtype(name).as_numpy_dtype)
        own = np.concatenate([empty, *map(np.atleast_1d, of_leaf)])
        of_leaf.clear()
        whole = own if communicator.size == 1 else _gather(communicator, own, rows)
        found_numbers = [number for theirs in everyone for number in theirs[place]["numbers"]]
        lengths = [length for theirs in everyone for length in theirs[place]["rows"]]
        if found_numbers != sorted(found_numbers):
            whole = whole[_in_order(found_numbers, lengths)]
        # Keras gives one number of each mini-batch as an array, but of a single one as it is.
        joined.append(whole[0] if ndim == 0 and len(found_numbers) == 1 else whole)
    return joined


def _in_order(numbers: list[int], lengths: list[int]) -> np.ndarray:
    """Where the rows of the mini-batches stand, in the order of the mini-batches' numbers."""
    begins = np.cumsum([0, *lengths])
    pieces = [np.arange(begins[i], begins[i + 1]) for i in np.argsort(numbers)]
    return np.concatenate(pieces)


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
