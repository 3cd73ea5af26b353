"""Gradient descent in five ways on the same rows: with one model, and with one for each worker.

All of them make the same number of gradient evaluations, and all but (d) and (e) cut the rows of
an epoch into the same global mini-batches:

    (a) averaged       one update by the averaged gradient of each global mini-batch: `ddp_gd.fit`
    (b) independent    every worker updates weights of its own by its share of the mini-batch
    (c) local SGD      as (b), but the workers' weights are averaged after every so many steps
    (d) single-sample  `ddp_gd.fit` with batch size 1
    (e) full batch     `ddp_gd.fit` with batch size "full"

The updates of (b) and (c) are Keras's own, by `keras.Model.train_on_batch`. In a job each worker
makes its own; a process that is alone makes those of all workers, one worker after the other.
Nothing random happens in an update, so both compute the same.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from ddp_gd.batching.order import Order
from ddp_gd.batching.plan import Plan, plan_of
from ddp_gd.comm.base import Communicator
from ddp_gd.commands import models
from ddp_gd.errors import ConfigError
from ddp_gd.training.fit import fit

# After at most so many steps of a training the weights are kept, and after every epoch.
_POINTS = 500


class Examples(NamedTuple):
    """Features and targets, float32, shape (rows, columns)."""

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What all of the trainings have in common."""

    training: Examples
    batch_size: int  # rows of a global mini-batch
    epochs: int
    lr: float  # of every update
    workers: int  # how many there are, or are simulated
    hidden: tuple[int, ...] = (64, 64)  # units of each hidden layer of the model

    def __post_init__(self) -> None:
        rows = len(self.training.x)
        if self.batch_size > rows:  # what the schemes differ in needs more than one mini-batch
            raise ConfigError(
                f"batch_size={self.batch_size} is larger than the {rows} rows of the training "
                f"data; give {rows} or less."
            )
        self.plan(seed=0)  # a batch size that can't be used is refused before anything is trained

    def plan(self, seed: int) -> Plan:
        """The global mini-batches of (a), (b) and (c), as `ddp_gd.fit` has them."""
        return plan_of(len(self.training.x), self.batch_size, shuffle=True, seed=seed)

    @property
    def steps(self) -> int:
        """Global mini-batches of the whole training."""
        return self.epochs * self.plan(0).steps

    @property
    def points(self) -> np.ndarray:
        """The numbers of steps after which weights are kept: int64, from 0 to `steps`."""
        every = -(-self.steps // _POINTS)
        return np.union1d(np.arange(0, self.steps, every), self.epoch_ends)

    @property
    def epoch_ends(self) -> np.ndarray:
        """The number of steps made by the end of each epoch, and 0: int64, shape (epochs + 1,)."""
        return np.arange(self.epochs + 1) * self.plan(0).steps

    def model(self, seed: int) -> keras.Model:
        """A model with the initial weights of this seed, compiled."""
        keras.utils.set_random_seed(seed)
        model = models.build(
            "mlp", self.training.x.shape[1:], self.training.y.shape[-1], self.hidden
        )
        # Named: Keras would number it, by how many a worker has made, and workers must agree.
        optimizer = keras.optimizers.SGD(self.lr, name="sgd")
        model.compile(optimizer, keras.losses.MeanSquaredError())
        return model


class Trajectory(NamedTuple):
    """The weights of one or more models on their way through a training."""

    steps: np.ndarray  # of (a) behind, or as many rows: int64, shape (points,)
    weights: np.ndarray  # float32, shape (models, points, weights)


class Weights:
    """A compiled model whose weights, all trainable, are set and read as one vector."""

    def __init__(self, model: keras.Model):
        self.model = model

    def get(self) -> np.ndarray:
        """A copy: float32, shape (weights,)."""
        return np.concatenate([np.ravel(w) for w in self.model.get_weights()])

    def set(self, vector: np.ndarray) -> None:
        """Give the model these weights, in the order of `get`."""
        shapes = [w.shape for w in self.model.weights]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = np.split(vector, ends[:-1])
        self.model.set_weights([p.reshape(s) for p, s in zip(parts, shapes, strict=True)])

    def loss(self, rows: Examples) -> float:
        """The loss of these rows."""
        self.model.reset_metrics()
        return float(self.model.test_on_batch(rows.x, rows.y, return_dict=True)["loss"])


def with_fit(setup: Setup, seed: int, batch_size: int | Literal["full"]) -> np.ndarray:
    """Train (a), (d) or (e), all workers together. Collective.

    Returns:
        This worker's weights, float32, shape (points, weights): at `Setup.points` where the
        batch size is that of the setup, else at `Setup.epoch_ends`.
    """
    model = setup.model(seed)
    weights = Weights(model)
    kept: list[np.ndarray] = []

    def keep(*_: Any, **logs: Any) -> None:
        kept.append(weights.get())

    points, steps = set(setup.points.tolist()), itertools.count(1)

    def keep_some(*_: Any, **logs: Any) -> None:
        if next(steps) in points:
            keep()

    each_step = batch_size == setup.batch_size
    after = {"on_train_batch_end": keep_some} if each_step else {"on_epoch_end": keep}
    fit(
        model,
        setup.training.x,
        setup.training.y,
        batch_size=batch_size,
        epochs=setup.epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_begin=keep, **after)],
        seed=seed,
        terminate_on_nan=False,  # that one of them diverges is a result
    )
    return np.stack(kept)


