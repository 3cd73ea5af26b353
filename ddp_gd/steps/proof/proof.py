"""Is what the shares compute what the whole is? Found out on real rows before the first update.

Some rows of the first global mini-batch are computed whole, as Keras does, and in pieces as they
will be: the outputs of each row, the losses, every entry of `model.losses`, the gradients, the
variables and metric states that change. What is a mean over rows, a sum, or free of rows follows
from the numbers; where nothing fits, the model is refused by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from ddp_gd.errors import ModelError
from ddp_gd.steps import keras_private
from ddp_gd.steps.losses import RowsMeet
from ddp_gd.steps.micro_batch import Traced
from ddp_gd.steps.proof.comparison import Comparison, Look
from ddp_gd.steps.proof.rounding import accepted, close, few
from ddp_gd.steps.rules import Rules
from ddp_gd.steps.state import other_variables

_REMEDY = (
    "Compute it of each row alone, or, on several workers, of the rows that ddp_gd.gather_rows "
    "gives; or train on one worker without micro_batch_size."
)


def prove(comparison: Comparison) -> tuple[Rules, Traced]:
    """Find the rules by which shares make up the whole. Collective.

    Args:
        comparison: of some rows; fewer than two are never cut, and tell nothing.

    Returns:
        The rules, and what a step computes of a share or micro-batch by them.

    Raises:
        ModelError: on every worker, where no rule makes up the whole.
    """
    rules = _likely(comparison)
    while True:  # what is to be computed otherwise is looked at once more
        try:
            step = comparison.step(rules)
        except RowsMeet as found:
            met = rules.met_losses | {found.index}
            rules = dataclasses.replace(rules, met_losses=met)
            continue
        if comparison.count < 2:
            return rules, step
        better = _judged(comparison, step, rules)
        if better == rules:
            return rules, step
        rules = better


def _judged(comparison: Comparison, step: Traced, rules: Rules) -> Rules:
    """The rules by which the pieces make up the whole; the same where these do."""

    def attempt(number: int) -> Rules:
        judge = _Judge(comparison, comparison.look(step, number))
        better = judge.better(rules)
        if better == rules:
            judge.require_gradients()
        return better

    return accepted(comparison.communicator, attempt)


class _Judge:
    """Says how the pieces of a global mini-batch make up the whole."""

    def __init__(self, comparison: Comparison, looks: list[Look]):
        self._comparison = comparison
        self._looks = looks
        self._communicator = comparison.communicator
        self._in_pieces = comparison.in_pieces
        # Of the largest number; where rounding alone does more, by what it does.
        self._tolerance = min(5e-2, 2**11 * comparison.epsilon)

    def better(self, rules: Rules) -> Rules:
        """The rules by which the pieces make up the whole, where others do not."""
        losses = len(self._looks[0].whole.losses)
        outputs = len(self._looks[0].whole.outputs) - losses  # what losses give for rows is after
        for look in self._looks:
            for number in range(outputs):
                whole, moved = look.whole.outputs[number], look.moved.outputs[number]
                pieces = look.pieces.outputs[number]
                self._require_same_again(whole, look.again.outputs[number])
                self._require_same_on_all(whole, moved)
                if whole.shape == pieces.shape and not self._close(pieces, whole, moved):
                    self._refuse_outputs(rules, whole, moved, pieces)
        return dataclasses.replace(
            rules,
            summed_losses=rules.summed_losses | self._summed_losses(),
            met_losses=rules.met_losses
            | {n for n in range(losses) if not self._adds_up(rules, n, outputs + n)},
            met_metrics=any([self._metrics_meet(rules, look) for look in self._looks]),
            **self._state_rules(rules),
        )

    def require_gradients(self) -> None:
        """Refuse a model whose gradients don't add up to those of the whole."""
        for look in self._looks:
            largest = max(
                (float(np.abs(g).max(initial=0)) for g in look.whole.gradients), default=0
            )
            trained = [
                weight
                for weight, kind in zip(look.layout.weights, look.layout.kinds, strict=True)
                if kind is not type(None)
            ]
            for weight, whole, moved, total in zip(
                trained,
                look.whole.gradients,
                look.moved.gradients,
                look.pieces.gradients,
                strict=True,
            ):
                # Small ones are what rounding left of larger ones.
                scale = max(float(np.abs(whole).max(initial=0)), 1e-2 * largest)
                if not self._close(total, whole, moved, 5 * scale):
                    raise ModelError(
                        f"The gradient of {weight.path!r} is {few(whole)} on {look.rows.sum()} "
                        f"rows and {few(total)} computed in pieces. {_REMEDY}"
                    )

    def _summed_losses(self) -> set[int]:
        """Which entries of model.losses are sums over rows, and no means."""
        summed = set()
        for number in range(len(self._looks[0].whole.extras)):
            found = [
                (
                    look.whole.extras[number],
                    look.moved.extras[number],
                    _mean(look.pieces.extras[number], look.rows),
                    look.pieces.extras[number].sum(0),
                )
                for look in self._looks
            ]
            if all(self._close(mean, whole, moved) for whole, moved, mean, _ in found):
                continue
            if not all(self._close(total, whole, moved) for whole, moved, _, total in found):
                whole, _, mean, total = next(f for f in found if not self._close(f[2], f[0], f[1]))
                raise ModelError(
                    f"Entry {number} of model.losses (add_loss, an activity regularizer) is "
                    f"{whole:.6g} on {self._looks[0].rows.sum()} rows. Computed in pieces, it is "
                    f"{mean:.6g} as a mean over rows and {total:.6g} as a sum: it is neither. "
                    + _REMEDY
                )
            summed.add(number)
        return summed

    def _adds_up(self, rules: Rules, number: int, of_rows: int) -> bool:
        """Whether a loss is the sum of its parts, and gives a row the same value anywhere."""
        for look in self._looks:
            whole, moved = look.whole.losses[number], look.moved.losses[number]
            total = look.pieces.losses[number].sum(0)
            rows, in_pieces = look.whole.outputs[of_rows], look.pieces.outputs[of_rows]
            alike = number in rules.met_losses or (
                rows.shape == in_pieces.shape
                and self._close(in_pieces, rows, look.moved.outputs[of_rows])
            )
            if alike and self._close(total, whole, moved):
                continue
            if number in rules.met_losses:
                name = keras_private.losses(self._comparison.model)[number].name
                raise ModelError(
                    f"The loss {name!r} is {whole:.6g} on {look.rows.sum()} rows and {total:.6g} "
                    f"computed in pieces, or not the same for a row in both: rows meet in it. "
                    f"{_REMEDY}"
                )
            return False
        return True

    def _metrics_meet(self, rules: Rules, look: Look) -> bool:
        """Whether the metrics' states are no sums over rows that are added to what was before."""
        for variable, whole, moved, again, parts in zip(
            look.layout.changes.metrics,
            look.whole.metrics,
            look.moved.metrics,
            look.again.metrics,
            look.pieces.metrics,
            strict=True,
        ):
            name = keras_private.metric_name(self._comparison.model, variable)
            after = f"{few(whole)} after {look.rows.sum()} rows"
            if rules.met_metrics:
                if not self._close(parts[0], whole, moved):
                    raise ModelError(
                        f"The metric {name!r} keeps {variable.name!r}, which is {after} and "
                        f"{few(parts[0])} where their outputs come together. {_REMEDY}"
                    )
            elif not self._close(parts.sum(0), whole, moved) or not self._close(
                again, 2 * whole, 2 * moved
            ):
                if self._in_pieces:
                    raise ModelError(
                        f"The metric {name!r} keeps {variable.name!r}, which is {after}, "
                        f"{few(again)} after these once more, and {few(parts.sum(0))} added up "
                        "from pieces: it is not a sum over rows. Use a metric that keeps sums, or "
                        "compute it in a callback."
                    )
                return True
        return rules.met_metrics

    def _state_rules(self, rules: Rules) -> dict[str, frozenset[str]]:
        """What the variables become: the same everywhere, a mean over rows, or a sum."""
        layout = self._looks[0].layout
        changed = {variable.path for variable in layout.changes.state}
        same, summed = set(rules.same_state - changed), set()
        for number, variable in enumerate(layout.changes.state):
            found = [
                (
                    look.whole.state[number],
                    look.moved.state[number],
                    look.pieces.state[number],
                    look.rows,
                    look.before[number],
                )
                for look in self._looks
            ]
            whole, _, values, rows, _ = found[0]
            weight = any(variable is trained for trained in layout.weights)
            real = np.issubdtype(whole.dtype, np.floating) or whole.dtype.kind == "V"
            # What micro-batches make of their own statistics is seen without them here.
            if (not self._in_pieces or not real or weight) and all(
                np.array_equal(value, v[0]) and self._close(value, w, m)
                for w, m, v, _, _ in found
                for value in v
            ):
                same.add(variable.path)
            elif (
                real
                and not weight
                and all(self._close(_mean(v, r), w, m) for w, m, v, r, _ in found)
            ):
                pass
            elif (
                not weight
                and whole.dtype != bool
                and all(
                    self._close(before + (v - before).sum(0, dtype=w.dtype), w, m)
                    for w, m, v, _, before in found
                )
            ):
                summed.add(variable.path)
            else:
                raise ModelError(
                    f"The variable {variable.path!r} becomes {few(whole)} after {rows.sum()} "
                    f"rows. Pieces of them lead to {' and '.join(map(few, values[:3]))}, whose "
                    f"mean over rows or sum that is not. {_REMEDY}"
                )
        return {"summed_state": frozenset(summed), "same_state": frozenset(same)}

    def _require_same_again(self, whole: np.ndarray, again: np.ndarray) -> None:
        """Refuse a model that computes something else for the same rows each time."""
        if whole.shape != again.shape or not self._close(again, whole, whole):
            raise ModelError(
                f"The model's outputs for the same rows are {few(whole)} once and {few(again)} "
                "another time, with the same weights and seeds: something in it draws from a "
                "generator of its own, or counts its calls. Draw with keras.random and a "
                "keras.random.SeedGenerator, keep counts in variables of the layer, or train on "
                "one worker without micro_batch_size."
            )

    def _require_same_on_all(self, whole: np.ndarray, moved: np.ndarray) -> None:
        """Refuse a model of which the workers compute different things for the same rows."""
        own = np.nan_to_num([np.abs(np.asarray(a, np.float64)).sum() for a in (whole, moved)])
        sums, of_moved = self._communicator.allgather(tf.constant([own])).numpy().T
        of_first, moved_of_first = (np.full(len(sums), n[0]) for n in (sums, of_moved))
        if not self._close(sums, of_first, moved_of_first):
            raise ModelError(
                f"The model's outputs for the same {len(np.atleast_1d(whole))} rows are not the "
                f"same on every worker: the sum of their absolute values is {few(sums)}, by rank. "
                "Something in it depends on the worker, such as a seed made of the rank; let it "
                "be the same on all of them."
            )

    def _refuse_outputs(
        self, rules: Rules, whole: np.ndarray, moved: np.ndarray, pieces: np.ndarray
    ) -> NoReturn:
        difference = np.abs(np.asarray(whole - pieces, np.float64))
        place = np.unravel_index(difference.argmax(), whole.shape)
        layers = self._comparison.layer_outputs(rules)
        names = [name for name, _, _ in layers]
        wrong = [
            n
            for n, (_, all_rows, some) in enumerate(layers)
            if not self._close(some, all_rows, all_rows)
        ]
        own = tf.constant([min(wrong, default=len(names))])
        first = self._communicator.allgather(own).numpy().min()
        name = f"The layer {names[first]!r}" if first < len(names) else "The model"
        raise ModelError(
            f"{name} gives row {place[0]} of {len(whole)} another output where other rows are "
            f"computed with it: {whole[place]:.6g} with all of them, {pieces[place]:.6g} with "
            f"some. Rows meet in it, so a global mini-batch can't be cut. {_REMEDY}"
        )

    def _close(self, found: Any, wanted: Any, moved: Any, scale: float | None = None) -> bool:
        return close(found, wanted, moved, self._tolerance, scale)


def _likely(comparison: Comparison) -> Rules:
    """Rules that fit most models, for a first look."""
    model = comparison.model
    same = [v for layer in keras_private.layers(model) for v in keras_private.seeds(layer)]
    if not comparison.in_pieces:  # moving averages of the statistics of all rows
        same += [v for v in other_variables(model) if tf.as_dtype(v.dtype).is_floating]
    return Rules(same_state=frozenset(v.path for v in same))


def _mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.tensordot(rows / rows.sum(), np.asarray(values, np.float64), axes=1)
