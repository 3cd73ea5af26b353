"""One micro-batch: forward, backward, and its part of every sum."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.losses import CompiledLosses, Met, Outputs
from ddp_gd.steps.rows import draws, statistics
from ddp_gd.steps.rows.meeting import Meeting, of_all_workers
from ddp_gd.steps.rules import Rules
from ddp_gd.steps.state import Changes, Copies, ModelState

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
    counts: bool  # whether the rows tell what some loss divides by

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

    def names(self, losses: int) -> list[str]:
        """What each tensor of `Sums` and `Pieces` is, in words, with so many compiled losses."""
        dense, looked_up = [], []
        for kind, weight in zip(self.kinds, self.weights, strict=True):
            if kind is tf.IndexedSlices:
                looked_up.append(weight.path)
            elif kind is not type(None):
                dense.append(weight.path)
        return [
            "the loss",
            *(f"the loss of output {number}" for number in range(losses)),
            *(f"the gradient of {path}" for path in dense),
            *(f"the new value of {variable.path}" for variable in self.changes.state),
            *(f"the metric's state {variable.path}" for variable in self.changes.metrics),
            *(f"the rows looked up in {path}" for path in looked_up),
            *(f"the gradient of {path}" for path in looked_up),
        ]


class _Passed(NamedTuple):
    """What a forward pass gave."""

    outputs: Any
    loss: Tensor
    losses: list[Tensor]
    of_rows: list[Tensor]
    extras: list[Tensor]
    counts: bool


class Evidence(NamedTuple):
    """What a piece of a global mini-batch computes, before anything is put together."""

    outputs: list[Tensor]  # of the model, and of the compiled losses for each row
    losses: list[Tensor]  # parts of the compiled losses
    extras: list[Tensor]  # the entries of model.losses
    gradients: list[Tensor]  # dense, of each weight that has one
    state: list[Tensor]  # the new values of the variables that the forward pass changes
    metrics: list[Tensor]  # and of the metrics' states


class MicroBatch:
    """A model's forward and backward pass through the rows of a micro-batch.

    Args:
        model: compiled and built.
        signature: structure, dtypes and shapes of the rows.
        together: the workers, where batch statistics, and losses in which rows meet, are those of
            the rows of all of them; None where there are micro-batches.
        rules: how the shares make up the whole.
        training: False for evaluation: no gradient, layers in inference mode.
        moments: of a batch for BatchNormalization, in the place of those of the rows.
    """

    def __init__(
        self,
        model: keras.Model,
        signature: Signature,
        together: Communicator | None,
        rules: Rules,
        *,
        training: bool,
        moments: Callable[..., Any] | None = None,
    ):
        self.state = ModelState(model)
        self.losses = CompiledLosses(model, rules.met_losses)
        self.rules = rules
        self.model = model
        self.signature = signature
        self._together = together
        self._training = training
        self._moments = moments

    @property
    def gathers_outputs(self) -> bool:
        """Whether losses are computed of all rows' outputs before micro-batches go backward."""
        return self._together is None and bool(self.rules.met_losses)

    def compute(
        self,
        state: list[Tensor],
        rows: list[Tensor],
        place: draws.Rows,
        totals: Tensor,
        metrics: list[Tensor],
        met: Met | tuple[()],
    ) -> tuple[tuple[Sums, Pieces, Evidence], Layout]:
        """Go forward and backward through one micro-batch.

        Args:
            state: values of the model's variables, as `ModelState.read` gives them.
            rows: of the micro-batch, as the signature describes them.
            place: which ones of the global mini-batch; the count is 0 where one stands for none.
            totals: denominators of the whole global mini-batch, see `losses`.
            metrics: the states that metrics begin with.
            met: the losses in which rows meet, of all rows, where micro-batches can't see them.
        """
        with self.state.copies(state, metrics) as copies:
            passed, trained, gradients = self._pass(copies, state, rows, place, totals, met)
            new_state, new_metrics, changes = self.state.sums(
                copies, self.rules, place.fraction, tf.equal(place.first, 0)
            )
            copies.require_listed()
            state_after = [copies.value(v) for v in changes.state]
            metrics_after = [copies.value(v) for v in changes.metrics]
        found = [
            g if isinstance(g, tf.IndexedSlices) else tf.ensure_shape(g, w.shape)
            for g, w in zip(gradients, trained, strict=True)
            if g is not None
        ]
        slices = [g for g in found if isinstance(g, tf.IndexedSlices)]
        dense = [g for g in found if not isinstance(g, tf.IndexedSlices)]
        outputs = list(map(tf.convert_to_tensor, keras.tree.flatten(passed.outputs)))
        sums = Sums(passed.loss, passed.losses, dense, new_state, new_metrics)
        pieces = Pieces([g.indices for g in slices], [g.values for g in slices])
        evidence = Evidence(
            outputs + passed.of_rows,
            passed.losses,
            passed.extras,
            list(map(tf.convert_to_tensor, found)),
            state_after,
            metrics_after,
        )
        kinds = [type(gradient) for gradient in gradients]
        return (sums, pieces, evidence), Layout(trained, kinds, changes, passed.counts)

    def layer_outputs(
        self, state: list[Tensor], rows: list[Tensor], place: draws.Rows
    ) -> tuple[list[Tensor], list[str]]:
        """What each layer gives in a forward pass, and its name."""
        x, _, _ = self.signature.unpack(rows)
        with (
            self.state.copies(state),
            draws.of_rows(place),
            self._statistics(place.count),
            self._meeting(place),
            keras_private.watched_layers() as seen,
        ):
            self._forward(x, self._training)
        return [tensor for _, tensor in seen], [name for name, _ in seen]

    def denominators(
        self, state: list[Tensor], rows: list[Tensor], place: draws.Rows
    ) -> tuple[tuple[Tensor, Outputs | tuple[()]], list[bool]]:
        """What each loss divides by on one micro-batch; and what its rows give, if they meet.

        Where only masks are needed of the forward pass, TensorFlow prunes the rest from the graph.
        """
        x, y, sample_weight = self.signature.unpack(rows)
        with self.state.copies(state), draws.of_rows(place), self._meeting(place):
            y_pred = self._forward(x, self._training)
            counts = self.losses.denominators(y, y_pred, sample_weight)
            masked = [
                keras_private.mask(output) is not None for output in keras.tree.flatten(y_pred)
            ]
            if not self.rules.met_losses:
                return (counts, ()), masked
            return (counts, self.losses.outputs(y, y_pred, sample_weight)), masked

    def _pass(
        self,
        copies: Copies,
        state: list[Tensor],
        rows: list[Tensor],
        place: draws.Rows,
        totals: Tensor,
        met: Met | tuple[()],
    ) -> tuple[_Passed, list[Any], list[Any]]:
        """Go forward and backward; return also the trained weights, and their gradients."""
        model = self.model
        x, y, sample_weight = self.signature.unpack(rows)
        weights = self.state.weights_of(state)
        row_share = place.fraction
        meeting = None
        if self._together is not None:
            meeting = Meeting(self._together, place.first, place.count)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            copies.scope.tape = tape
            with draws.of_rows(place), self._statistics(place.count), self._meeting(place):
                y_pred = self._forward(x, self._training)
                loss, losses, of_rows, counts = self.losses(
                    y,
                    y_pred,
                    sample_weight,
                    row_share,
                    totals,
                    meeting,
                    (Met(*met), place.first, place.count) if met else None,
                )
                # Weight and activity regularisers, add_loss.
                extras = [keras_private.additional_loss(model, extra) for extra in model.losses]
            for number, value in enumerate(extras):
                if number not in self.rules.summed_losses:
                    value = tf.cast(row_share, value.dtype) * value
                loss += tf.cast(value, loss.dtype)
            scaled = model.optimizer.scale_loss(loss) if self._training else loss
        measured = (y, y_pred, sample_weight)
        if self.rules.met_metrics:
            if meeting is None:
                raise ModelError(
                    "Rows meet in a metric of the model, or what it keeps is no sum over rows, so "
                    "it can't be put together from micro-batches. Use a metric that keeps sums, or "
                    "leave micro_batch_size and bitwise=True out."
                )
            measured = keras.tree.map_structure(meeting.all_rows, measured)
        model.compute_metrics(x, *measured)
        trained = self.state.weights if self._training else []
        gradients = copies.gradients(tape, scaled, weights[: len(trained)])
        return _Passed(y_pred, loss, losses, of_rows, extras, counts), trained, gradients

    def _meeting(self, place: draws.Rows) -> contextlib.AbstractContextManager[None]:
        """Let `gather_rows` see the rows of all workers."""
        if self._together is None:
            return of_all_workers(None)
        return of_all_workers(Meeting(self._together, place.first, place.count, by_all=True))

    def _forward(self, x: Any, training: bool) -> Any:
        if keras_private.takes_training(self.model):
            return self.model(x, training=training)
        return self.model(x)

    def _statistics(self, count: Tensor) -> contextlib.AbstractContextManager[None]:
        """Let batch statistics be those of the rows of all workers, where they are to be."""
        moments = self._moments
        if moments is None and self._together is not None and self._together.size > 1:
            moments = functools.partial(statistics.moments, self._together, count)
        return contextlib.nullcontext() if moments is None else keras_private.batch_moments(moments)


