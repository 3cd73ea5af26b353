"""What the main job says and leaves behind."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import keras

from ddp_gd.batching.plan import Plan
from ddp_gd.batching.sources import bitwise_micro_batch_size
from ddp_gd.comm.base import Communicator
from ddp_gd.comm.environment import cpu_settings
from ddp_gd.commands import models
from ddp_gd.commands.config import TrainConfig
from ddp_gd.data.dataset import Dataset
from ddp_gd.data.preprocessing import Preprocessing
from ddp_gd.errors import ConfigError
from ddp_gd.job import bitwise, threads
from ddp_gd.reporting import page
from ddp_gd.reporting.plots import draw_losses
from ddp_gd.reporting.records import RECORDS, TIMES, read_run
from ddp_gd.training.replicas import fingerprint

# Losses and metrics of "training" and perhaps "validation"; None if they are not finite numbers.
Final = Mapping[str, Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What was trained on what, by whom.

    Attributes:
        config: the command line.
        loss: its name, chosen if the command line left that open.
        seed: `config.seed`, or the one that was drawn.
        communicator: the workers.
        dataset: the data, in their own units.
        preprocessing: what makes the model's input of them.
        train_rows: how many rows are trained on; the others are for validation.
        normalized_targets: whether the model predicts normalised targets.
        folder: where the results go.
    """

    config: TrainConfig
    loss: str
    seed: int
    communicator: Communicator
    dataset: Dataset
    preprocessing: Preprocessing
    train_rows: int
    normalized_targets: bool
    folder: Path

    @property
    def plan(self) -> Plan:
        """The steps of an epoch."""
        config = self.config
        size = self.train_rows if config.batch_size == "full" else config.batch_size
        pieces = config.micro_batch_size
        if pieces is None and config.bitwise:
            pieces = bitwise_micro_batch_size(size)
        return Plan(self.train_rows, size, pieces)

    @property
    def unit(self) -> str:
        """What the losses of the epochs are."""
        return "loss (of normalised targets)" if self.normalized_targets else "loss"


# What a training writes into its folder, the last one last.
_WRITTEN = ("tensorboard", "history.csv", "times.csv", "config.json", "loss.png", "model.keras")
_LAST_WRITTEN = "report.html"


def new_folder(out: str | None, resume: bool = False) -> Path:
    """Choose the folder for the results, which is made when there are some (`make`).

    Args:
        out: what was asked for.
        resume: whether it may hold what the same training left there before it was interrupted.

    Raises:
        ConfigError: it holds something else already, or could not be made.
    """
    if out is None:
        stamp = Path(time.strftime("runs/%Y%m%d-%H%M%S"))
        return next(folder for folder in _numbered(stamp) if not folder.exists())
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder that is new or empty.")
    if folder.exists() and not _is_free(folder, resume):
        raise ConfigError(f"--out {out} is not empty; give a new folder, so nothing is lost.")
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"--out {out} can't be written: {existing} is read-only for this user.")
    return folder


def _is_free(folder: Path, resume: bool) -> bool:
    """Whether a folder holds nothing but what the workers of this run print (launch/cpu_mpi.sh).

    With `resume`, whether it holds nothing but that and parts of results that were never finished.
    """
    known = {"logs", *_WRITTEN} if resume else {"logs"}
    return all(entry.name in known and not entry.is_symlink() for entry in folder.iterdir())


def with_folder(setting: Setup) -> Setup:
    """The setting with its folder made now, for what is written while it trains."""
    with explained(setting.folder):
        folder = make(setting.folder, setting.config.resume)
        return dataclasses.replace(setting, folder=folder)


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def make(chosen: Path, resume: bool = False) -> Path:
    """Make the folder, or the next free one: another run may have taken it in the meantime."""
    for folder in _numbered(chosen):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        if folder.is_dir() and _is_free(folder, resume):
            return folder
    raise AssertionError("there is always another number")


def announce(setting: Setup, model: keras.Model) -> None:
    """Print what is about to be trained on what, and who computes what of it."""
    for name, text in (_describe(setting, model) | {"results": str(setting.folder)}).items():
        print(f"{name:<8}{text}", flush=True)


def _describe(setting: Setup, model: keras.Model) -> dict[str, str]:
    config, dataset, plan = setting.config, setting.dataset, setting.plan
    workers = setting.communicator.size
    features = dataset.features.shape[1:]
    held_back = len(dataset.features) - setting.train_rows
    shares = [plan.share(0, worker, workers) for worker in (workers - 1, 0)]
    least, most = (share.stop - share.start for share in shares)
    lines = {
        "data": f"{dataset.source}: {_count(setting.train_rows, 'row')} to train on, {held_back} "
        f"to validate; {' x '.join(map(str, features))} feature{'s' * (features != (1,))} -> "
        f"{', '.join(dataset.target_names)}"
        + ("; normalised by the training rows" if config.normalize else ""),
        "as 0/1": ", ".join(
            f"{dataset.feature_names[place]} ({_count(len(texts), 'category', 'categories')})"
            for place, texts in setting.preprocessing.texts.items()
        ),
        "target": _target(setting),
        "model": f"{model.name}, {model.count_params():,} weights; loss {_name(model.loss)}, "
        f"{_optimizer(model.optimizer)}",
        "workers": f"{workers} ({setting.communicator.name}); seed {setting.seed}"
        + ("; bit for bit" if config.bitwise else ""),
        "step": f"global batch size {plan.batch_size}, one update each; a worker computes "
        f"{most if least == most else f'{least} to {most}'} of these rows; "
        f"{_count(plan.steps, 'step')} an epoch, {_count(config.epochs, 'epoch')}",
        "threads": f"{threads.intra_op_threads()} for an operation, "
        f"{threads.inter_op_threads()} operations at once"
        + (", in rank 0; each worker has those of its cores" if workers > 1 else ""),
        "tuning": cpu_settings() if workers > 1 else "",
    }
    return {name: text for name, text in lines.items() if text}


