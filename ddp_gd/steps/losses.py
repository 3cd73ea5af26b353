"""What each compiled loss divides by, and its part in the sum over shares.

Keras reduces a loss to `numerator / denominator` over the rows it is given. On one share that
denominator is the share's own, while the update needs the one of the whole global mini-batch, so
every share's loss enters the sum over shares with the weight `own denominator / global one`:

    mean ("sum_over_batch_size")   rows of the share / rows of the global mini-batch
    mean over a mask               valid entries / valid entries of the global mini-batch
    "mean_with_sample_weight"      sum of weights / sum of weights of the global mini-batch
    "sum"                          1

Only the two in the middle depend on the data. Those denominators are counted with Keras's own
code (`_Ones`), summed over all workers, and known before a gradient is taken.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from ddp_gd.errors import ModelError
from ddp_gd.steps import keras_private
from ddp_gd.steps.rows.meeting import Meeting

Tensor = Any
Loss = Callable[..., Tensor]


class RowsMeet(Exception):
    """A loss, by its place, turned out to compare rows while micro-batches were traced."""

    def __init__(self, index: int):
        super().__init__(index)
        self.index = index


class Met(NamedTuple):
    """What losses in which rows meet are for all rows, for micro-batches to go backward from."""

    values: Tensor  # (losses,), each without its loss weight; 0 for the others
    slopes: list[Tensor]  # of all of them with their weights, by each output: a row for each row


class Outputs(NamedTuple):
    """What the losses are computed of: a row for each row."""

    y: Any
    y_pred: Any
    weights: list[Any]  # the sample weights in a list, which is empty without
    masks: list[Tensor]  # of those outputs that have one


class CompiledLosses:
    """The losses that `model.compile` was given, one for each output that has one.

    Args:
        model: compiled, and built by Keras on the data's shapes.
        met: those that are found to compare rows.
    """

    def __init__(self, model: keras.Model, met: frozenset[int] = frozenset()):
        self._model = model
        self._met = met
        self._losses = keras_private.losses(model)

    def __len__(self) -> int:
        return len(self._losses)

    def denominators(self, y: Any, y_pred: Any, sample_weight: Any) -> Tensor:
        """What each loss divides by on these rows, where that depends on the data.

        Returns:
            float32, shape (losses,), with 0 where it is the number of rows or nothing.
        """
        counts: list[Tensor] = []

        def count(index: int, loss: Loss, y_true: Any, y_pred: Any, weight: Any) -> Tensor:
            met = self._rows_meet(index, loss, _values(loss, y_true, y_pred), y_pred)
            own = None if met else self._denominator(loss, y_true, y_pred, weight)
            counts.append(tf.zeros(()) if own is None else own)
            return tf.zeros(())

        self._visit(count, y, y_pred, sample_weight)
        return tf.stack(counts)

    def __call__(
        self,
        y: Any,
        y_pred: Any,
        sample_weight: Any,
        row_share: Tensor,
        totals: Tensor,
        meeting: Meeting | None = None,
        met: tuple[Met, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], bool]:
        """These rows' part of the global mini-batch's compiled loss.

        Args:
            y: targets of the rows.
            y_pred: the model's output for them.
            sample_weight: None, or their weights.
            row_share: scalar, rows here / rows of the global mini-batch.
            totals: `denominators` of the whole global mini-batch, shape (losses,).
            meeting: where the rows of all workers come together, if they can.
            met: else what losses are in which rows meet, and place and number of these rows.

        Returns:
            The sum of all losses with their loss weights, and each alone without: scalars that,
            summed over all shares, are what Keras computes on the whole global mini-batch. And the
            values that each loss gives for its rows, before they are reduced; none where rows meet.
            And whether `totals` matter: the rows tell what some loss divides by.
        """
        parts: list[Tensor] = []
        of_rows: list[Tensor] = []
        counted: list[bool] = []

        def part(index: int, loss: Any, y_true: Any, y_pred: Any, weight: Any) -> Tensor:
            values = _values(loss, y_true, y_pred)
            if self._rows_meet(index, loss, values, y_pred):
                of_rows.append(tf.zeros([0]))
                if meeting is None:
                    if met is None or index not in self._met:
                        raise RowsMeet(index)
                    parts.append(tf.cast(row_share, met[0].values.dtype) * met[0].values[index])
                    return parts[-1]
                value = _of_all_rows(loss, y_true, y_pred, weight, meeting)
                self._require_scalar(loss, value)
                # Once over all workers, but with the gradient by this worker's own rows.
                parts.append(value + tf.stop_gradient(tf.cast(row_share - 1, value.dtype) * value))
                return parts[-1]
            of_rows.append(values)
            value = loss(y_true, y_pred, weight)
            self._require_scalar(loss, value)
            if loss.reduction != "sum":
                own = self._denominator(loss, y_true, y_pred, weight)
                counted.append(own is not None)
                fraction = row_share if own is None else tf.math.divide_no_nan(own, totals[index])
                value *= tf.cast(fraction, value.dtype)
            parts.append(value)
            return value

        loss = self._visit(part, y, y_pred, sample_weight)
        if met is not None:
            loss += _backward_from(y_pred, *met)
        return loss, parts, of_rows, any(counted)

    def outputs(self, y: Any, y_pred: Any, sample_weight: Any) -> Outputs:
        """What `met` needs of all rows."""
        masks = [keras_private.mask(output) for output in keras.tree.flatten(y_pred)]
        weights = [] if sample_weight is None else [sample_weight]
        return Outputs(y, y_pred, weights, [mask for mask in masks if mask is not None])

    def met(self, every: Outputs, masked: list[bool]) -> Met:
        """The losses in which rows meet, of all rows, and their slopes by the outputs.

        Args:
            every: of all rows.
            masked: whether each output has a mask.
        """
        outputs = keras.tree.flatten(every.y_pred)
        for output, mask in zip(
            (o for o, has in zip(outputs, masked, strict=True) if has), every.masks, strict=True
        ):
            keras_private.set_mask(output, mask)
        values = [tf.zeros(())] * len(self._losses)

        def value(index: int, loss: Any, y_true: Any, y_pred: Any, weight: Any) -> Tensor:
            if index not in self._met:
                return tf.zeros(())
            found = loss(y_true, y_pred, weight)
            self._require_scalar(loss, found)
            values[index] = tf.cast(found, tf.float32)
            return found

        weights = every.weights[0] if every.weights else None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(outputs)
            total = self._visit(value, every.y, every.y_pred, weights)
        slopes = tape.gradient(total, outputs, unconnected_gradients="zero")
        return Met(tf.stack(values), [tf.convert_to_tensor(slope) for slope in slopes])

    def of_share(
        self, y: Any, y_pred: Any, sample_weight: Any, row_share: Tensor, meeting: Meeting
    ) -> Tensor:
        """These rows' compiled loss, so that its mean over shares, by rows, is that of the whole.

        Collective. The arguments are those of a call.
        """

        def part(index: int, loss: Any, y_true: Any, y_pred: Any, weight: Any) -> Tensor:
            values = _values(loss, y_true, y_pred)
            if self._rows_meet(index, loss, values, y_pred):
                return _of_all_rows(loss, y_true, y_pred, weight, meeting)
            value = loss(y_true, y_pred, weight)
            self._require_scalar(loss, value)
            if loss.reduction == "sum":
                return tf.math.divide_no_nan(value, tf.cast(row_share, value.dtype))
            own = self._denominator(loss, y_true, y_pred, weight)
            if own is None:
                return value
            own = tf.where(row_share > 0, own, 0)
            (total,) = meeting.communicator.allreduce_sum([own])
            fraction = tf.math.divide_no_nan(own, total * row_share)
            return value * tf.cast(fraction, value.dtype)

        return self._visit(part, y, y_pred, sample_weight, tracked=True)

    def _visit(
        self,
        visitor: Callable[..., Tensor],
        y: Any,
        y_pred: Any,
        weight: Any,
        tracked: bool = False,
    ) -> Tensor:
        if not self._losses:
            return tf.zeros(())
        calls = [functools.partial(visitor, *numbered) for numbered in enumerate(self._losses)]
        return keras_private.compiled_loss_with(self._model, calls, tracked)(y, y_pred, weight)

    def _denominator(self, loss: Any, y_true: Any, y_pred: Any, weight: Any) -> Tensor | None:
        if loss.reduction == "sum":
            return None
        ones = _Ones(loss)
        weighted = loss.reduction == "mean_with_sample_weight" and weight is not None
        denominator = ones(y_true, y_pred, weight if weighted else None)
        masked = ones.masked or keras_private.mask(y_pred) is not None
        return ops.cast(denominator, "float32") if masked or weighted else None

    def _rows_meet(self, index: int, loss: Any, values: Tensor | None, y_pred: Any) -> bool:
        """Whether a loss's value for one row can't be told from the other rows' values."""
        if index in self._met or values is None or isinstance(loss, keras.losses.Circle):
            return True
        rows = keras.tree.flatten(y_pred)[0].shape[0]
        return values.shape.rank == 0 or values.shape[0] not in (None, rows)

    @staticmethod
    def _require_scalar(loss: Any, value: Tensor) -> None:
        if value.shape.rank != 0:
            raise ModelError(
                f"The loss {loss.name!r} with reduction={loss.reduction!r} returns a value of "
                f"shape {tuple(value.shape)}; an update needs one number. Compile it with "
                "reduction='sum_over_batch_size' (the mean) or 'sum'."
            )


