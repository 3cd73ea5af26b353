"""One micro-batch: forward, backward, and its part of every sum."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.errors import ModelError
from ddp_gd.step import keras_private
from ddp_gd.step.losses import CompiledLosses
from ddp_gd.step.state import Changes, ModelState

Tensor = Any


class Sums(NamedTuple):
    """What the micro-batches of a step add up to, over all workers."""

    loss: Tensor  # scalar: the loss, regularisation included
    losses: list[Tensor]  # scalars: each output's loss, without its loss weight
    gradients: list[Tensor]  # d loss / d w, for each w that the loss depends on
    state: list[Tensor]  # the new values of other variables that a forward pass changes
    metrics: list[Tensor]  # what the rows add to the metrics' states


class Pieces(NamedTuple):
    """What the micro-batches of a step are, one after the other, in the order of rows."""

    # The gradients of Embeddings: the table's rows that were looked up, with a gradient each. Not
    # added up, because Keras's optimizers treat a row that occurs twice in ways of their own.
    indices: list[Tensor]
    values: list[Tensor]


class Layout(NamedTuple):
    """What the tensors of `Sums` and `Pieces` stand for; the same for every micro-batch."""

    weights: list[Any]  # those that are trained
    kinds: list[type]  # of each one's gradient: a tensor, IndexedSlices, or None
    changes: Changes

    def gradients(self, sums: Sums, pieces: Pieces) -> list[Any]:
        """The gradient of each weight, or None."""
        dense = iter(sums.gradients)
        slices = zip(pieces.values, pieces.indices, strict=True)
        gradients: list[Any] = []
        for kind, weight in zip(self.kinds, self.weights, strict=True):
            if kind is tf.IndexedSlices:
                gradients.append(tf.IndexedSlices(*next(slices), tf.constant(list(weight.shape))))
            else:
                gradients.append(None if kind is type(None) else next(dense))
        return gradients


class MicroBatch:
    """A model's forward and backward pass through the rows of a micro-batch.

    Args:
        model: compiled and built.
        signature: structure, dtypes and shapes of the rows.
        splits: whether a global mini-batch will be cut into several pieces.
        training: False for evaluation: no gradient, layers in inference mode.
    """

    def __init__(self, model: keras.Model, signature: Signature, *, splits: bool, training: bool):
        _require_keras_step(model)
        self.state = ModelState(model, splits)
        self.losses = CompiledLosses(model, splits)
        self._model = model
        self._signature = signature
        self._training = training

    def sums(
        self,
        state: list[Tensor],
        rows: list[Tensor],
        batch_rows: Tensor,
        number: Tensor,
        totals: Tensor,
    ) -> tuple[tuple[Sums, Pieces], Layout]:
        """Go forward and backward through one micro-batch.

        Args:
            state: values of the model's variables, as `ModelState.read` gives them.
            rows: of the micro-batch, as the signature describes them.
            batch_rows: rows of the global mini-batch.
            number: of the micro-batch within the global mini-batch.
            totals: denominators of the whole global mini-batch, see `losses`.
        """
        model = self._model
        x, y, sample_weight = self._signature.unpack(rows)
        row_share = tf.cast(tf.shape(rows[0])[0], tf.float32) / tf.cast(batch_rows, tf.float32)
        weights = self.state.weights_of(state)
        with self.state.copies(state, number) as copies:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                y_pred = self._forward(x, self._training)
                loss, losses = self.losses(y, y_pred, sample_weight, row_share, totals)
                for extra in model.losses:  # weight and activity regularisers, add_loss
                    value = keras_private.additional_loss(model, extra)
                    loss += tf.cast(tf.cast(row_share, value.dtype) * value, loss.dtype)
                scaled = model.optimizer.scale_loss(loss) if self._training else loss
            model.compute_metrics(x, y, y_pred, sample_weight)
            new_state, metrics, changes = self.state.sums(copies, row_share, number)
        trained = self.state.weights if self._training else []
        gradients = tape.gradient(scaled, weights[: len(trained)])
        slices = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
        dense = [
            tf.ensure_shape(gradient, weight.shape)
            for gradient, weight in zip(gradients, trained, strict=True)
            if gradient is not None and not isinstance(gradient, tf.IndexedSlices)
        ]
        return (
            Sums(loss, losses, dense, new_state, metrics),
            Pieces([g.indices for g in slices], [g.values for g in slices]),
        ), Layout(trained, [type(gradient) for gradient in gradients], changes)

    def denominators(self, state: list[Tensor], rows: list[Tensor]) -> tuple[Tensor | None, tuple]:
        """What each loss divides by on one micro-batch, None if its rows tell; and no pieces.

        Only masks are needed of the forward pass: TensorFlow prunes the rest from the graph.
        """
        x, y, sample_weight = self._signature.unpack(rows)
        with self.state.copies(state, tf.constant(0)):
            y_pred = self._forward(x, training=False)
            return self.losses.denominators(y, y_pred, sample_weight), ()

    def _forward(self, x: Any, training: bool) -> Any:
        if keras_private.takes_training(self._model):
            return self._model(x, training=training)
        return self._model(x)


def _require_keras_step(model: keras.Model) -> None:
    """Refuse a model that replaces the parts of Keras's step that are done here."""
    for name in ("train_step", "test_step", "compute_loss"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise ModelError(
                f"{type(model).__name__} overrides {name}(), and what that computes can't be cut "
                "into the shares of several workers. Give the loss to compile(loss=...), or call "
                "add_loss() with a mean over rows, and leave the override out."
            )
