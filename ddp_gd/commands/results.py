"""Output of the train command: what it prints, and the files it leaves."""

import csv
import dataclasses
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from ddp_gd.batching.plan import Plan
from ddp_gd.comm.base import Communicator
from ddp_gd.comm.environment import cpu_settings
from ddp_gd.commands import models, result_folder
from ddp_gd.commands.config import TrainConfig
from ddp_gd.commands.task import Task
from ddp_gd.job import bitwise, threads
from ddp_gd.job.versions import version
from ddp_gd.reporting import page
from ddp_gd.reporting.plots import draw_losses
from ddp_gd.reporting.records import RECORDS, TIMES, read_run
from ddp_gd.training.replicas import fingerprint

# Losses and metrics of "training" and perhaps "validation"; None if they are not finite numbers.
Final = Mapping[str, Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained on what, by whom; and the folder that the results go to."""

    config: TrainConfig
    task: Task
    communicator: Communicator
    folder: Path

    @property
    def normalized_targets(self) -> bool:
        """Tell whether the model predicts normalised targets."""
        return self.task.y_scaling is not None

    @property
    def unit(self) -> str:
        """The name of what is minimised, for axes and tables."""
        return "loss (of normalised targets)" if self.normalized_targets else "loss"


def with_folder(experiment: Experiment) -> Experiment:
    """Make the folder now, for what is written while it trains."""
    with result_folder.explained(experiment.folder):
        folder = result_folder.make(experiment.folder, experiment.config.resume)
        return dataclasses.replace(experiment, folder=folder)


def announce(experiment: Experiment, model: keras.Model) -> None:
    """Print what is about to be trained on what, and who computes what of it."""
    for name, text in (_describe(experiment, model) | {"results": str(experiment.folder)}).items():
        print(f"{name:<8}{text}", flush=True)


def _describe(experiment: Experiment, model: keras.Model) -> dict[str, str]:
    config, task, workers = experiment.config, experiment.task, experiment.communicator.size
    dataset, plan = task.dataset, task.plan(config)
    features = dataset.features.shape[1:]
    held_back = len(dataset.features) - task.train_rows
    shares = [plan.share(0, worker, workers) for worker in (workers - 1, 0)]
    least, most = (share.stop - share.start for share in shares)
    lines = {
        "data": f"{dataset.source}: {_count(task.train_rows, 'row')} to train on, {held_back} "
        f"to validate; {' x '.join(map(str, features))} feature{'s' * (features != (1,))} -> "
        f"{', '.join(dataset.target_names)}"
        + ("; normalised by the training rows" if config.normalize else ""),
        "as 0/1": ", ".join(
            f"{dataset.feature_names[place]} ({_count(len(texts), 'category', 'categories')})"
            for place, texts in task.preprocessing.texts.items()
        ),
        "target": _target(experiment),
        "model": f"{model.name}, {model.count_params():,} weights; loss {_name(model.loss)}, "
        f"{_optimizer(model.optimizer)}",
        "workers": f"{workers} ({experiment.communicator.name}); seed {task.seed}"
        + ("; bit for bit" if config.bitwise else ""),
        "step": f"global batch size {_batch_size(config, plan)}, one update each; "
        f"a worker computes {most if least == most else f'{least} to {most}'} of these rows; "
        f"{_count(plan.steps, 'step')} an epoch, {_count(config.epochs, 'epoch')}",
        "threads": f"{threads.intra_op_threads()} for an operation, "
        f"{threads.inter_op_threads()} operations at once"
        + (", in rank 0; each worker has those of its cores" if workers > 1 else ""),
        "tuning": cpu_settings() if workers > 1 else "",
    }
    return {name: text for name, text in lines.items() if text}


def _batch_size(config: Any, plan: Plan) -> str:
    """The one that is trained with; and the one that was asked for, where there are fewer rows."""
    if config.batch_size == "full" or config.batch_size <= plan.rows:
        return str(plan.batch_size)
    return f"{plan.batch_size} (all rows: there are no {config.batch_size})"


def write(
    experiment: Experiment,
    model: keras.Model,
    raw: keras.Model,
    history: Mapping[str, Sequence[float]],
    final: Final,
    times: Sequence[Sequence[Mapping[str, Any]]],
) -> Path:
    """Write the results.

    Args:
        experiment: that was trained.
        model: as it was trained.
        raw: the same on raw features, to be saved.
        history: Keras's `History.history`.
        final: the losses at the end in the target's own units, of training and validation.
        times: `Times.epochs` of each worker.

    Returns:
        The folder they are in.
    """
    with result_folder.explained(experiment.folder):
        folder = experiment.folder
        if not experiment.config.tensorboard:  # which made it
            folder = result_folder.make(folder, experiment.config.resume)
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
        record = _record(experiment, model, final)
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        draw_losses(history, folder / "loss.png", experiment.unit)
        models.save(raw, folder / "model.keras", _about(experiment, model))
        report = page.report(read_run(folder))
        (folder / result_folder.LAST_WRITTEN).write_text(report, encoding="utf-8")
        return folder


def _record(experiment: Experiment, model: keras.Model, final: Final) -> dict[str, Any]:
    """The content of config.json."""
    config, task, communicator = experiment.config, experiment.task, experiment.communicator
    plan = task.plan(config)
    held_back = len(task.dataset.features) - task.train_rows
    return {
        "config": dataclasses.asdict(config),
        "seed": task.seed,
        "workers": communicator.size,
        "backend": communicator.name,
        "rows": {"training": task.train_rows, "validation": held_back},
        "steps_per_epoch": plan.steps,
        "micro_batch_size": plan.micro_batch_size,
        "description": _describe(experiment, model),
        "unit": experiment.unit,
        "inter_op_threads": threads.inter_op_threads(),
        "what_the_bits_depend_on": bitwise.facts(),
        "versions": versions(),
        "command": shlex.join(["python", "-m", "ddp_gd.train", *sys.argv[1:]]),
        "final": final,
        "fingerprint": fingerprint(model),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of what computes the results, by name."""
    names = ("ddp_gd", "tensorflow", "keras", "numpy", "mpi4py")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


def _target(experiment: Experiment) -> str:
    """Say why the loss was chosen that the command line left open."""
    dataset = experiment.task.dataset
    if experiment.config.loss != "auto" or dataset.classes is None:
        return ""
    if dataset.class_names is not None:
        names = ", ".join(map(repr, dataset.class_names[:6]))
        return f"{dataset.classes} classes: {names}{', ...' * (dataset.classes > 6)}"
    return (
        f"whole numbers 0 to {dataset.classes - 1}, each of which occurs: taken as classes. If "
        "they are amounts, give --loss mean_squared_error"
    )


def _about(experiment: Experiment, model: keras.Model) -> dict[str, Any]:
    """Describe what the saved model takes and gives, for `python -m ddp_gd.predict`."""
    dataset = experiment.task.dataset
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
            for place, texts in experiment.task.preprocessing.texts.items()
        },
        "missing": experiment.config.missing,
        "dtype": experiment.config.dtype,
    }


def conclude(experiment: Experiment, model: keras.Model, final: Final, folder: Path) -> None:
    """Print how it ended, in the target's own units, where the results lie, and the fingerprint."""
    units = " in the target's own units" if experiment.normalized_targets else ""
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