class _Ones(keras.losses.Loss):
    """`loss` with every value replaced by one, summed: what a mean of `loss` divides by.

    Keras's own code merges masks and weights into it, as it does for `loss`.
    """

    def __init__(self, loss: Any):
        super().__init__(name="denominator", reduction="sum", dtype=loss.dtype)
        self._loss = loss
        self.masked = False

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        values = self._loss.call(y_true, y_pred)
        ones = ops.ones_like(values)
        mask = keras_private.mask(values)
        if mask is not None:  # `ignore_class` of the sparse cross-entropy, say
            self.masked = True
            keras_private.set_mask(ones, mask)
        return ones


def _of_all_rows(loss: Any, y_true: Any, y_pred: Any, weight: Any, meeting: Meeting) -> Tensor:
    """The loss of the rows of all workers. Collective."""
    every = keras.tree.map_structure(meeting.all_rows, (y_true, y_pred, weight))
    for own, all_rows in zip(*map(keras.tree.flatten, (y_pred, every[1])), strict=True):
        if (mask := keras_private.mask(own)) is not None:
            keras_private.set_mask(all_rows, meeting.all_rows(mask))
    return loss(*every)


def _backward_from(y_pred: Any, met: Met, first: Tensor, count: Tensor) -> Tensor:
    """Nothing, with the gradient that the losses of all rows have by these rows' outputs."""
    total = tf.zeros(())
    for output, slope in zip(keras.tree.flatten(y_pred), met.slopes, strict=True):
        mine = tf.stop_gradient(slope[first : first + count])
        total += tf.cast(tf.reduce_sum(mine * output[:count]), tf.float32)
    return total - tf.stop_gradient(total)


def _values(loss: Any, y_true: Any, y_pred: Any) -> Tensor | None:
    """What a loss gives before it is reduced; None where only its own __call__ knows."""
    if type(loss).__call__ is not keras.losses.Loss.__call__:
        return None

    def convert(value: Any) -> Any:
        return ops.convert_to_tensor(value, dtype=loss.dtype)

    return loss.call(*keras.tree.map_structure(convert, (y_true, y_pred)))
