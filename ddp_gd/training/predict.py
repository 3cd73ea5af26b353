"""`predict`: the model's outputs for many rows, computed by all workers together."""

import math
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
from ddp_gd.training.inputs import Inputs, StreamInputs, open_inputs

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
        returns with arrays in the place of tensors; a `tf.RaggedTensor`, as in Keras, of what has
        another length in each mini-batch.

    Raises:
        ConfigError, DataError: an argument that can't be used.
        ModelError: outputs that are no arrays with as many axes for every mini-batch.
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
    computed = _Computed(model, forward, hooks)
    numbers = _compute(communicator, inputs, computed, hooks.every > 0)
    joined = _join(communicator, computed.outputs, numbers)
    return tf.nest.pack_sequence_as(forward.structured_outputs, joined)


class _Computed:
    """The mini-batches that this worker computes, one after the other.

    Attributes:
        outputs: of each place in the model's outputs, those of each mini-batch.
        stopped: whether a callback wanted no more, or nothing more can be computed.
        error: why not.
    """

    def __init__(self, model: keras.Model, forward: Any, hooks: Hooks):
        self._model, self._forward, self._hooks = model, forward, hooks
        self.outputs: list[list[np.ndarray]] = [[] for _ in tf.nest.flatten(forward.outputs)]
        self.stopped = model.stop_predicting = False
        self.error: Exception | None = None
        self._batches = BatchHooks(
            hooks.every,
            hooks.callbacks.on_predict_batch_begin,
            hooks.callbacks.on_predict_batch_end,
        )
        hooks.callbacks.on_predict_begin()

    def __len__(self) -> int:
        return len(self.outputs[0])

    def add(self, leaves: list[np.ndarray]) -> None:
        """Compute one; what goes wrong is for all workers, when this one has no others to meet."""
        try:
            self._add(leaves)
        except Exception as error:
            self.stopped, self.error = True, error

    def _add(self, leaves: list[np.ndarray]) -> None:
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


def _compute(
    communicator: Communicator, inputs: Inputs | StreamInputs, computed: _Computed, looks: bool
) -> list[int]:
    """Compute this worker's mini-batches; return their numbers. Collective."""
    looks = agree.any_worker(communicator, looks)
    communicator.attendance.where = "a prediction"
    numbers: list[int] = []
    error: BaseException | None = None
    try:
        for number, leaves in inputs.own(lambda: computed.stopped):
            if not computed.stopped:
                computed.add(leaves)
                numbers.append(number)
    except (Exception, SystemExit) as found:  # of its reader
        error = found
    agree.raise_together(communicator, computed.error or error)
    computed.end()
    if looks:  # one that stopped leaves out what the others have after it
        ends = [numbers[-1] + 1 if computed.stopped else sys.maxsize]
        end = min(end for (end,) in agree.gather_json(communicator, ends))
        numbers = [number for number in numbers if number < end]
        computed.cut(len(numbers))
    return numbers


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
    mine = [
        {"shapes": [v.shape for v in of_leaf], "dtypes": sorted({v.dtype.name for v in of_leaf})}
        for of_leaf in outputs
    ]
    told: list[Any] = [numbers, mine]
    everyone = agree.gather_json(communicator, told) if communicator.size > 1 else [told]
    found_numbers = [number for theirs, _ in everyone for number in theirs]
    joined = []
    for place, of_leaf in enumerate(outputs):
        shapes = [[tuple(shape) for shape in theirs[place]["shapes"]] for _, theirs in everyone]
        dtypes = sorted({name for _, theirs in everyone for name in theirs[place]["dtypes"]})
        _require_one_kind(place, dtypes, [shape for theirs in shapes for shape in theirs])
        dtype = tf.as_dtype(dtypes[0]).as_numpy_dtype
        joined.append(_whole(communicator, of_leaf, dtype, shapes, found_numbers))
        of_leaf.clear()
    return joined


def _require_one_kind(place: int, dtypes: list[str], shapes: list[tuple[int, ...]]) -> None:
    if len(dtypes) > 1 or len({len(shape) for shape in shapes}) > 1:
        kinds = " and ".join(str(list(shape[1:])) for shape in sorted(set(shapes), key=len))
        raise ModelError(
            f"Output {place} of the model has rows of different kinds in different mini-batches, "
            f"{' and '.join(dtypes)} of shapes {kinds}. Let it have one dtype, and as many axes."
        )


def _whole(
    communicator: Communicator,
    own: list[np.ndarray],
    dtype: Any,
    shapes: list[list[tuple[int, ...]]],
    numbers: list[int],
) -> Any:
    """All workers' outputs in one place of the model's, in the order of mini-batches. Collective.

    Args:
        communicator: the workers.
        own: this one's.
        dtype: of all of them.
        shapes: of each worker's.
        numbers: of all their mini-batches.
    """
    every = [shape for theirs in shapes for shape in theirs]
    inner = {shape[1:] for shape in every}
    if len(inner) > 1:
        flat = np.concatenate([np.empty(0, dtype), *(value.reshape(-1) for value in own)])
        sizes = [sum(map(math.prod, theirs)) for theirs in shapes]
        flat = flat if communicator.size == 1 else _gather(communicator, flat, sizes)
        pieces = np.split(flat, np.cumsum([math.prod(shape) for shape in every])[:-1])
        arrays = [piece.reshape(shape) for piece, shape in zip(pieces, every, strict=True)]
        return _ragged([arrays[n] for n in np.argsort(numbers)])
    rows = [[shape[0] if shape else 1 for shape in theirs] for theirs in shapes]
    together = np.concatenate([np.empty((0, *inner.pop()), dtype), *map(np.atleast_1d, own)])
    if communicator.size > 1:
        together = _gather(communicator, together, list(map(sum, rows)))
    if numbers != sorted(numbers):
        together = together[_in_order(numbers, [n for theirs in rows for n in theirs])]
    # Keras gives one number of each mini-batch as an array, but of a single one as it is.
    return together[0] if every == [()] else together


def _ragged(arrays: list[np.ndarray]) -> tf.RaggedTensor:
    """Rows one after the other whose lengths differ, as Keras gives them."""
    shapes = np.array([array.shape[1:] for array in arrays])
    differs = int(np.flatnonzero((shapes != shapes[0]).any(axis=0))[-1]) + 1
    with tf.device("/cpu:0"):
        return tf.concat(
            [tf.RaggedTensor.from_tensor(array, ragged_rank=differs) for array in arrays], axis=0
        )


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
