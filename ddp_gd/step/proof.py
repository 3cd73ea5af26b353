"""Is what the shares compute what the whole is? Found out on real rows before the first update.

Some rows of the first global mini-batch are computed whole, as Keras does, and in pieces as they
will be: the outputs of each row, the losses, every entry of `model.losses`, the gradients, the
variables and metric states that change. What is a mean over rows, a sum, or free of rows follows
from the numbers; where nothing fits, the model is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm.base import Communicator
from ddp_gd.comm.single import SingleCommunicator
from ddp_gd.errors import ModelError
from ddp_gd.step import graph, keras_private
from ddp_gd.step.micro_batch import Evidence, Layout, MicroBatch
from ddp_gd.step.rules import Rules

Tensor = Any

ROWS = 32  # so many are computed, at most
_REMEDY = "Compute it of each row alone, or train on one worker without micro_batch_size."


class _Found(NamedTuple):
    """The whole, and all workers' pieces: arrays with the pieces in front."""

    whole: Evidence
    again: list[np.ndarray]  # the metrics' states of the whole, begun with what it left before
    pieces: Evidence  # outputs: of all rows, as in the whole; gradients: added up
    rows: np.ndarray  # of each piece
    layout: Layout


@dataclasses.dataclass
class Proof:
    """Compares the pieces of a global mini-batch with the whole. Collective.

    Attributes:
        model: compiled and built.
        communicator: the workers.
        signature: structure, dtypes and shapes of the rows.
        together: None where a step has micro-batches, else the communicator; see `MicroBatch`.
        training: False for evaluation.
    """

    model: keras.Model
    communicator: Communicator
    signature: Signature
    together: Communicator | None
    training: bool

    def rules(self, rows: list[Tensor], most: int) -> Rules:
        """Find out how the pieces make up the whole.

        Args:
            rows: this worker's, of the first global mini-batch.
            most: how many rows can be computed at once.

        Raises:
            ModelError: on every worker, where no rule makes up the whole.
        """
        rules = Rules()
        if any(row.dtype == tf.string for row in rows):
            return rules  # no backend hands texts on
        each = max(1, min(ROWS, most) // self.communicator.size)
        rows = [row[:each] for row in rows]
        every = [self.communicator.allgather(row) for row in rows]
        if len(every[0]) < 2:
            return rules  # never cut
        while True:  # what is to be computed otherwise is looked at once more
            found = self._look(rules, rows, every)
            better = self._better(rules, found, rows, every)
            if better == rules:
                self._require_gradients(found)
                return rules
            rules = better

    def _look(self, rules: Rules, rows: list[Tensor], every: list[Tensor]) -> _Found:
        whole = self._micro_batch(SingleCommunicator(), rules)
        own = self._micro_batch(self.together, rules)
        given = (own.state.specs, self.signature.specs, *[tf.TensorSpec([], tf.int32)] * 3)
        count = graph.inlined(whole.denominators, *given)
        totals = tf.TensorSpec([len(own.losses)], tf.float32)
        metrics = [tf.TensorSpec(v.shape, v.dtype) for v in own.state.metrics]
        of_whole, _ = graph.with_layout(graph.inlined, whole.evidence, *given, totals, metrics)
        of_piece, layout = graph.with_layout(graph.inlined, own.evidence, *given, totals, metrics)

        state, total = own.state.read(), len(every[0])
        total_of, _ = count(state, every, 0, total, total)
        if total_of is None:
            total_of = tf.zeros(totals.shape)
        zeros = [tf.zeros(v.shape, v.dtype) for v in own.state.metrics]
        one = of_whole(state, every, 0, total, total, total_of, zeros)
        left = {id(v): t for v, t in zip(layout.changes.metrics, one.metrics, strict=True)}
        left_all = [left.get(id(v), t) for v, t in zip(own.state.metrics, zeros, strict=True)]
        again = of_whole(state, every, 0, total, total, total_of, left_all)

        pieces, sizes, where = [], [], self._start(rows)
        for first, size in self._cuts(len(rows[0])):
            piece = [_at_least_one(row[first : first + size]) for row in rows]
            pieces.append(of_piece(state, piece, where + first, size, total, total_of, zeros))
            sizes.append(size)
        return _Found(
            whole=Evidence(*[[t.numpy() for t in tensors] for tensors in one]),
            again=[t.numpy() for t in again.metrics],
            pieces=self._gather(of_piece.structured_outputs, pieces, sizes),
            rows=self.communicator.allgather(tf.constant(sizes, tf.int32)).numpy(),
            layout=layout,
        )

    def _micro_batch(self, together: Communicator | None, rules: Rules) -> MicroBatch:
        # Micro-batches normalise by statistics of their own, on purpose: here by none.
        moments = None if self.together is not None else _no_statistics
        return MicroBatch(
            self.model, self.signature, together, rules, training=self.training, moments=moments
        )

    def _start(self, rows: list[Tensor]) -> int:
        counts = self.communicator.allgather(tf.constant([len(rows[0])])).numpy()
        return int(counts[: self.communicator.rank].sum())

    def _cuts(self, rows: int) -> list[tuple[int, int]]:
        """First row and size of this worker's pieces; micro-batches of unequal sizes."""
        if self.together is not None:
            return [(0, rows)]
        first = max(1, rows // 3)
        return [
            (start, size)
            for start, size in ((0, min(first, rows)), (first, rows - first))
            if size > 0
        ]

    def _gather(self, specs: Evidence, pieces: list[Evidence], sizes: list[int]) -> Evidence:
        """All workers' evidence."""

        def stacked(field: str) -> list[np.ndarray]:
            columns = [
                [getattr(piece, field)[i] for piece in pieces]
                for i in range(len(getattr(specs, field)))
            ]
            found = []
            for spec, column in zip(getattr(specs, field), columns, strict=True):
                empty = tf.zeros([0, *spec.shape], spec.dtype)
                own = tf.stack(column) if column else empty
                found.append(self.communicator.allgather(own).numpy())
            return found

        outputs = []
        for i, spec in enumerate(specs.outputs):
            column = [piece.outputs[i] for piece in pieces]
            if spec.shape.rank and spec.shape[0] is None:
                rows = [tensor[:size] for tensor, size in zip(column, sizes, strict=True)]
                inner = [n or 0 for n in (column[0].shape if column else spec.shape)[1:]]
                own = tf.concat(rows, 0) if rows else tf.zeros([0, *inner], spec.dtype)
            else:
                own = tf.stack(column)[:1] if column else tf.zeros([0, *spec.shape], spec.dtype)
            outputs.append(self.communicator.allgather(own).numpy())
        gradients = []
        for i, spec in enumerate(specs.gradients):
            gradients.append(
                sum((piece.gradients[i] for piece in pieces), tf.zeros(spec.shape, spec.dtype))
            )
        return Evidence(
            outputs=outputs,
            losses=stacked("losses"),
            extras=stacked("extras"),
            gradients=[t.numpy() for t in self.communicator.allreduce_sum(gradients)],
            state=stacked("state"),
            metrics=stacked("metrics"),
        )

    def _better(
        self, rules: Rules, found: _Found, rows: list[Tensor], every: list[Tensor]
    ) -> Rules:
        """The rules by which the pieces make up the whole, where others do not."""
        for whole, pieces in zip(found.whole.outputs, found.pieces.outputs, strict=True):
            if whole.shape == pieces.shape and not self._close(pieces, whole):
                self._refuse_outputs(rules, rows, every, whole, pieces)
        summed = set(rules.summed_losses)
        for number, (whole, values) in enumerate(
            zip(found.whole.extras, found.pieces.extras, strict=True)
        ):
            mean, total = _mean(values, found.rows), values.sum(0)
            if not self._close(mean, whole):
                if not self._close(total, whole):
                    raise ModelError(
                        f"Entry {number} of model.losses (add_loss, an activity regularizer) is "
                        f"{whole:.6g} on {found.rows.sum()} rows. Computed in pieces, it is "
                        f"{mean:.6g} as a mean over rows and {total:.6g} as a sum: it is neither. "
                        + _REMEDY
                    )
                summed.add(number)
        met = set(rules.met_losses)
        for number, (whole, parts) in enumerate(
            zip(found.whole.losses, found.pieces.losses, strict=True)
        ):
            if not self._close(parts.sum(0), whole):
                name = keras_private.losses(self.model)[number].name
                if self.together is None or number in met:
                    raise ModelError(
                        f"The loss {name!r} is {whole:.6g} on {found.rows.sum()} rows and "
                        f"{parts.sum(0):.6g} computed in pieces: rows meet in it. {_REMEDY}"
                    )
                met.add(number)
        return dataclasses.replace(
            rules,
            summed_losses=frozenset(summed),
            met_losses=frozenset(met),
            met_metrics=self._metrics_meet(rules, found),
            **self._state_rules(found),
        )

    def _metrics_meet(self, rules: Rules, found: _Found) -> bool:
        """Whether the metrics' states are no sums over rows that are added to what was before."""
        for variable, whole, again, parts in zip(
            found.layout.changes.metrics,
            found.whole.metrics,
            found.again,
            found.pieces.metrics,
            strict=True,
        ):
            if rules.met_metrics:
                if not self._close(parts[0], whole):
                    raise ModelError(
                        f"The metric's variable {variable.path!r} is {_few(whole)} after "
                        f"{found.rows.sum()} rows and {_few(parts[0])} where their outputs come "
                        f"together. {_REMEDY}"
                    )
            elif not self._close(parts.sum(0), whole) or not self._close(again, 2 * whole):
                if self.together is None:
                    raise ModelError(
                        f"The metric's variable {variable.path!r} is {_few(whole)} after "
                        f"{found.rows.sum()} rows, and {_few(again)} after these once more; added "
                        f"up from pieces it is {_few(parts.sum(0))}: it is no sum over rows. "
                        f"Use a metric that keeps sums, or compute it in a callback."
                    )
                return True
        return rules.met_metrics

    def _state_rules(self, found: _Found) -> dict[str, frozenset[str]]:
        summed, same = set(), set()
        for variable, whole, values in zip(
            found.layout.changes.state, found.whole.state, found.pieces.state, strict=True
        ):
            before = variable.value.numpy()
            number = np.issubdtype(whole.dtype, np.floating) or whole.dtype.kind == "V"
            weight = any(variable is trained for trained in found.layout.weights)
            equal = all(np.array_equal(value, whole) for value in values)
            alike = weight and all(self._close(value, whole) for value in values)
            # What micro-batches make of their own statistics is seen without them here.
            if (equal and (self.together is not None or not number)) or alike:
                same.add(variable.path)
            elif number and not weight and self._close(_mean(values, found.rows), whole):
                pass
            elif (
                whole.dtype != bool
                and not weight
                and self._close(before + (values - before).sum(0, dtype=whole.dtype), whole)
            ):
                summed.add(variable.path)
            else:
                raise ModelError(
                    f"The variable {variable.path!r} becomes {_few(whole)} after "
                    f"{found.rows.sum()} rows. Pieces of them lead to "
                    f"{' and '.join(map(_few, values[:3]))}, whose mean over rows or sum that is "
                    f"not. {_REMEDY}"
                )
        return {"summed_state": frozenset(summed), "same_state": frozenset(same)}

    def _require_gradients(self, found: _Found) -> None:
        """Refuse a model whose gradients don't add up to those of the whole."""
        largest = max((float(np.abs(g).max(initial=0)) for g in found.whole.gradients), default=0)
        trained = [
            w
            for w, kind in zip(found.layout.weights, found.layout.kinds, strict=True)
            if kind is not type(None)
        ]
        for weight, whole, total in zip(
            trained, found.whole.gradients, found.pieces.gradients, strict=True
        ):
            # Small ones are what rounding left of larger ones.
            scale = max(float(np.abs(whole).max(initial=0)), 1e-2 * largest)
            if not self._close(total, whole, scale, factor=20):
                raise ModelError(
                    f"The gradient of {weight.path!r} is {_few(whole)} on {found.rows.sum()} rows "
                    f"and {_few(total)} computed in pieces. {_REMEDY}"
                )

    def _refuse_outputs(
        self,
        rules: Rules,
        rows: list[Tensor],
        every: list[Tensor],
        whole: np.ndarray,
        pieces: np.ndarray,
    ) -> None:
        difference = np.abs(np.asarray(whole - pieces, np.float64))
        place = np.unravel_index(difference.argmax(), whole.shape)
        name = self._first_different_layer(rules, rows, every)
        raise ModelError(
            f"{name} gives row {place[0]} of {len(whole)} another output where other rows are "
            f"computed with it: {whole[place]:.6g} with all of them, {pieces[place]:.6g} with "
            f"some. Rows meet in it, so a global mini-batch can't be cut. {_REMEDY}"
        )

    def _first_different_layer(self, rules: Rules, rows: list[Tensor], every: list[Tensor]) -> str:
        """The layer after which rows are different first."""
        sides = []
        for together, given, where in (
            (SingleCommunicator(), every, 0),
            (self.together, rows, self._start(rows)),
        ):
            micro_batch = self._micro_batch(together, rules)
            specs = (
                micro_batch.state.specs,
                self.signature.specs,
                *[tf.TensorSpec([], tf.int32)] * 3,
            )
            outputs, names = graph.with_layout(graph.inlined, micro_batch.layer_outputs, *specs)
            size = (
                len(given[0])
                if self.together is not None or given is every
                else max(1, len(given[0]) // 2)
            )
            tensors = outputs(
                micro_batch.state.read(), [r[:size] for r in given], where, size, len(every[0])
            )
            sides.append((names, [t.numpy() for t in tensors]))
        (names, all_rows), (_, some) = sides
        start, count = self._start(rows), len(rows[0])
        different = len(names)
        for number, (a, b) in enumerate(zip(all_rows, some, strict=True)):
            if a.ndim and b.ndim and len(a) == len(every[0]):
                mine = a[start : start + len(b)]
                if mine.shape == b.shape and count and not self._close(b, mine):
                    different = number
                    break
        first = self.communicator.allgather(tf.constant([different])).numpy().min()
        return f"The layer {names[first]!r}" if first < len(names) else "The model"

    def _close(
        self, found: Any, wanted: Any, scale: float | None = None, factor: float = 1
    ) -> bool:
        """Whether numbers are equal to the precision of the model's; where they are numbers."""
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        if not np.isfinite(wanted).all():
            return True  # the first step will say so
        scale = max(np.abs(wanted).max(initial=0), 1e-6) if scale is None else max(scale, 1e-12)
        return bool(np.abs(found - wanted).max(initial=0) <= factor * self._tolerance * scale)

    @property
    def _tolerance(self) -> float:
        halves = {"float16", "bfloat16"}
        layers = keras_private.layers(self.model)
        half = any(getattr(layer, "compute_dtype", "") in halves for layer in layers)
        return 5e-2 if half else 1e-3


def _no_statistics(
    inputs: Tensor, mask: Tensor | None, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    channels = tf.reduce_sum(inputs[:1], axes)
    return tf.zeros_like(channels), tf.ones_like(channels)


def _at_least_one(rows: Tensor) -> Tensor:
    return rows if len(rows) else tf.zeros([1, *rows.shape[1:]], rows.dtype)


def _mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.tensordot(rows / rows.sum(), np.asarray(values, np.float64), axes=1)


def _few(values: Any) -> str:
    """The first numbers of an array."""
    flat = np.asarray(values).reshape(-1)
    text = ", ".join(f"{value:.6g}" for value in flat[:3].astype(np.float64))
    return f"[{text}, ...]" if flat.size > 3 else (f"[{text}]" if flat.size > 1 else text)
