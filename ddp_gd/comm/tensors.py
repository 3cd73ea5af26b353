"""What the distributed backends share: program order inside graphs, flat buffers, wire dtypes."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from ddp_gd.comm.attendance import Attendance
from ddp_gd.comm.base import Tensor
from ddp_gd.errors import ConfigError

# A sum travels in a dtype that every backend adds natively and that loses nothing: halves are
# added in float32 and rounded once, integers wrap around as their own dtype does.
SUM_DTYPES = {
    **{t: t for t in (tf.float32, tf.float64, tf.int32, tf.int64)},
    tf.float16: tf.float32,
    tf.bfloat16: tf.float32,
    tf.bool: tf.int32,
    **{t: tf.int32 for t in (tf.int8, tf.uint8, tf.int16, tf.uint16)},
    tf.uint32: tf.int64,
    tf.uint64: tf.int64,
}

# What only moves may travel as any dtype of the same width.
MOVE_DTYPES = {
    **{t: t for t in (tf.float32, tf.float64, tf.int32, tf.int64)},
    **{t: t for t in (tf.int8, tf.uint8, tf.int16, tf.uint16)},
    tf.bool: tf.uint8,
    tf.float16: tf.int16,
    tf.bfloat16: tf.int16,
    tf.uint32: tf.int32,
    tf.uint64: tf.int64,
    tf.complex64: tf.int64,
}


# From so many bytes on a tensor travels by itself, uncopied. Smaller ones share a flat buffer,
# since each message costs a latency: 1 MiB takes 0.8 ms at 10 Gbit/s, a latency about a tenth.
_LARGE = 2**20

# Stands in the name of every operation of a collective in a graph.
COLLECTIVE = "ddp_gd_collective"


class ProgramOrder:
    """Runs the collectives of a graph one after another, in the order in which they were written.

    TensorFlow would run independent collectives in any order (mpi4py needs the same one on every
    worker), start the next iteration's before this one's has ended (Horovod refuses two of one
    name), drop one whose result a worker does not use, and, since Horovod's ops are not marked
    stateful, evaluate one beforehand where its input happens to be constant on one worker (the
    peers would wait for ever). So each collective reads a variable before and changes it after:
    automatic control dependencies keep the uses of a variable in program order, nested functions,
    branches and loop bodies included, and let none be dropped.

    Args:
        attendance: counts the collectives outside of graphs.
    """

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self._zero: tf.Variable | None = None  # always 0, but no optimizer can know
        self._seconds: tf.Variable | None = None
        self._clock: Callable[[], Tensor] = tf.timestamp

    def measure(self, deterministic: bool) -> Callable[[], float]:
        """Measure the collectives of the graphs traced from now on, see `Communicator.measure`."""
        self._clock = _python_clock if deterministic else tf.timestamp
        if self._seconds is None:
            with tf.init_scope(), tf.device("/cpu:0"):
                self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        seconds = self._seconds
        return lambda: float(seconds)

    @tf.autograph.experimental.do_not_convert
    def run(
        self,
        collective: Callable[..., list[Tensor]],
        *tensors: Tensor,
        overlapping: bool = False,
    ) -> list[Tensor]:
        """Return `collective(*tensors)`, in its turn.

        Args:
            collective: writes the ops.
            tensors: its inputs.
            overlapping: whether it has an op for each of them, none of which blocks its thread.
        """
        if self._zero is None:  # before a function is traced, which would be once more for it
            with tf.init_scope(), tf.device("/cpu:0"):
                self._zero = tf.Variable(0, dtype=tf.int32, trainable=False, name="ddp_gd_zero")
        if tf.executing_eagerly():
            with self._attendance.join():
                return collective(*tensors)
        with tf.name_scope(COLLECTIVE):
            return self._in_turn(collective, tensors, overlapping)

    def _in_turn(
        self, collective: Callable[..., list[Tensor]], tensors: Sequence[Tensor], overlapping: bool
    ) -> list[Tensor]:
        assert self._zero is not None
        zero = self._zero.read_value()
        # The whole tensor, uncopied; but no constant, because it starts where a variable says.
        inputs = [tf.slice(t, tf.fill([t.shape.rank], zero), [-1] * t.shape.rank) for t in tensors]
        began = [] if self._seconds is None else [self._read_clock(inputs)]
        # Where the ops of several buffers run beside each other, the first need not wait for the
        # last; an op that blocks its thread must let the clock be read before.
        with tf.control_dependencies([] if overlapping else began):
            results = collective(*inputs)
        # Mere control dependencies on ops that are not stateful are optimized away; this stays.
        used = tf.raw_ops.Assert(condition=tf.equal(zero, 0), data=results)
        with tf.control_dependencies([used]):
            self._zero.assign(0, read_value=False)
        if self._seconds is not None:
            self._seconds.assign_add(self._read_clock([used]) - began[0], read_value=False)
        return results

    def _read_clock(self, after: Sequence[Tensor]) -> Tensor:
        """Seconds, read when all of `after` are there."""
        with tf.control_dependencies(after):
            return self._clock()


def _python_clock() -> Tensor:
    """`tf.timestamp()` where TensorFlow refuses that: with deterministic operations."""
    seconds = tf.numpy_function(lambda: np.float64(time.time()), [], tf.float64)
    return tf.ensure_shape(seconds, [])


@tf.autograph.experimental.do_not_convert
def as_flat_buffers(
    tensors: Sequence[Tensor],
    dtypes: Mapping[tf.DType, tf.DType],
    exchange: Callable[..., list[Tensor]],
) -> list[Tensor]:
    """Apply `exchange` to flat buffers, and cut the results up again.

    Large tensors are buffers of their own, the others share one for each wire dtype.

    Args:
        tensors: any shapes and dtypes.
        dtypes: the wire dtype of each dtype, `SUM_DTYPES` or `MOVE_DTYPES`.
        exchange: takes flat buffers, returns as many of the same shapes and dtypes.

    Returns:
        Tensors with the shapes and dtypes of `tensors`.
    """
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    members: dict[tuple[tf.DType, int | None], list[int]] = {}
    for i, tensor in enumerate(tensors):
        dtype = _wire_dtype(tensor, dtypes)
        large = (tensor.shape.num_elements() or 0) * dtype.size >= _LARGE
        members.setdefault((dtype, i if large else None), []).append(i)
    if not members:
        return []
    flats = []
    for (dtype, _), indices in members.items():
        parts = [tf.reshape(_convert(tensors[i], dtype, dtypes), [-1]) for i in indices]
        flats.append(parts[0] if len(parts) == 1 else tf.concat(parts, axis=0))
    results: list[Tensor] = [None] * len(tensors)
    for indices, flat in zip(members.values(), exchange(*flats), strict=True):
        sizes = [tf.size(tensors[i]) for i in indices]
        parts = [flat] if len(indices) == 1 else tf.split(flat, sizes, num=len(indices))
        for i, part in zip(indices, parts, strict=True):
            shaped = tf.ensure_shape(tf.reshape(part, tf.shape(tensors[i])), tensors[i].shape)
            results[i] = _convert(shaped, tensors[i].dtype, dtypes)
    return results


@tf.autograph.experimental.do_not_convert
def as_movable(tensor: Tensor, exchange: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `exchange`, which moves rows of axis 0, to `tensor` in its wire dtype."""
    tensor = tf.convert_to_tensor(tensor)
    wired = _convert(tensor, _wire_dtype(tensor, MOVE_DTYPES), MOVE_DTYPES)
    result = tf.ensure_shape(exchange(wired), [None, *tensor.shape[1:]])
    return _convert(result, tensor.dtype, MOVE_DTYPES)


def _wire_dtype(tensor: Tensor, dtypes: Mapping[tf.DType, tf.DType]) -> tf.DType:
    try:
        return dtypes[tensor.dtype]
    except KeyError:
        names = ", ".join(sorted(t.name for t in dtypes))
        raise ConfigError(
            f"Tensors of dtype {tensor.dtype.name!r} cannot be exchanged here, only {names}. "
            "Cast it first."
        ) from None


def _convert(tensor: Tensor, dtype: tf.DType, dtypes: Mapping[tf.DType, tf.DType]) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    if dtypes is MOVE_DTYPES and tf.bool not in (tensor.dtype, dtype):
        return tf.bitcast(tensor, dtype)
    return tf.cast(tensor, dtype)
