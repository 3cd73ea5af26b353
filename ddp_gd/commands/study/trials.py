"""The trainings of a study, and how one of them went."""

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ddp_gd.batching.plan import plan_of
from ddp_gd.commands.config import StudyConfig, TrainConfig
from ddp_gd.job.versions import version

AXES = ("batch_sizes", "lr", "optimizers", "workers")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One combination."""

    workers: int
    optimizer: Literal["sgd", "adam", "rmsprop"]
    batch_size: int | Literal["full"]
    lr: float

    @property
    def name(self) -> str:
        """The name of the record, without its suffix."""
        return f"{self.optimizer}-batch_{self.batch_size}-lr_{self.lr!r}-workers_{self.workers}"

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        return f"{workers}, {self.optimizer}, batch size {self.batch_size}, lr {self.lr:g}"

    def options(self, options: StudyConfig) -> TrainConfig:
        """The options of this training."""
        return options.training(self.batch_size, self.lr, self.optimizer)


@dataclasses.dataclass(frozen=True)
class Result:
    """The course of one training."""

    trial: Trial
    rows: int  # observations in the training data
    updates: int  # in one epoch
    diverged: str  # why it was stopped: a loss or gradient that is not finite; or empty
    loss: list[float]  # after each epoch, the mean over its mini-batches
    val_loss: list[float]  # after each epoch; empty without validation
    seconds: list[float]  # of each epoch, without validation; the first includes building graphs
    fingerprint: str  # of the weights at the end

    @property
    def batch_rows(self) -> int:
        """The batch size in rows."""
        return plan_of(self.rows, self.trial.batch_size).batch_size

    @property
    def score(self) -> float:
        """The training loss of the last epoch: what an optimizer makes small; infinite if diverged.

        Not the validation loss, whose smallest value may be that of the slowest training.
        """
        final = math.inf if self.diverged or not self.loss else self.loss[-1]
        return final if math.isfinite(final) else math.inf

    @property
    def epoch_seconds(self) -> float:
        """The median of the epochs but the first; NaN if it diverged before."""
        return statistics.median(self.seconds[1:]) if self.seconds[1:] else math.nan

    @property
    def rows_per_second(self) -> float:
        """Rows trained on in a second."""
        return self.rows / self.epoch_seconds

    @property
    def clock(self) -> list[float]:
        """Seconds of training until the end of each epoch, as if no graph had been built."""
        return list(itertools.accumulate([self.epoch_seconds, *self.seconds[1:]]))


def trials(options: StudyConfig, workers: Sequence[int]) -> list[Trial]:
    """Every combination, in the order in which they are trained."""
    axes = (workers, options.optimizers, options.batch_sizes, options.lr)
    return [Trial(*values) for values in itertools.product(*axes)]


def setting(options: StudyConfig) -> dict[str, Any]:
    """Collect what all trainings have in common."""
    common = {k: v for k, v in dataclasses.asdict(options).items() if k not in (*AXES, "out")}
    if ".py:" in options.model:
        path = Path(options.model.rpartition(":")[0])
        if path.is_file():
            common["model_file"] = f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    for name in ("ddp_gd", "tensorflow", "keras"):
        common[f"version of {name}"] = version(name)
    return json.loads(json.dumps(common))
