"""The main job: data, split, normalisation, model, `fit`, results."""

import dataclasses
from pathlib import Path
from typing import Any

import keras

from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.commands import models, result_folder, results
from ddp_gd.commands.config import TrainConfig
from ddp_gd.commands.results import Experiment
from ddp_gd.commands.task import Task
from ddp_gd.errors import NumericsError
from ddp_gd.job import runtime
from ddp_gd.reporting.times import Times
from ddp_gd.training.evaluate import evaluate
from ddp_gd.training.saving import snapshot
from ddp_gd.training.saving.checkpoint import Checkpoint

# Rows of one step of the evaluation at the end.
_EVALUATION_ROWS = 256


def run(config: TrainConfig) -> None:
    """Train as `config` says; rank 0 prints, and writes the results when all is done.

    Raises:
        DdpGdError: something can't be used; nothing has been written.
    """
    runtime.init(backend=config.backend, bitwise=config.bitwise)
    communicator = runtime.communicator()
    leader = communicator.rank == 0
    folder = result_folder.choose(config.out, config.resume) if leader else Path()
    checkpoint = _checkpoint(config)
    task = Task(config, communicator, _saved_seed(communicator, config, checkpoint))
    model = task.build()
    if not model.compiled:
        task.compile(model, config)
    # Shares the weights of `model`. Made now: what can't be saved isn't worth training.
    raw = models.on_raw_features(model, task.preprocessing, task.y_scaling)
    experiment = Experiment(config, task, communicator, folder)
    if leader:
        results.announce(experiment, model)
        if config.tensorboard:
            experiment = results.with_folder(experiment)

    history, times = _train(experiment, model, checkpoint)
    final = _evaluate(task, model)
    everyones = agree.gather_json(communicator, times.epochs)
    if leader:
        _compare(final, task)
        folder = results.write(experiment, model, raw, history.history, final, everyones)
        results.conclude(experiment, model, final, folder)


def _train(
    experiment: Experiment, model: keras.Model, checkpoint: Checkpoint | None
) -> tuple[keras.callbacks.History, Times]:
    """Train the model, and measure what each epoch takes."""
    config, task = experiment.config, experiment.task
    times = Times()
    callbacks: list[keras.callbacks.Callback] = [times]
    if config.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(experiment.folder / "tensorboard"))
    if checkpoint is not None:
        checkpoint = dataclasses.replace(checkpoint, about=_about(task, config))
    history = task.fit(
        model,
        config,
        verbose=config.verbose if config.verbose == "auto" else int(config.verbose),
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    return history, times


def _checkpoint(config: TrainConfig) -> Checkpoint | None:
    if config.checkpoint is None:
        return None
    return Checkpoint(
        config.checkpoint,
        every_steps=config.checkpoint_steps,
        every_seconds=config.checkpoint_seconds,
        resume=config.resume,
    )


def _saved_seed(
    communicator: Communicator, config: TrainConfig, checkpoint: Checkpoint | None
) -> int | None:
    """The seed of the training to go on with, where the command line leaves it open."""
    if checkpoint is None or config.seed is not None:
        return None
    saved = snapshot.load(communicator, checkpoint)
    return None if saved is None else saved.seed


def _about(task: Task, config: TrainConfig) -> dict[str, Any]:
    """Collect what a checkpoint holds beside the training: the options and the normalisation."""
    about: dict[str, Any] = {"config": dataclasses.asdict(config)}
    scalings = {"features": task.preprocessing.normalizer, "targets": task.y_scaling}
    for name, normalizer in scalings.items():
        if normalizer is not None:
            about |= {f"{name} mean": normalizer.mean, f"{name} scale": normalizer.scale}
    return about


def _compare(final: dict[str, dict[str, float] | None], task: Task) -> None:
    """Put beside an accuracy that of always naming the most frequent class of the training rows."""
    if not task.is_classification or task.dataset.classes is None:
        return
    most = int(task.class_shares("training").argmax())
    for part, values in final.items():
        if values is not None and "accuracy" in values:
            values["accuracy_of_the_most_frequent_class"] = float(task.class_shares(part)[most])


def _evaluate(task: Task, trained: keras.Model) -> dict[str, dict[str, float] | None]:
    """Loss and metric of each part of the data in the data's own units; None if not finite."""
    model = models.in_target_units(trained, task.y_scaling)
    metrics: list[Any] = ["accuracy" if task.is_classification else "mean_absolute_error"]
    if not task.is_classification and task.dataset.targets.ndim == 2:
        metrics.append(keras.metrics.R2Score(name="R2"))  # 0: no better than the mean
    final: dict[str, dict[str, float] | None] = {}
    floatx = keras.config.floatx()
    # float32 would forget the last digits of a column with a large mean, and overflow in squares.
    keras.config.set_floatx("float64")
    try:
        model.compile(loss=trained.loss, metrics=metrics)
        for part, (x, y, weights) in task.data_in_own_units().items():
            size = min(_EVALUATION_ROWS, len(x))
            try:
                final[part] = evaluate(model, x, y, size, sample_weight=weights, verbose=0)
            except NumericsError:  # on all workers: the logarithm of a negative prediction, say
                final[part] = None
    finally:
        keras.config.set_floatx(floatx)
    return final
