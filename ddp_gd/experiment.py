"""The main job: data, split, normalisation, model, `fit`, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from . import loading, models, replicas, results, runtime, snapshot
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import Dataset
from .errors import ConfigError, NumericsError
from .preprocessing import Preprocessing
from .request import Request
from .selection import Selection
from .shuffle import RandomSplit
from .split import Normalizer
from .times import Times
from .training import evaluate, fit

Part = tuple[Selection, Selection, Selection | None]  # features, targets, weights

_CLASSES = "sparse_categorical_crossentropy"
# Losses of classes: their targets are not normalised, and the built-in models give them logits.
_CLASS_LOSSES = {
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
}


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
    folder = results.new_folder(config.out) if leader else Path()
    if config.loss != "auto":
        _loss(config.loss, config)
    checkpoint = _checkpoint(config)
    dataset = loading.fetch(_request(config), config.cache)
    loss = _loss_name(config, dataset)
    seed = config.seed
    if checkpoint is not None and seed is None:
        saved = snapshot.load(communicator, checkpoint)
        seed = None if saved is None else saved.seed
    seed = replicas.shared_seed(communicator, seed) % 2**32
    split = RandomSplit(len(dataset.features), config.validation_split, seed)
    if config.batch_size != "full" and config.batch_size > split.training:
        raise ConfigError(
            f"--batch-size {config.batch_size} is larger than the {split.training} rows to train "
            f"on; give {split.training} or less, or full for one update an epoch."
        )
    training = loading.Training(communicator, dataset, split.training, split.training_rows)
    preprocessing = training.preprocessing(config.normalize)
    y_scaling = None  # class numbers are targets as they are
    if config.normalize and loss not in _CLASS_LOSSES:
        y_scaling = training.normalizer(dataset.targets, names=dataset.target_names)
    parts = {"training": (split.training, split.training_rows)}
    if split.validation:
        parts["validation"] = (split.validation, split.validation_rows)
    data = {name: _rows(dataset, preprocessing, y_scaling, *part) for name, part in parts.items()}
    x, y, sample_weight = data["training"]

    keras.utils.set_random_seed(seed)
    model = models.build(config.model, x.shape[1:], _outputs(loss, config, dataset), config.hidden)
    # Shares the weights of `model`. Made now: what can't be saved isn't worth training.
    raw = models.on_raw_features(model, preprocessing, y_scaling)
    if not model.compiled:
        accuracy = ["accuracy"] if loss in _CLASS_LOSSES else None
        model.compile(_optimizer(config), _loss(loss, config), metrics=accuracy)
    setting = results.Setting(
        config=config,
        loss=loss,
        seed=seed,
        communicator=communicator,
        dataset=dataset,
        preprocessing=preprocessing,
        train_rows=split.training,
        normalized_targets=y_scaling is not None,
        folder=folder,
    )
    if leader:
        results.announce(setting, model)

    times = Times()
    history = fit(
        model,
        x,
        y,
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=config.verbose if config.verbose == "auto" else int(config.verbose),
        callbacks=[times],
        validation_data=data.get("validation"),
        sample_weight=sample_weight,
        micro_batch_size=config.micro_batch_size,
        seed=seed,
        checkpoint=checkpoint,
    )

    metric = "accuracy" if loss in _CLASS_LOSSES else "mean_absolute_error"
    own_units = {name: _rows(dataset, preprocessing, None, *part) for name, part in parts.items()}
    final = _evaluate(models.in_target_units(model, y_scaling), model.loss, metric, own_units)
    everyones = runtime.gather_json(communicator, times.epochs)
    if leader:
        folder = results.write(setting, model, raw, history.history, final, everyones)
        results.conclude(setting, model, final, folder)


def _request(config: TrainConfig) -> Request:
    return Request(
        source=config.data,
        target=config.target,
        features=config.features or None,
        sample_weight=config.sample_weight,
        categorical=config.categorical,
        missing=config.missing,
        dtype=config.dtype,
    )


def _rows(
    dataset: Dataset,
    preprocessing: Preprocessing,
    y_scaling: Normalizer | None,
    count: int,
    select: Callable[[np.ndarray], np.ndarray],
) -> Part:
    """Features, targets and weights of some rows, as the model is trained on them."""
    weights = dataset.sample_weight
    unchanged = preprocessing.normalizer is None and not preprocessing.texts
    change = None if unchanged else preprocessing.transform
    return (
        Selection(dataset.features, count, select, change, dataset.key),
        Selection(dataset.targets, count, select, y_scaling.transform if y_scaling else None),
        None if weights is None else Selection(weights, count, select),
    )


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


def _loss_name(config: TrainConfig, dataset: Dataset) -> str:
    """The loss that was given, or the one that goes with the targets."""
    if config.loss != "auto":
        if dataset.class_names is not None and config.loss != _CLASSES:
            raise ConfigError(
                f"--loss {config.loss} needs numbers, but the target {dataset.target_names[0]!r} "
                f"holds texts such as {dataset.class_names[0]!r}. Leave --loss out."
            )
        return config.loss
    if dataset.class_names is not None and dataset.classes is None:
        raise ConfigError(
            f"The target {dataset.target_names[0]!r} is the same in every row; there is nothing "
            "to tell apart."
        )
    return _CLASSES if dataset.classes is not None else "mean_squared_error"


def _outputs(loss: str, config: TrainConfig, dataset: Dataset) -> int:
    targets = dataset.targets
    if config.model in models.KNOWN and targets.ndim > 2:
        raise ConfigError(
            f"--model {config.model} predicts a row of numbers for each row of features, but the "
            f"targets in {dataset.source} have shape {targets.shape}. Give a model of your own, "
            "path/to/file.py:function."
        )
    values = int(targets[0].size)
    if loss == "categorical_crossentropy" and values == 1:
        raise ConfigError(
            f"--loss {loss} needs a column of targets for each class, but {dataset.source} has one "
            f"column. For class numbers use --loss {_CLASSES}."
        )
    if loss == "binary_crossentropy" and values == 1 and dataset.classes not in (None, 2):
        raise ConfigError(
            f"--loss {loss} tells two classes apart, but the targets in {dataset.source} have "
            f"{dataset.classes}. Use --loss {_CLASSES}."
        )
    if loss != _CLASSES:
        return int(targets.shape[-1])
    if config.model in models.KNOWN and targets.shape[-1] != 1:
        raise ConfigError(
            f"--loss {loss} needs one class number for each row, but the targets in "
            f"{dataset.source} have shape {targets.shape}. For one column per class use --loss "
            "categorical_crossentropy."
        )
    if dataset.classes is not None:
        return dataset.classes
    classes = np.unique(targets)
    wrong = classes[(classes < 0) | (classes != np.floor(classes))]
    if len(wrong):
        raise ConfigError(
            f"--loss {loss} needs class numbers 0, 1, 2, ... as targets, but "
            f"{dataset.source} holds {wrong[0]}. Number the classes, choose a loss for other "
            "targets, or, in a table, name the column with --categorical."
        )
    return int(classes[-1]) + 1


def _loss(name: str, config: TrainConfig) -> Any:
    if name in _CLASS_LOSSES:
        # A model of the user's may end in a softmax, as Keras's own default for these losses.
        return _CLASS_LOSSES[name](from_logits=config.model in models.KNOWN)
    try:
        return keras.losses.get(name)
    except ValueError:
        known = sorted(name for name in vars(keras.losses) if name.islower() and name[0] != "_")
        known = [name for name in known if name not in ("deserialize", "get", "serialize")]
        raise ConfigError(
            f"--loss {name!r} is not a Keras loss; known are {', '.join(known)}."
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
