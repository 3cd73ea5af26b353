"""The main job: data, split, normalisation, model, `fit`, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import data, models, replicas, results, runtime, snapshot
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import Dataset
from .errors import ConfigError, NumericsError
from .split import Normalizer, train_validation_split
from .training import evaluate, fit

# Losses of classes: their targets are not normalised, and the built-in models give them logits.
_CLASS_LOSSES = {
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
}


def run(config: TrainConfig) -> None:
    """Train as `config` says; rank 0 prints, and writes the results when all is done.

    Raises:
        DdpGdError: something can't be used; nothing has been written.
    """
    runtime.init(backend=config.backend, bitwise=config.bitwise)
    communicator = runtime.communicator()
    leader = communicator.rank == 0
    folder = results.new_folder(config.out) if leader else Path()
    loss = _loss(config)
    dataset = data.load(config.data, config.target)
    train, validate = train_validation_split(len(dataset.features), config.validation_split)
    if config.batch_size != "full" and config.batch_size > train.stop:
        raise ConfigError(
            f"--batch-size {config.batch_size} is larger than the {train.stop} rows to train on; "
            f"give {train.stop} or less, or full for one update an epoch."
        )
    x_scaling, y_scaling = _normalizers(config, dataset, train)
    x = x_scaling.transform(dataset.features) if x_scaling else dataset.features
    y = y_scaling.transform(dataset.targets) if y_scaling else dataset.targets

    checkpoint = _checkpoint(config)
    seed = config.seed
    if checkpoint is not None and seed is None:
        saved = snapshot.load(communicator, checkpoint)
        seed = None if saved is None else saved.seed
    seed = replicas.shared_seed(communicator, seed) % 2**32
    keras.utils.set_random_seed(seed)
    model = models.build(
        config.model, dataset.features.shape[1:], _outputs(config, dataset), config.hidden
    )
    # Shares the weights of `model`. Made now: what can't be saved isn't worth training.
    raw = models.with_preprocessing(model, x_scaling, y_scaling)
    if not model.compiled:
        accuracy = ["accuracy"] if config.loss in _CLASS_LOSSES else None
        model.compile(_optimizer(config), loss, metrics=accuracy)
    setting = results.Setting(
        config=config,
        seed=seed,
        communicator=communicator,
        dataset=dataset,
        train_rows=train.stop,
        normalized_targets=y_scaling is not None,
        folder=folder,
    )
    if leader:
        results.announce(setting, model)

    history = fit(
        model,
        x[train],
        y[train],
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=config.verbose if config.verbose == "auto" else int(config.verbose),
        validation_data=(x[validate], y[validate]) if config.validation_split else None,
        micro_batch_size=config.micro_batch_size,
        seed=seed,
        checkpoint=checkpoint,
    )

    parts = {"training": train} | ({"validation": validate} if config.validation_split else {})
    metric = "accuracy" if config.loss in _CLASS_LOSSES else "mean_absolute_error"
    final = _evaluate(raw, model.loss, metric, dataset, parts)
    if leader:
        folder = results.write(setting, model, raw, history.history, final)
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


def _evaluate(
    raw: keras.Model, loss: Any, metric: str, dataset: Dataset, parts: dict[str, slice]
) -> dict[str, dict[str, float] | None]:
    """Loss and metric of each part of the data in its own units; None where they aren't finite."""
    final: dict[str, dict[str, float] | None] = {}
    floatx = keras.config.floatx()
    # float32 would forget the last digits of a column with a large mean, and overflow in squares.
    keras.config.set_floatx("float64")
    try:
        raw.compile(loss=loss, metrics=[metric])
        for part, rows in parts.items():
            try:
                x, y = dataset.features[rows], dataset.targets[rows]
                final[part] = evaluate(raw, x, y, verbose=0)
            except NumericsError:  # on all workers: the logarithm of a negative prediction, say
                final[part] = None
    finally:
        keras.config.set_floatx(floatx)
    return final


def _normalizers(
    config: TrainConfig, dataset: Dataset, train: slice
) -> tuple[Normalizer | None, Normalizer | None]:
    """Fit on the training rows alone; class numbers and other integers are targets as they are."""
    if not config.normalize:
        return None, None
    x_scaling = Normalizer.fit(dataset.features[train])
    if config.loss in _CLASS_LOSSES or not np.issubdtype(dataset.targets.dtype, np.floating):
        return x_scaling, None
    return x_scaling, Normalizer.fit(dataset.targets[train])


def _outputs(config: TrainConfig, dataset: Dataset) -> int:
    targets = dataset.targets
    if config.model in models.KNOWN and targets.ndim > 2:
        raise ConfigError(
            f"--model {config.model} predicts a row of numbers for each row of features, but the "
            f"targets in {dataset.source} have shape {targets.shape}. Give a model of your own, "
            "path/to/file.py:function."
        )
    if config.loss != "sparse_categorical_crossentropy":
        return int(targets.shape[-1])
    if config.model in models.KNOWN and targets.shape[-1] != 1:
        raise ConfigError(
            f"--loss {config.loss} needs one class number for each row, but the targets in "
            f"{dataset.source} have shape {targets.shape}. For one column per class use --loss "
            "categorical_crossentropy."
        )
    classes = np.unique(targets)
    if classes[0] < 0 or np.any(classes != np.floor(classes)):
        raise ConfigError(
            f"--loss {config.loss} needs class numbers 0, 1, 2, ... as targets, but "
            f"{dataset.source} holds {classes[classes != np.floor(classes)][:1] or classes[:1]}. "
            "Number the classes, or choose a loss for other targets."
        )
    return int(classes[-1]) + 1


def _loss(config: TrainConfig) -> Any:
    if config.loss in _CLASS_LOSSES:
        # A model of the user's may end in a softmax, as Keras's own default for these losses.
        return _CLASS_LOSSES[config.loss](from_logits=config.model in models.KNOWN)
    try:
        return keras.losses.get(config.loss)
    except ValueError:
        known = sorted(name for name in vars(keras.losses) if name.islower() and name[0] != "_")
        known = [name for name in known if name not in ("deserialize", "get", "serialize")]
        raise ConfigError(
            f"--loss {config.loss!r} is not a Keras loss; known are {', '.join(known)}."
        ) from None


def _optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    rate: Any = config.lr
    if config.decay:  # the `decay` that Keras's optimizers once had
        rate = keras.optimizers.schedules.InverseTimeDecay(config.lr, 1, config.decay)
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=config.momentum, nesterov=config.nesterov)
    if config.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(rate, momentum=config.momentum)
    return keras.optimizers.Adam(rate)
