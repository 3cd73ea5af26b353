"""`step`: a training loop of one's own on all workers, in place of `tf.function`."""

from __future__ import annotations

import functools
import inspect
import types
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ddp_gd.batching.plan import bitwise_micro_batch_size, block, share_of
from ddp_gd.batching.source import SAMPLED_ROWS
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError, DataError, MismatchError
from ddp_gd.job import bitwise, runtime
from ddp_gd.steps import graph
from ddp_gd.steps.own.micro_batches import MicroBatches
from ddp_gd.steps.own.own_step import OwnRules, OwnStep, Returned, put_together
from ddp_gd.steps.own.points import InPasses, Making
from ddp_gd.steps.own.proof import OwnProof
from ddp_gd.steps.own.trial import rows_of, share_of_rows
from ddp_gd.steps.rows import draws
from ddp_gd.steps.rules import Options

Tensor = Any


def step(
    function: Callable[..., Any] | None = None, *, micro_batch_size: int | None = None
) -> Callable[..., Any]:
    """Let a function of one global mini-batch run on all workers, each with its share of the rows.

    Use it as `@ddp_gd.step` in place of `@tf.function`. Every worker calls the function with the
    same global mini-batch. It is run on the worker's share, and

    - the gradients that a `tf.GradientTape` takes with respect to variables are means over the rows
      of all workers, so every worker makes the same update: the loss must be a mean over rows;
    - draws, dropout and batch statistics are those of the whole mini-batch;
    - metrics are updated as by the whole mini-batch;
    - a number that it returns is the mean over the rows of all workers, a tensor with one row for
      each row is returned with the rows of all.

    Before its first call the function is tried on some of the rows, whole and in shares, and all
    variables are put back. In one process it is `tf.function`.

    Args:
        function: called with tensors, or nested dicts, tuples and lists of them, that have one row
            for each row of the mini-batch, and with numbers. Anything else must be the same on
            every worker, and hashable.
        micro_batch_size: compute a share in pieces of so many rows, one after the other, so that a
            large one fits into memory; in bitwise mode it has a default. Write
            `@ddp_gd.step(micro_batch_size=32)`.

    Returns:
        The function, to be called as before.

    Raises:
        ModelError: on the first call: what it computes on shares is not what it computes on the
            whole, with the variable and both numbers.
        MismatchError: the workers call it with different mini-batches, or it is another function.
        DataError: arrays with different numbers of rows.
        ConfigError: a `micro_batch_size` that can't be used.
    """
    if micro_batch_size is not None and (
        isinstance(micro_batch_size, bool)
        or not isinstance(micro_batch_size, (int, np.integer))
        or micro_batch_size < 1
    ):
        raise ConfigError(
            f"micro_batch_size={micro_batch_size!r} must be a whole number, 1 or more."
        )
    if function is None:
        return functools.partial(step, micro_batch_size=micro_batch_size)
    return functools.update_wrapper(_Step(function, micro_batch_size), function)


class _Call(NamedTuple):
    """The arguments of a call: which are arrays, and the rest."""

    structure: Any
    arrays: list[Tensor]
    others: dict[int, Any]  # by their place in the structure

    @property
    def key(self) -> Any:
        """Calls with the same key have the same graph."""
        specs = tuple((a.dtype, tuple(a.shape[1:]), a.shape.rank) for a in self.arrays)
        return str(self.structure), specs, tuple(self.others.items())

    def arguments(self, arrays: list[Tensor]) -> tuple[tuple, dict[str, Any]]:
        """Positional and keyword arguments with other arrays in the places of these."""
        left = iter(arrays)
        count = len(self.arrays) + len(self.others)
        flat = [self.others[n] if n in self.others else next(left) for n in range(count)]
        return tf.nest.pack_sequence_as(self.structure, flat)