def independently(
    setup: Setup,
    seed: int,
    weights: Weights,
    mine: Sequence[int],
    every: int | None = None,
    gather: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
    """Train (b) or (c): each worker makes its own updates, by Keras itself.

    Args:
        setup: of the trainings; with one worker this is plain Keras in one process.
        seed: of initial weights and order of rows.
        weights: of one of the setup's models, which makes the updates.
        mine: the workers whose updates this process makes.
        every: average the workers' weights after so many steps, and after the last one; None
            never does.
        gather: makes of the weights of `mine` those of all workers, shape (workers, weights).

    Returns:
        The weights of `mine`, float32, shape (workers, points, weights), at `Setup.points`;
        after the averaging where both fall on one step.
    """
    plan, steps, points = setup.plan(seed), setup.steps, setup.points
    x, y = setup.training
    rows = [_rows(plan, setup.epochs, worker, setup.workers) for worker in mine]
    place = {int(point): p for p, point in enumerate(points)}
    now = np.tile(Weights(setup.model(seed)).get(), (len(mine), 1))  # (workers, weights)
    kept = np.empty((len(mine), len(points), now.shape[1]), np.float32)
    kept[:, 0] = now
    for first in range(0, steps, every or steps):
        stop = min(first + (every or steps), steps)
        for worker in range(len(mine)):
            weights.set(now[worker])
            for step in range(first, stop):
                if len(batch := rows[worker][step]):
                    weights.model.train_on_batch(x[batch], y[batch])
                if step + 1 in place:
                    kept[worker, place[step + 1]] = weights.get()
            now[worker] = weights.get()
        if every is not None:
            now[:] = gather(now).mean(axis=0)
            if stop in place:
                kept[:, place[stop]] = now
    return kept


def keras_in_one_process(setup: Setup, weights: Weights, seed: int = 0) -> Trajectory:
    """Train (a) once more: `keras.Model.train_on_batch` on whole global mini-batches."""
    alone = dataclasses.replace(setup, workers=1)
    return Trajectory(setup.points, independently(alone, seed, weights, mine=[0]))


def train_all(
    setup: Setup, seed: int, weights: Weights, communicator: Communicator, every: int
) -> dict[str, Trajectory]:
    """Train with one seed in each way. Collective.

    Args:
        setup: of the trainings.
        seed: of initial weights and order of rows.
        weights: of one of the setup's models, which makes the updates of (b) and (c).
        communicator: of the job, with as many workers as the setup has; or of a lone process, which
            then stands for all workers.
        every: steps between two averagings of (c).

    Returns:
        On every worker: `averaged`, `independent`, `averaged_at_end`, `local_sgd`, `single_sample`
        and `full_batch`; the first four with all workers' weights, where this is a job, the first
        one as well.
    """

    def gather(array: np.ndarray) -> np.ndarray:
        return np.asarray(communicator.allgather(array))

    mine = [communicator.rank] if communicator.size > 1 else range(setup.workers)
    independent = gather(independently(setup, seed, weights, mine))
    averaged_at_end = independent.copy()
    averaged_at_end[:, -1] = independent[:, -1].mean(axis=0)
    local_sgd = gather(independently(setup, seed, weights, mine, every, gather))
    averaged = gather(with_fit(setup, seed, setup.batch_size)[None])
    return {
        "averaged": Trajectory(setup.points, averaged),
        "independent": Trajectory(setup.points, independent),
        "averaged_at_end": Trajectory(setup.points, averaged_at_end),
        "local_sgd": Trajectory(setup.points, local_sgd),
        "single_sample": Trajectory(setup.epoch_ends, with_fit(setup, seed, 1)[None]),
        "full_batch": Trajectory(setup.epoch_ends, with_fit(setup, seed, "full")[None]),
    }


def _rows(plan: Plan, epochs: int, worker: int, workers: int) -> list[np.ndarray]:
    """The rows that a worker computes of each step."""
    shares = plan.shares(0, plan.steps, worker, workers)
    return [
        rows
        for epoch in range(epochs)
        for rows in np.split(Order(plan, epoch).rows(shares.positions), shares.offsets[1:-1])
    ]
