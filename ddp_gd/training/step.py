"""`step`: a training loop of one's own on all workers, in place of `tf.function`."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ddp_gd.batching.plan import block
from ddp_gd.batching.source import SAMPLED_ROWS
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError, DataError, MismatchError
from ddp_gd.job import runtime
from ddp_gd.steps import graph
from ddp_gd.steps.own.own_step import OwnRules, OwnStep, put_together
from ddp_gd.steps.own.proof import OwnProof, rows_of, share_of_rows
from ddp_gd.steps.rows import draws

Tensor = Any


def step(function: Callable[..., Any]) -> Callable[..., Any]:
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

    Returns:
        The function, to be called as before.

    Raises:
        ModelError: on the first call: what it computes on shares is not what it computes on the
            whole, with the variable and both numbers.
        MismatchError: the workers call it with different mini-batches, or it is another function.
        DataError: arrays with different numbers of rows.
        ConfigError: the job is in bitwise mode.
    """
    return functools.update_wrapper(_Step(function), function)


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

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._alone = tf.function(function)
        self._converted = _converted(function)
        self._made: dict[Any, Callable[[list[Tensor]], Any]] = {}
        self._shared: set[int] = set()  # variables that are rank 0's
        self._calls = 0

    @runtime.collective
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function on one global mini-batch. Collective."""
        communicator = runtime.communicator()
        if runtime.is_bitwise():
            raise ConfigError(
                "bitwise=True and ddp_gd.step: a training loop of one's own is the same at any "
                "number of workers to rounding only. Leave bitwise=True out, or use ddp_gd.fit."
            )
        if communicator.size == 1:
            return self._alone(*args, **kwargs)
        call = _parsed(args, kwargs)
        self._calls += 1
        attendance = communicator.attendance
        attendance.where = f"call {self._calls} of {self._name}"
        self._require_same(communicator, call.arrays)
        if call.key not in self._made:
            self._made[call.key] = self._make(communicator, call)
        with attendance.join():
            return self._made[call.key](call.arrays)

    @property
    def _name(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    def _make(self, communicator: Communicator, call: _Call) -> Callable[[list[Tensor]], Any]:
        """Try the function, and trace it."""
        specs = [
            tf.TensorSpec([None, *a.shape[1:]] if a.shape.rank else [], a.dtype)
            for a in call.arrays
        ]

        def function(arrays: list[Tensor]) -> Any:
            args, kwargs = call.arguments(arrays)
            return self._converted(*args, **kwargs)

        def make(rules: OwnRules | None) -> OwnStep:
            shared = None if rules is None else communicator
            return OwnStep(function, shared, specs, rules or OwnRules())

        tried = share_of_rows(call.arrays, 0, min(SAMPLED_ROWS, rows_of(call.arrays)))
        proof = OwnProof(
            make, communicator, tried, {}, functools.partial(self._share, communicator)
        )
        rules, own = proof.prove()
        number = tf.TensorSpec([], tf.int32)

        def run(arrays: list[Tensor], first: Tensor, count: Tensor, whole: Tensor) -> list[Tensor]:
            place = draws.Rows(first, count, whole)
            returned, *_ = put_together(
                own, communicator, rules, arrays, place, lambda _: tf.zeros([1])
            )
            return returned

        traced = graph.inlined(run, specs, number, number, number)
        structure = own.returned.structure

        def made(arrays: list[Tensor]) -> Any:
            rows = rows_of(arrays)
            start, stop = block(rows, communicator.size, communicator.rank)
            share = share_of_rows(arrays, start, stop - start)
            returned = traced(share, start, stop - start, rows)
            return tf.nest.map_structure(lambda n: None if n is None else returned[n], structure)

        return made

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


def _converted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Python's branches and loops over tensors work, as `tf.function` does."""
    try:
        return tf.autograph.to_graph(function)
    except Exception:  # whose source can't be read; TensorFlow, too, takes it as it is
        return function


def _content(array: Tensor) -> bytes | memoryview:
    content = np.ascontiguousarray(array.numpy())
    if content.dtype == object:
        return repr(content.tolist()).encode()
    return content.reshape(-1).view(np.uint8).data


def _parsed(args: tuple, kwargs: dict[str, Any]) -> _Call:
    structure = (args, kwargs)
    arrays: list[Tensor] = []
    others: dict[int, Any] = {}
    for number, value in enumerate(tf.nest.flatten(structure)):
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