def write(
    setting: Setup,
    model: keras.Model,
    raw: keras.Model,
    history: Mapping[str, Sequence[float]],
    final: Final,
    times: Sequence[Sequence[Mapping[str, Any]]],
) -> Path:
    """Write the results.

    Args:
        setting: of the training.
        model: as it was trained.
        raw: the same on raw features, to be saved.
        history: Keras's `History.history`.
        final: the losses at the end in the target's own units, of training and validation.
        times: `Times.epochs` of each worker.

    Returns:
        The folder they are in.
    """
    with explained(setting.folder):
        folder = setting.folder
        if not setting.config.tensorboard:  # which made it
            folder = make(folder, setting.config.resume)
        with (folder / "history.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["epoch", *history])
            for epoch, row in enumerate(zip(*history.values(), strict=True), start=1):
                table.writerow([epoch, *map(repr, row)])
        with (folder / "times.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, TIMES, lineterminator="\n")
            rows.writeheader()
            for worker, epochs in enumerate(times):
                rows.writerows({"worker": worker, **epoch} for epoch in epochs)
        record = {
            "config": dataclasses.asdict(setting.config),
            "seed": setting.seed,
            "workers": setting.communicator.size,
            "backend": setting.communicator.name,
            "rows": {
                "training": setting.train_rows,
                "validation": len(setting.dataset.features) - setting.train_rows,
            },
            "steps_per_epoch": setting.plan.steps,
            "micro_batch_size": setting.plan.micro_batch_size,
            "description": _describe(setting, model),
            "unit": setting.unit,
            "inter_op_threads": threads.inter_op_threads(),
            "what_the_bits_depend_on": bitwise.facts(),
            "versions": versions(),
            "command": shlex.join(["python", "-m", "ddp_gd.train", *sys.argv[1:]]),
            "final": final,
            "fingerprint": fingerprint(model),
        }
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        draw_losses(history, folder / "loss.png", setting.unit)
        models.save(raw, folder / "model.keras", _about(setting, model))
        (folder / _LAST_WRITTEN).write_text(page.report(read_run(folder)), encoding="utf-8")
        return folder


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what to do where the results can't be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The results can't be written to {folder} ({error}): make room there, or give "
            "another --out."
        ) from error


def versions() -> dict[str, str]:
    """Of Python and of what computes the results, by name."""
    names = ("ddp_gd", "tensorflow", "keras", "numpy", "mpi4py")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


def _target(setting: Setup) -> str:
    """Why the loss was chosen that the command line left open."""
    dataset = setting.dataset
    if setting.config.loss != "auto" or dataset.classes is None:
        return ""
    if dataset.class_names is not None:
        names = ", ".join(map(repr, dataset.class_names[:6]))
        return f"{dataset.classes} classes: {names}{', ...' * (dataset.classes > 6)}"
    return (
        f"whole numbers 0 to {dataset.classes - 1}, each of which occurs: taken as classes. If "
        "they are amounts, give --loss mean_squared_error"
    )


def _about(setting: Setup, model: keras.Model) -> dict[str, Any]:
    """What the saved model takes and gives, for `python -m ddp_gd.predict`."""
    dataset = setting.dataset
    loss = model.loss if isinstance(model.loss, str) else _name(model.loss)
    names = dataset.class_names
    if loss == "sparse_categorical_crossentropy" and names is None:
        names = tuple(map(str, range(model.output_shape[-1])))
    if loss == "categorical_crossentropy":
        names = dataset.target_names
    if loss == "binary_crossentropy":
        names = names or ("0", "1")
    return {
        "features": dataset.feature_names,
        "kinds": dataset.kinds,
        "targets": dataset.target_names,
        "class_names": names,
        "loss": loss,
        "logits": bool(getattr(model.loss, "from_logits", False)),
        "texts": {
            dataset.feature_names[place]: list(texts)
            for place, texts in setting.preprocessing.texts.items()
        },
        "missing": setting.config.missing,
        "dtype": setting.config.dtype,
    }


def conclude(setting: Setup, model: keras.Model, final: Final, folder: Path) -> None:
    """Print how it ended, in the target's own units, where the results lie, and the fingerprint."""
    units = " in the target's own units" if setting.normalized_targets else ""
    for part, values in final.items():
        numbers = ", ".join(f"{_title(k, model)} {v:.6g}" for k, v in (values or {}).items())
        print(f"final   {part}{units}: {numbers or 'not a finite number'}")
    print(f"results {folder}/: report.html, model.keras, loss.png, {', '.join(RECORDS)}")
    print(f"fingerprint: {fingerprint(model)}", flush=True)


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or what + 's'}"


def _title(key: str, model: keras.Model) -> str:
    return _name(model.loss).replace("_", " ") if key == "loss" else key.replace("_", " ")


def _name(loss: Any) -> str:
    return (
        loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", "own"))
    )


def _optimizer(optimizer: Any) -> str:
    settings = optimizer.get_config()
    rate = settings["learning_rate"]
    if isinstance(rate, dict):
        schedule = rate["config"]
        if rate["class_name"] == "InverseTimeDecay" and schedule["decay_steps"] == 1:
            rate = f"{schedule['initial_learning_rate']:g} / (1 + {schedule['decay_rate']:g} k)"
        else:
            rate = rate["class_name"]
    else:
        rate = f"{float(rate):g}"
    momentum = settings.get("momentum")
    return (
        f"{type(optimizer).__name__} learning rate {rate}"
        + (f", momentum {momentum:g}" if momentum else "")
        + (", nesterov" if settings.get("nesterov") else "")
    )
