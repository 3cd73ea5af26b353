"""Random numbers that belong to rows: a share draws what one process would draw for its rows.

TensorFlow's stateless generators are counters. Element i of a draw depends on the seed and on i
alone, so the elements of the rows `first, first + 1, ...` of a global mini-batch are a slice of the
draw for all its rows. Where the generator can be started at that slice, only it is generated; else
the whole is drawn and cut. A draw whose first dimension is not that of the rows is the same for
all shares. Which draws a model makes is seen while it is traced, whoever writes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from ddp_gd.errors import ModelError
from ddp_gd.steps import keras_private

Tensor = Any

# Each of these numbers comes from a counter's next four: an element's place tells the counter.
_COUNTED = {"StatelessRandomUniformV2", "StatelessRandomNormalV2"}
_PER_COUNT = 4
# What else draws by a seed alone: (input that is the shape, inputs with a value for each element).
_SHAPED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_COUNTED, ()),
    "StatelessRandomUniformIntV2": (),
    "StatelessRandomUniformFullIntV2": (),
    "StatelessTruncatedNormalV2": (),
    "StatelessRandomUniform": (),
    "StatelessRandomNormal": (),
    "StatelessRandomUniformInt": (),
    "StatelessRandomUniformFullInt": (),
    "StatelessTruncatedNormal": (),
    "StatelessRandomGammaV3": (4,),
    "StatelessRandomGammaV2": (2,),
    "StatelessRandomPoisson": (2,),
    "StatelessRandomBinomial": (2, 3),
    "StatelessParameterizedTruncatedNormal": (),
}
_PER_LOGITS = "StatelessMultinomial"


class Rows(NamedTuple):
    """Which rows of a global mini-batch are computed; int32 scalars."""

    first: Tensor
    count: Tensor
    whole: Tensor  # how many the global mini-batch has

    @property
    def fraction(self) -> Tensor:
        """Which part of the global mini-batch they are, float32."""
        return tf.cast(self.count, tf.float32) / tf.cast(self.whole, tf.float32)


@contextlib.contextmanager
def of_rows(rows: Rows, blocks: bool = False) -> Iterator[None]:
    """Let what is traced in here draw, for its rows, what a whole global mini-batch would.

    Args:
        rows: which ones.
        blocks: where a draw has several entries for each row, they stand in blocks of all rows, one
            block after the other, as where outputs for real and generated rows are concatenated.
    """

    def replace(
        kind: str, inputs: Sequence[Tensor], attributes: dict[str, Any], outputs: Sequence[Tensor]
    ) -> list[Tensor] | None:
        if kind not in _SHAPED and kind != _PER_LOGITS:
            return None
        (drawn,) = outputs
        if drawn.shape.rank in (None, 0) or drawn.shape[0] is not None:
            return None  # no dimension that may be that of the rows
        if kind in _COUNTED and drawn.dtype == tf.float32 and not blocks:
            mine = _counted(kind, inputs, drawn.dtype, rows)
        else:
            mine = _cut(kind, inputs, attributes, rows, blocks)
        return [tf.ensure_shape(mine, drawn.shape)]

    with keras_private.replacing_operations(replace):
        yield


def _lead(first_dimension: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Where a draw of so many entries begins and ends in that for all rows, and how many that has.

    Each row may have several (time steps that stand beside the rows in one dimension). Another
    dimension than that of the rows begins at its own beginning.
    """
    lead = tf.cast(first_dimension, tf.int32)
    each = lead // tf.maximum(rows.count, 1)
    is_rows = tf.equal(each * rows.count, lead) & (rows.count > 0)
    start = tf.where(is_rows, each * rows.first, 0)
    whole = tf.where(is_rows, each * rows.whole, lead)
    return start, start + lead, whole


def _counted(kind: str, inputs: Sequence[Tensor], dtype: tf.DType, rows: Rows) -> Tensor:
    """Start the generator's counter at the first row's first element."""
    shape, key, counter, alg = inputs
    start, _, _ = _lead(shape[0], rows)
    sizes = tf.cast(shape, tf.int64)
    skipped = tf.cast(start, tf.int64) * tf.reduce_prod(sizes[1:])
    counts, within = skipped // _PER_COUNT, skipped % _PER_COUNT
    low = counter[0] + tf.cast(counts, tf.uint64)
    carry = tf.cast(tf.less(low, counter[0]), tf.uint64)
    draw = getattr(tf.raw_ops, kind)
    numbers = draw(
        shape=(tf.reduce_prod(sizes) + within)[None],
        key=key,
        counter=tf.stack([low, counter[1] + carry]),
        alg=alg,
        dtype=dtype,
    )
    return tf.reshape(numbers[within:], shape)


def _cut(
    kind: str, inputs: Sequence[Tensor], attributes: dict[str, Any], rows: Rows, blocks: bool
) -> Tensor:
    """Draw for all rows, and keep those of the share."""
    given = list(inputs)
    if kind == _PER_LOGITS:
        start, stop, whole = _lead(tf.shape(given[0])[0], rows)
        given[0] = _among_others(given[0], start, stop, whole)
    else:
        shape = given[0]
        start, stop, whole = _lead(shape[0], rows)
        given[0] = tf.concat([tf.cast(whole, shape.dtype)[None], shape[1:]], axis=0)
        for place in _SHAPED[kind]:
            value = given[place]
            if value.shape.rank is None:
                raise ModelError(
                    f"A draw ({kind}) in the model has parameters of unknown rank, so which of "
                    "them belong to which row is not known. Give them a shape."
                )
            if value.shape.rank and value.shape[0] is None:
                given[place] = _among_others(value, start, stop, whole)
    (drawn,) = keras_private.same_operation(kind, given, attributes)
    if not blocks:
        return drawn[start:stop]
    # (blocks * all rows, ...) -> (blocks, all rows, ...) -> those of the share
    is_rows = stop - start < whole
    inner = tf.where(is_rows, rows.whole, tf.maximum(whole, 1))
    table = tf.reshape(drawn, tf.concat([[-1, inner], tf.shape(drawn)[1:]], axis=0))
    first = tf.where(is_rows, rows.first, 0)
    mine = table[:, first : tf.where(is_rows, first + rows.count, inner)]
    return tf.reshape(mine, tf.concat([[-1], tf.shape(drawn)[1:]], axis=0))


def _among_others(value: Tensor, start: Tensor, stop: Tensor, whole: Tensor) -> Tensor:
    """Give the rows of other shares, which are not known here, parameters of one."""
    others = [[start, whole - stop], *[[0, 0]] * (value.shape.rank - 1)]
    return tf.pad(value, others, constant_values=tf.ones([], value.dtype))
