"""The main job: data, split, normalisation, model, `fit`, results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from ddp_gd.comm import agree
from ddp_gd.commands import models, results
from ddp_gd.commands.config import TrainConfig
from ddp_gd.commands.task import Part, Task
from ddp_gd.errors import NumericsError
from ddp_gd.job import runtime
from ddp_gd.reporting.times import Times
from ddp_gd.training import snapshot
from ddp_gd.training.checkpoint import Checkpoint
from ddp_gd.training.evaluate import evaluate
from ddp_gd.training.fit import fit

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
    folder = results.new_folder(config.out, config.resume) if leader else Path()
    checkpoint = _checkpoint(config)
    seed = None
    if checkpoint is not None and config.seed is None:
        saved = snapshot.load(communicator, checkpoint)
        seed = None if saved is None else saved.seed
    task = Task(config, communicator, seed)
    model = task.build()
    if not model.compiled:
        task.compile(model, config)
    # Shares the weights of `model`. Made now: what can't be saved isn't worth training.
    raw = models.on_raw_features(model, task.preprocessing, task.y_scaling)
    setting = results.Setup(
        config=config,
        loss=task.loss,
        seed=task.seed,
        communicator=communicator,
        dataset=task.dataset,
        preprocessing=task.preprocessing,
        train_rows=task.train_rows,
        normalized_targets=task.y_scaling is not None,
        folder=folder,
    )
    if leader:
        results.announce(setting, model)

    times = Times()
    callbacks: list[keras.callbacks.Callback] = [times]
    if config.tensorboard:
        if leader:
            setting = results.with_folder(setting)
        callbacks.append(keras.callbacks.TensorBoard(setting.folder / "tensorboard"))
    if checkpoint is not None:
        checkpoint = dataclasses.replace(checkpoint, about=_about(task, config))
    x, y, sample_weight = task.data["training"]
    history = fit(
        model,
        x,
        y,
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=config.verbose if config.verbose == "auto" else int(config.verbose),
        callbacks=callbacks,
        validation_data=task.data.get("validation"),
        sample_weight=sample_weight,
        micro_batch_size=config.micro_batch_size,
        seed=task.seed,
        checkpoint=checkpoint,
    )

    metric = "accuracy" if task.is_classification else "mean_absolute_error"
    in_own_units = models.in_target_units(model, task.y_scaling)
    final = _evaluate(in_own_units, model.loss, metric, task.data_in_own_units())
    everyones = agree.gather_json(communicator, times.epochs)
    if leader:
        folder = results.write(setting, model, raw, history.history, final, everyones)
        results.conclude(setting, model, final, folder)


def _checkpoint(config: TrainConfig) -> Checkpoint | None:
    if config.checkpoint is None:
        return None
    return Checkpoint(
        config.checkpoint,
        every_steps=config.checkpoint_steps,
        every_seconds=config.checkpoint_seconds,
        resume=config.resume,
    )


def _about(task: Task, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint's file holds beside the training: the options, and the normalisation."""
    about: dict[str, Any] = {"config": dataclasses.asdict(config)}
    scalings = {"features": task.preprocessing.normalizer, "targets": task.y_scaling}
    for name, normalizer in scalings.items():
        if normalizer is not None:
            about |= {f"{name} mean": normalizer.mean, f"{name} scale": normalizer.scale}
    return about


def _evaluate(
    model: keras.Model,
    loss: Any,
    metric: str,
    parts: Mapping[str, Part],
) -> dict[str, dict[str, float] | None]:
    """Loss and metric of each part of the data in its own units; None where they aren't finite."""
    final: dict[str, dict[str, float] | None] = {}
    floatx = keras.config.floatx()
    # float32 would forget the last digits of a column with a large mean, and overflow in squares.
    keras.config.set_floatx("float64")
    try:
        model.compile(loss=loss, metrics=[metric])
        for part, (x, y, weights) in parts.items():
            size = min(_EVALUATION_ROWS, len(x))
            try:
                final[part] = evaluate(model, x, y, size, weights, verbose=0)
            except NumericsError:  # on all workers: the logarithm of a negative prediction, say
                final[part] = None
    finally:
        keras.config.set_floatx(floatx)
    return final
