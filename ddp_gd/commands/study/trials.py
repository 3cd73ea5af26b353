"""The trainings of a study, and the record that each leaves in its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ddp_gd.commands.config import StudyConfig
from ddp_gd.errors import ConfigError, DataError
from ddp_gd.files import write_json

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
        """Of its record."""
        return f"{self.optimizer}-batch_{self.batch_size}-lr_{self.lr!r}-workers_{self.workers}"

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        return f"{workers}, {self.optimizer}, batch size {self.batch_size}, lr {self.lr:g}"


@dataclasses.dataclass(frozen=True)
class Result:
    """How one training went.

    Attributes:
        trial: what was trained.
        rows: observations in the training data.
        updates: in one epoch.
        diverged: why it was stopped: a loss or gradient that is not finite; or empty.
        loss: after each epoch: the mean over its mini-batches.
        val_loss: after each epoch, empty without validation.
        seconds: of each epoch, without validation. The first includes building graphs.
        fingerprint: of the weights at the end.
    """

    trial: Trial
    rows: int
    updates: int
    diverged: str
    loss: list[float]
    val_loss: list[float]
    seconds: list[float]
    fingerprint: str

    @property
    def batch_rows(self) -> int:
        """The batch size in rows."""
        return self.rows if self.trial.batch_size == "full" else self.trial.batch_size

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
    """What all trainings have in common."""
    common = {k: v for k, v in dataclasses.asdict(options).items() if k not in (*AXES, "out")}
    if ".py:" in options.model:
        path = Path(options.model.rpartition(":")[0])
        if path.is_file():
            common["model_file"] = f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    for name in ("ddp_gd", "tensorflow", "keras"):
        common[f"version of {name}"] = metadata.version(name)
    return json.loads(json.dumps(common))


def best_of_each(results: Sequence[Result]) -> list[Result]:
    """The result at the best learning rate, for each optimizer and batch size.

    All of the smallest number of workers: the others make the same updates.
    """
    fewest = min(result.trial.workers for result in results)
    best: dict[tuple[str, int], Result] = {}
    for result in results:
        key = result.trial.optimizer, result.batch_rows
        if result.trial.workers == fewest and (key not in best or result.score < best[key].score):
            best[key] = result
    return list(best.values())


def speed(results: Sequence[Result], like: Result, workers: int) -> float:
    """Rows a second of so many workers, with the optimizer and batch size of `like`.

    The median over the learning rates, which don't matter for it; NaN if all diverged at once.
    """
    key = like.trial.optimizer, like.batch_rows
    same = (r for r in results if r.trial.workers == workers)
    speeds = [r.rows_per_second for r in same if (r.trial.optimizer, r.batch_rows) == key]
    return statistics.median([value for value in speeds if math.isfinite(value)] or [math.nan])


class Journal:
    """The folder of a study.

    Args:
        folder: new, empty, or of a study before.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._setting = self.folder / "setting.json"

    def require_same(self, common: Mapping[str, Any]) -> None:
        """Refuse a folder that holds something else than trainings of this setting.

        Raises:
            ConfigError: it does; nothing has been written.
            DataError: a record in it is damaged.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--out {self.folder} is a file; give a folder.")
        if not self._setting.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(
                    f"--out {self.folder} holds something that is no study; give a new folder."
                )
            return
        before = self._read(self._setting)
        different = [
            f"{name} was {before[name]!r} and is {value!r}"
            for name, value in common.items()
            if name in before and before[name] != value
        ]
        if different:
            raise ConfigError(
                f"--out {self.folder} holds trainings that can't be compared with these: "
                f"{'; '.join(different)}. Give another folder, or the same setting."
            )

    def begin(self, common: Mapping[str, Any]) -> None:
        """Note the setting, or refuse it as `require_same` does."""
        self.require_same(common)
        try:
            (self.folder / "records").mkdir(parents=True, exist_ok=True)
            write_json(self._setting, common)
        except OSError as error:
            raise self._unwritable(error) from error

    def missing(self, wanted: Iterable[Trial]) -> list[Trial]:
        """Those that have no record yet."""
        return [trial for trial in wanted if not self._path(trial).exists()]

    def write(self, result: Result) -> None:
        """Keep a result, whole or not at all."""
        try:
            write_json(self._path(result.trial), dataclasses.asdict(result))
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self, trial: Trial) -> Result:
        """A result that was kept.

        Raises:
            DataError: its record is damaged.
        """
        path = self._path(trial)
        record = self._read(path)
        try:
            result = Result(**{**record, "trial": Trial(**record["trial"])})
            for numbers in (result.loss, result.val_loss, result.seconds):
                numbers[:] = map(float, numbers)
            sound = result.trial == trial and result.rows > 0 and result.updates > 0
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(path, repr(error)) from error
        if not sound:
            raise self._damaged(path, f"it is of {result.trial}")
        return result

    def _path(self, trial: Trial) -> Path:
        return self.folder / "records" / f"{trial.name}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(path, str(error)) from error
        if not isinstance(content, dict):
            raise self._damaged(path, f"it holds a {type(content).__name__}")
        return content

    def _damaged(self, path: Path, why: str) -> DataError:
        remedy = "Give another --out" if path == self._setting else "Remove it to train that again"
        return DataError(f"{path} is damaged: {why}. {remedy}.")

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"--out {self.folder} can't be written ({error}): make room there, or give another."
        )