class Traced(NamedTuple):
    """A micro-batch's computation as a graph."""

    micro_batch: MicroBatch
    function: Any  # of the arguments of `MicroBatch.compute`: sums, pieces, evidence
    layout: Layout
    specs: tuple  # of its arguments
    before: Any  # of the first five: `MicroBatch.denominators`; None where nothing depends on it
    met: Any  # of what `before` gives of all rows: `Met`; None where no rows meet

    def totals(self, state: list[Tensor], rows: list[Tensor], count: int) -> tuple[Any, Any]:
        """What `function` needs to know of all rows: its arguments `totals` and `met`."""
        if self.before is None:
            return tf.zeros(len(self.micro_batch.losses)), ()
        found, outputs = self.before(state, rows, draws.Rows(0, count, count))
        return found, self.met(outputs) if self.met is not None else ()


def trace(make: Callable[[], MicroBatch], isolated: bool = False) -> Traced:
    """Trace the micro-batch that `make` makes.

    Args:
        make: makes it.
        isolated: whether what is computed beforehand keeps its own graph.

    Raises:
        ModelError: what the model does can't be put together from micro-batches.
        RowsMeet: a loss in which rows meet is not among those of the rules.
    """
    micro_batch = make()
    layers = keras_private.layers(micro_batch.model)
    seed, drawn = keras_private.global_seed(), graph.drawn_in_python(layers)
    traced = _trace(micro_batch, isolated)
    if keras_private.global_seed() is not seed:  # made in there: now it is a part of the state
        drawn = graph.drawn_in_python(layers)
        traced = _trace(make(), isolated)
    graph.require_tracked_state(traced.function)
    graph.require_deterministic(traced.function)
    if graph.drawn_in_python(layers) != drawn:  # by the model, or by a thread that makes rows
        graph.require_same_again(traced.function, _trace(make(), isolated).function)
    return traced


