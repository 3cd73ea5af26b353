"""Is what the shares compute what the whole is? Found out on real rows before the first update.

Some rows of the first global mini-batch are computed whole, as Keras does, and in pieces as they
will be: the outputs of each row, the losses, every entry of `model.losses`, the gradients, the
variables and metric states that change. What is a mean over rows, a sum, or free of rows follows
from the numbers; where nothing fits, the model is refused by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.errors import ModelError
from ddp_gd.step import keras_private
from ddp_gd.step.proof.comparison import Comparison, Look
from ddp_gd.step.rules import Rules

_REMEDY = "Compute it of each row alone, or train on one worker without micro_batch_size."


class Proof:
    """Finds out how the pieces of a global mini-batch make up the whole. Collective.

    Args:
        comparison: of some of the rows.
    """

    def __init__(self, comparison: Comparison):
        self._comparison = comparison
        self._communicator = comparison.communicator
        self._in_pieces = comparison.together is None
        halves = {"float16", "bfloat16"}
        layers = keras_private.layers(comparison.model)
        half = any(getattr(layer, "compute_dtype", "") in halves for layer in layers)
        # Layer after layer of batch statistics makes much of what rounding left.
        normalises = any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)
        self._tolerance = 5e-2 if half or normalises else 1e-3

    def rules(self) -> Rules:
        """Find the rules.

        Raises:
            ModelError: on every worker, where no rule makes up the whole.
        """
        rules = Rules()
        while True:  # what is to be computed otherwise is looked at once more
            looks = self._comparison.look(rules)
            better = self._better(rules, looks)
            if better == rules:
                for found in looks:
                    self._require_gradients(found)
                return rules
            rules = better

    def _better(self, rules: Rules, looks: list[Look]) -> Rules:
        """The rules by which the pieces make up the whole, where others do not."""
        losses = len(looks[0].whole.losses)
        outputs = len(looks[0].whole.outputs) - losses  # what losses give for rows comes after
        for found in looks:
            for number in range(outputs):
                whole, pieces = found.whole.outputs[number], found.pieces.outputs[number]
                self._require_same_on_all(whole)
                if whole.shape == pieces.shape and not self._close(pieces, whole):
                    self._refuse_outputs(rules, whole, pieces)
        return dataclasses.replace(
            rules,
            summed_losses=rules.summed_losses | self._summed_losses(looks),
            met_losses=rules.met_losses
            | {n for n in range(losses) if not self._adds_up(rules, n, outputs + n, looks)},
            met_metrics=any([self._metrics_meet(rules, found) for found in looks]),
            **self._state_rules(looks),
        )

    def _summed_losses(self, looks: list[Look]) -> set[int]:
        """Which entries of model.losses are sums over rows, and no means."""
        summed = set()
        for number in range(len(looks[0].whole.extras)):
            triples = [
                (
                    found.whole.extras[number],
                    _mean(found.pieces.extras[number], found.rows),
                    found.pieces.extras[number].sum(0),
                )
                for found in looks
            ]
            if all(self._close(mean, whole) for whole, mean, _ in triples):
                continue
            if not all(self._close(total, whole) for whole, _, total in triples):
                whole, mean, total = next(t for t in triples if not self._close(t[1], t[0]))
                raise ModelError(
                    f"Entry {number} of model.losses (add_loss, an activity regularizer) is "
                    f"{whole:.6g} on {looks[0].rows.sum()} rows. Computed in pieces, it is "
                    f"{mean:.6g} as a mean over rows and {total:.6g} as a sum: it is neither. "
                    + _REMEDY
                )
            summed.add(number)
        return summed

    def _adds_up(self, rules: Rules, number: int, of_rows: int, looks: list[Look]) -> bool:
        """Whether a loss is the sum of its parts, and gives a row the same value anywhere."""
        for found in looks:
            whole, total = found.whole.losses[number], found.pieces.losses[number].sum(0)
            rows, in_pieces = found.whole.outputs[of_rows], found.pieces.outputs[of_rows]
            alike = number in rules.met_losses or (
                rows.shape == in_pieces.shape and self._close(in_pieces, rows)
            )
            if alike and self._close(total, whole):
                continue
            if self._in_pieces or number in rules.met_losses:
                name = keras_private.losses(self._comparison.model)[number].name
                raise ModelError(
                    f"The loss {name!r} is {whole:.6g} on {found.rows.sum()} rows and {total:.6g} "
                    f"computed in pieces, or not the same for a row in both: rows meet in it. "
                    f"{_REMEDY}"
                )
            return False
        return True

    def _metrics_meet(self, rules: Rules, found: Look) -> bool:
        """Whether the metrics' states are no sums over rows that are added to what was before."""
        for variable, whole, again, parts in zip(
            found.layout.changes.metrics,
            found.whole.metrics,
            found.again,
            found.pieces.metrics,
            strict=True,
        ):
            name = keras_private.metric_name(self._comparison.model, variable)
            after = f"{_few(whole)} after {found.rows.sum()} rows"
            if rules.met_metrics:
                if not self._close(parts[0], whole):
                    raise ModelError(
                        f"The metric {name!r} keeps {variable.name!r}, which is {after} and "
                        f"{_few(parts[0])} where their outputs come together. {_REMEDY}"
                    )
            elif not self._close(parts.sum(0), whole) or not self._close(again, 2 * whole):
                if self._in_pieces:
                    raise ModelError(
                        f"The metric {name!r} keeps {variable.name!r}, which is {after}, "
                        f"{_few(again)} after these once more, and {_few(parts.sum(0))} added up "
                        "from pieces: it is not a sum over rows. Use a metric that keeps sums, or "
                        "compute it in a callback."
                    )
                return True
        return rules.met_metrics

    def _state_rules(self, looks: list[Look]) -> dict[str, frozenset[str]]:
        """What the variables become: the same everywhere, a mean over rows, or a sum."""
        summed, same = set(), set()
        layout = looks[0].layout
        for number, variable in enumerate(layout.changes.state):
            found = [(f.whole.state[number], f.pieces.state[number], f.rows) for f in looks]
            whole, values, rows = found[0]
            weight = any(variable is trained for trained in layout.weights)
            real = np.issubdtype(whole.dtype, np.floating) or whole.dtype.kind == "V"
            before = variable.value.numpy()
            # What micro-batches make of their own statistics is seen without them here.
            if (not self._in_pieces or not real or weight) and all(
                self._close(value, w) if weight else np.array_equal(value, w)
                for w, v, _ in found
                for value in v
            ):
                same.add(variable.path)
            elif real and not weight and all(self._close(_mean(v, r), w) for w, v, r in found):
                pass
            elif (
                not weight
                and whole.dtype != bool
                and all(
                    self._close(before + (v - before).sum(0, dtype=w.dtype), w) for w, v, _ in found
                )
            ):
                summed.add(variable.path)
            else:
                raise ModelError(
                    f"The variable {variable.path!r} becomes {_few(whole)} after {rows.sum()} "
                    f"rows. Pieces of them lead to {' and '.join(map(_few, values[:3]))}, whose "
                    f"mean over rows or sum that is not. {_REMEDY}"
                )
        return {"summed_state": frozenset(summed), "same_state": frozenset(same)}

    def _require_gradients(self, found: Look) -> None:
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

    def _require_same_on_all(self, whole: np.ndarray) -> None:
        """Refuse a model of which the workers compute different things for the same rows."""
        own = np.nan_to_num(np.abs(np.asarray(whole, np.float64)).sum())
        sums = self._communicator.allgather(tf.constant([own])).numpy()
        if not self._close(sums, np.full(len(sums), sums[0])):
            raise ModelError(
                f"The model's outputs for the same {len(np.atleast_1d(whole))} rows are not the "
                f"same on every worker: the sum of their absolute values is {_few(sums)}, by rank. "
                "Something in it depends on the worker, such as a seed made of the rank; let it "
                "be the same on all of them."
            )

    def _refuse_outputs(self, rules: Rules, whole: np.ndarray, pieces: np.ndarray) -> NoReturn:
        difference = np.abs(np.asarray(whole - pieces, np.float64))
        place = np.unravel_index(difference.argmax(), whole.shape)
        layers = self._comparison.layer_outputs(rules)
        names = [name for name, _, _ in layers]
        wrong = [
            n for n, (_, all_rows, some) in enumerate(layers) if not self._close(some, all_rows)
        ]
        own = tf.constant([min(wrong, default=len(names))])
        first = self._communicator.allgather(own).numpy().min()
        name = f"The layer {names[first]!r}" if first < len(names) else "The model"
        raise ModelError(
            f"{name} gives row {place[0]} of {len(whole)} another output where other rows are "
            f"computed with it: {whole[place]:.6g} with all of them, {pieces[place]:.6g} with "
            f"some. Rows meet in it, so a global mini-batch can't be cut. {_REMEDY}"
        )

    def _close(
        self, found: Any, wanted: Any, scale: float | None = None, factor: float = 1
    ) -> bool:
        """Whether numbers are equal to the precision of the model's; where they are numbers."""
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        if not np.isfinite(wanted).all():
            return True  # the first step will say so
        scale = max(np.abs(wanted).max(initial=0), 1e-6) if scale is None else max(scale, 1e-12)
        return bool(np.abs(found - wanted).max(initial=0) <= factor * self._tolerance * scale)


def _mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.tensordot(rows / rows.sum(), np.asarray(values, np.float64), axes=1)


def _few(values: Any) -> str:
    """The first numbers of an array."""
    flat = np.asarray(values).reshape(-1)
    text = ", ".join(f"{value:.6g}" for value in flat[:3].astype(np.float64))
    return f"[{text}, ...]" if flat.size > 3 else (f"[{text}]" if flat.size > 1 else text)