class _Step:
    """A function of one global mini-batch."""

    def __init__(self, function: Callable[..., Any], micro_batch_size: int | None = None):
        self._function = function
        self._micro_batch_size = micro_batch_size
        self._alone = tf.function(function)
        self._converted = _converted(function)
        self._made: dict[Any, Callable[[list[Tensor]], Any]] = {}
        self._shared: set[int] = set()  # variables that are rank 0's
        self._calls = 0

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Be a method of each object whose class it is written in."""
        if instance is None:
            return self
        name = f"_ddp_gd_step_{id(self)}"
        if name not in vars(instance):
            bound = _Step(self._function.__get__(instance), self._micro_batch_size)
            object.__setattr__(instance, name, functools.update_wrapper(bound, self._function))
        return vars(instance)[name]

    @runtime.collective
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function on one global mini-batch. Collective."""
        communicator = runtime.communicator()
        if runtime.is_bitwise():
            bitwise.require_preconditions()
        alone = communicator.size == 1 and self._micro_batch_size is None
        if alone and not runtime.is_bitwise():
            return self._alone(*args, **kwargs)
        call = _parsed(args, kwargs)
        self._calls += 1
        attendance = communicator.attendance
        attendance.where = f"call {self._calls} of {self._name}"
        self._require_same(communicator, call.arrays)
        size = self._micro_batch_size
        if size is None and runtime.is_bitwise():
            size = bitwise_micro_batch_size(rows_of(call.arrays))
        if (call.key, size) not in self._made:
            self._made[call.key, size] = self._make(communicator, call, size)
        with attendance.join():
            return self._made[call.key, size](call.arrays)

    @property
    def _name(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    def _make(
        self, communicator: Communicator, call: _Call, size: int | None
    ) -> Callable[[list[Tensor]], Any]:
        """Try the function, and trace it."""
        specs = [
            tf.TensorSpec([None, *a.shape[1:]] if a.shape.rank else [], a.dtype)
            for a in call.arrays
        ]

        def function(arrays: list[Tensor]) -> Any:
            args, kwargs = call.arguments(arrays)
            return self._converted(*args, **kwargs)

        def make(rules: OwnRules | None, moments: Any) -> OwnStep | InPasses:
            if rules is not None and size is not None:
                return InPasses(Making(function, specs, None, rules.blocks, moments))
            shared = None if rules is None else communicator
            return OwnStep(function, shared, specs, rules or OwnRules(), None, moments)

        tried = share_of_rows(call.arrays, 0, min(SAMPLED_ROWS, rows_of(call.arrays)))
        share = functools.partial(self._share, communicator)
        rules, own = OwnProof(make, communicator, tried, {}, size is not None, share).prove()
        if isinstance(own, OwnStep):
            return _on_shares(own, communicator, rules, specs)
        assert size is not None
        return _on_micro_batches(own, communicator, rules, specs, size)

    def _share(self, communicator: Communicator, variables: list[Any]) -> None:
        """Give every worker rank 0's values of variables that are used for the first time."""
        new = [v for v in variables if id(v) not in self._shared]
        values = communicator.broadcast([v.read_value() for v in new]) if new else []
        for variable, value in zip(new, values, strict=True):
            variable.assign(value)
        self._shared |= {id(v) for v in new}

    def _require_same(self, communicator: Communicator, arrays: list[Tensor]) -> None:
        checksum = 0
        for array in arrays:
            words = f"{array.dtype.name}{tuple(array.shape)}".encode()
            checksum = zlib.crc32(_content(array), zlib.crc32(words, checksum))
        every = communicator.allgather(tf.constant([checksum], tf.int64)).numpy()
        if (every != every[0]).any():
            others = ", ".join(str(r) for r in range(len(every)) if every[r] != every[0])
            raise MismatchError(
                f"The workers call {self._name} with different mini-batches: in call {self._calls} "
                f"that of rank {others} is not rank 0's. Nothing was computed of it. Give every "
                "worker the whole global mini-batch: read the same files in the same order, and "
                "seed what is drawn at random."
            )


def _on_shares(
    own: OwnStep, communicator: Communicator, rules: OwnRules, specs: list[tf.TensorSpec]
) -> Callable[[list[Tensor]], Any]:
    """A function of a global mini-batch that makes the step on this worker's share."""
    number = tf.TensorSpec([], tf.int32)

    def run(arrays: list[Tensor], first: Tensor, count: Tensor, whole: Tensor) -> list[Tensor]:
        place = draws.Rows(first, count, whole)
        returned, *_ = put_together(
            own, communicator, rules, arrays, place, lambda _: tf.zeros([1])
        )
        return returned

    traced = graph.inlined(run, specs, number, number, number)

    def made(arrays: list[Tensor]) -> Any:
        rows = rows_of(arrays)
        start, stop = block(rows, communicator.size, communicator.rank)
        share = share_of_rows(arrays, start, stop - start)
        return _as_returned(own.returned, traced(share, start, stop - start, rows))

    return made


def _on_micro_batches(
    own: InPasses,
    communicator: Communicator,
    rules: OwnRules,
    specs: list[tf.TensorSpec],
    size: int,
) -> Callable[[list[Tensor]], Any]:
    """The same, micro-batch by micro-batch."""
    options = Options(True, size, empty_shares=True, bitwise_lanes=int(runtime.is_bitwise()))
    pieces = MicroBatches(own, rules, communicator, options)
    number = tf.TensorSpec([], tf.int32)
    runs: dict[int, Any] = {}

    def run(count: int, arrays: list[Tensor], start: Tensor, whole: Tensor) -> list[Tensor]:
        return pieces(count, arrays, start, whole, lambda *_: tf.zeros([1]))[0]

    def made(arrays: list[Tensor]) -> Any:
        rows = rows_of(arrays)
        count = options.micro_batches(rows)
        if count not in runs:
            runs[count] = graph.inlined(functools.partial(run, count), specs, number, number)
        share = share_of(rows, size, communicator.rank, communicator.size)
        mine = [array[share.start : share.stop] if array.shape.rank else array for array in arrays]
        return _as_returned(own.returned, runs[count](mine, share.start, rows))

    return made


def _as_returned(returned: Returned, found: list[Tensor]) -> Any:
    return tf.nest.map_structure(lambda n: None if n is None else found[n], returned.structure)


def _converted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Python's branches and loops over tensors work, as `tf.function` does."""
    try:
        if inspect.ismethod(function):
            return types.MethodType(tf.autograph.to_graph(function.__func__), function.__self__)
        return tf.autograph.to_graph(function)
    except Exception:  # whose source can't be read; TensorFlow, too, takes it as it is
        return function


def _content(array: Tensor) -> bytes | memoryview:
    content = np.ascontiguousarray(array.numpy())
    if content.dtype == object:
        return repr(content.tolist()).encode()
    return content.reshape(-1).view(np.uint8).data


def _parsed(args: tuple, kwargs: dict[str, Any]) -> _Call:
    structure = tf.nest.map_structure(lambda _: None, (args, kwargs))  # of what, not with what
    arrays: list[Tensor] = []
    others: dict[int, Any] = {}
    for number, value in enumerate(tf.nest.flatten((args, kwargs))):
        if isinstance(value, (tf.Tensor, np.ndarray, np.generic)) or hasattr(value, "__array__"):
            arrays.append(tf.convert_to_tensor(value))
        else:
            others[number] = value
    rows = [len(array) for array in arrays if array.shape.rank]
    if not rows or rows[0] == 0 or len(set(rows)) > 1:
        raise DataError(
            f"A ddp_gd.step was called with arrays of {rows or 'no'} rows. All of them must have "
            "the rows of one global mini-batch, one at least; what has no rows goes in as a "
            "number or a variable."
        )
    return _Call(structure, arrays, others)