def _trace(micro_batch: MicroBatch, isolated: bool) -> Traced:
    number = tf.TensorSpec([], tf.int32)
    place = draws.Rows(number, number, number)
    specs = (micro_batch.state.specs, micro_batch.signature.specs, place)
    met, before = None, None
    met_specs: tuple[Any, ...] = ()
    keeps = graph.isolated if isolated else graph.inlined
    if micro_batch.gathers_outputs:
        before, masked = graph.with_layout(keeps, micro_batch.denominators, *specs)
        outputs = tf.nest.map_structure(
            lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), before.structured_outputs[1]
        )
        met = keeps(lambda every: micro_batch.losses.met(Outputs(*every), masked), outputs)
        values, slopes = met.structured_outputs
        met_specs = (
            tf.TensorSpec(values.shape, values.dtype),
            [tf.TensorSpec([None, *slope.shape[1:]], slope.dtype) for slope in slopes],
        )
    totals = tf.TensorSpec([len(micro_batch.losses)], tf.float32)
    given = (*specs, totals, micro_batch.state.metric_specs, met_specs)
    function, layout = graph.with_layout(graph.inlined, micro_batch.compute, *given)
    if before is None and layout.counts:
        before, _ = graph.with_layout(keeps, micro_batch.denominators, *specs)
    return Traced(micro_batch, function, layout, given, before, met)
