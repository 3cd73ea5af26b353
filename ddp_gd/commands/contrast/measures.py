"""Losses, distances between weights and gradient noise: what contrast measures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddp_gd.batching.plan import Plan
from ddp_gd.commands.contrast import noise
from ddp_gd.commands.contrast.schemes import Examples, Setup, Trajectory, Weights

DISTANCES = {
    "step": "global mini-batches of (a) behind; for (d) and (e) at the ends of the epochs",
    "workers_apart": "root of the mean, over the workers, of the squared L2 distance between a "
    "worker's weights and the workers' mean weights, relative to the L2 norm of that mean",
    "distance_to_a": "root of the mean, over the workers, of the squared L2 distance between a "
    "worker's weights and those of (a) after the same rows, relative to the L2 norm of the latter",
}
_DRAWS = 400  # mini-batches of each size


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One of the ways to train."""

    name: str  # in contrast.json
    title: str
    updates: tuple[int, ...]  # of each worker that makes its own, else of the one model
    rows: float  # of one update, on average where the shares of a mini-batch are uneven
    models: int = 1  # how many there are at the end


def all_schemes(setup: Setup, every: int) -> list[Scheme]:
    """All of them, (a) first."""
    plan, epochs, workers = setup.plan(0), setup.epochs, setup.workers
    own = tuple(epochs * _nonempty_shares(plan, worker, workers) for worker in range(workers))
    share, rows = setup.batch_size / workers, plan.rows
    steps = f"{every} steps" if every > 1 else "step"
    return [
        Scheme("averaged", "(a) averaged", (setup.steps,), setup.batch_size),
        Scheme("independent", "(b) independent", own, share, models=workers),
        Scheme("averaged_at_end", "(c) averaged at the end", own, share),
        Scheme("local_sgd", f"(c) averaged every {steps}", own, share),
        Scheme("single_sample", "(d) single-sample", (epochs * rows,), 1),
        Scheme("full_batch", "(e) full batch", (epochs,), rows),
    ]


def _nonempty_shares(plan: Plan, worker: int, workers: int) -> int:
    return int(np.count_nonzero(np.diff(plan.shares(0, plan.steps, worker, workers).offsets)))


def of_training(
    trajectory: Trajectory,
    averaged: Trajectory,
    setup: Setup,
    weights: Weights,
    validation: Examples,
) -> dict[str, Any]:
    """Losses at the ends of the epochs, and distances step by step, see `DISTANCES`.

    Args:
        trajectory: of one way to train.
        averaged: of (a), with the same seed.
        setup: of the trainings.
        weights: of a model that computes the losses.
        validation: rows that were not trained on.

    Returns:
        `training_loss` and `validation_loss`, a list for each model; `step`, `workers_apart` (None
        where there is only one model) and `distance_to_a`.
    """
    parts = setup.training, validation
    points = np.searchsorted(trajectory.steps, setup.epoch_ends)
    losses: dict[str, list[list[float]]] = {"training_loss": [], "validation_loss": []}
    for model in trajectory.weights:
        curves = np.array([_losses(weights, model[p], *parts) for p in points])
        for name, curve in zip(losses, curves.T, strict=True):
            losses[name].append(curve.tolist())
    of_a = averaged.weights[0, np.searchsorted(averaged.steps, trajectory.steps)]
    mean = trajectory.weights.mean(axis=0)
    return {
        **losses,
        "step": trajectory.steps.tolist(),
        "workers_apart": _relative(trajectory.weights, mean)
        if len(trajectory.weights) > 1
        else None,
        "distance_to_a": _relative(trajectory.weights, of_a),
    }


def _losses(weights: Weights, vector: np.ndarray, *parts: Examples) -> list[float]:
    weights.set(vector)
    return [weights.loss(part) for part in parts]


def _relative(models: np.ndarray, other: np.ndarray) -> list[float]:
    """RMS over models of the distance to `other`, relative to the norm of `other`, at each point.

    Args:
        models: shape (models, points, weights).
        other: shape (points, weights).
    """
    squares = np.sum(np.square(models - other, dtype=np.float64), axis=-1)  # (models, points)
    return (np.sqrt(squares.mean(axis=0)) / np.linalg.norm(other, axis=-1)).tolist()


def summary(scheme: Scheme, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up the trainings of all seeds, and keep the first seed's curves.

    Args:
        scheme: how they were trained.
        seeds: of each seed, what `of_training` gave.
    """

    def last(name: str) -> list[list[float]]:
        return [[curve[-1] for curve in seed[name][: scheme.models]] for seed in seeds]

    apart = [[max(seed["workers_apart"])] for seed in seeds if seed["workers_apart"] is not None]
    return {
        **dataclasses.asdict(scheme),
        "training_loss": _spread(last("training_loss")),
        "validation_loss": _spread(last("validation_loss")),
        "workers_apart_at_most": _spread(apart) if apart else None,
        "distance_to_a": _spread([[seed["distance_to_a"][-1]] for seed in seeds]),
        "first_seed": seeds[0],
    }


def _spread(values: list[list[float]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds and models, and the values themselves."""
    flat = np.ravel(values)
    std = float(flat.std(ddof=1)) if len(flat) > 1 else None
    return {"mean": float(flat.mean()), "std": std, "values": values}


def of_noise(
    weights: Weights, where: Mapping[str, np.ndarray], training: Examples
) -> dict[str, Any]:
    """The spread of the mini-batch gradient around the full gradient, by batch size.

    Args:
        weights: of a model that computes gradients.
        where: weights to compute them at, by name.
        training: the rows.
    """
    sizes = noise.sizes(len(training.x))
    at = {}
    for name, vector in where.items():
        weights.set(vector)
        gradients = noise.of_each_row(weights.model, *training)
        at[name] = {
            "measured": [noise.measured(gradients, size, _DRAWS) for size in sizes],
            "exact": [noise.expected(gradients, size) for size in sizes],
            "one_over_sqrt_b": [noise.of_one_row(gradients) / math.sqrt(size) for size in sizes],
        }
    return {
        "what": "root mean squared L2 distance between the gradient of a random mini-batch, drawn "
        "without replacement, and the gradient of all rows, relative to the L2 norm of the latter",
        "draws": _DRAWS,
        "batch_size": sizes,
        "at": at,
    }


def finite(record: Any) -> Any:
    """Copy a record with None for every number that is not finite: JSON has no others."""
    if isinstance(record, Mapping):
        return {name: finite(value) for name, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record
