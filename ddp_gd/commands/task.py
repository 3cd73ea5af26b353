"""What is trained on what: data, split, normalisation, models made from options."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ddp_gd.batching.plan import Plan, plan_of
from ddp_gd.batching.split import RandomSplit
from ddp_gd.batching.views import Selection
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.commands import models
from ddp_gd.commands.beforehand import request_of
from ddp_gd.commands.config import TrainConfig
from ddp_gd.data import load, training_rows
from ddp_gd.data.dataset import Dataset
from ddp_gd.data.normalizer import Normalizer
from ddp_gd.data.preprocessing import Preprocessing
from ddp_gd.errors import ConfigError
from ddp_gd.training.fit import fit

Part = tuple[Selection, Selection, Selection | None]  # features, targets, weights

_ROWS_AT_A_TIME = 2**20
_CLASSES = "sparse_categorical_crossentropy"
# Losses of classes: their targets are not normalised, and the built-in models give them logits.
_CLASS_LOSSES = {
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
}


class Task:
    """The data that options name, ready to be trained on, and the models for them. Collective.

    Args:
        config: the options.
        communicator: the workers.
        seed: in the place of `config.seed`; None draws one if that leaves it open.

    Attributes:
        dataset: the data, in their own units.
        loss: its name, chosen if the options left that open.
        seed: of weights, split and order of rows.
        train_rows: how many rows are trained on; the others are for validation.
        preprocessing: what makes the models' input of the features.
        y_scaling: what the targets are normalised with, or None.
        data: `(x, y, sample_weight)` of "training", and of "validation" if there are such rows.

    Raises:
        DdpGdError: something can't be used.
    """

    def __init__(self, config: TrainConfig, communicator: Communicator, seed: int | None = None):
        if config.loss != "auto":
            _find_loss(config.loss, config)
        self._config = config
        self.dataset = load.fetch(request_of(config), config.cache)
        self.loss = _loss_name(config, self.dataset)
        self.seed = agree.shared_seed(communicator, config.seed if seed is None else seed)
        self.seed %= 2**32
        split = RandomSplit(len(self.dataset.features), config.validation_split, self.seed)
        self.train_rows = split.training
        self.plan(config)  # a batch size that can't be used is refused before anything is measured
        training = training_rows.TrainingRows(
            communicator, self.dataset, split.training, split.training_rows
        )
        self.preprocessing = training.preprocessing(config.normalize)
        self.y_scaling = None  # class numbers are targets as they are
        if config.normalize and not self.is_classification:
            names = self.dataset.target_names
            self.y_scaling = training.normalizer(self.dataset.targets, names=names)
        self._parts = {"training": (split.training, split.training_rows)}
        if split.validation:
            self._parts["validation"] = (split.validation, split.validation_rows)
        self.data = self._data(self.y_scaling)

    def plan(self, config: TrainConfig) -> Plan:
        """The steps of an epoch with the sizes of `config`.

        Raises:
            ConfigError: a size that can't be used.
        """
        return plan_of(
            self.train_rows, config.batch_size, config.micro_batch_size, bitwise=config.bitwise
        )

    @property
    def is_classification(self) -> bool:
        """Tell whether the targets are classes."""
        return self.loss in _CLASS_LOSSES

    def data_in_own_units(self) -> dict[str, Part]:
        """Give the same as `data`, with targets that are not normalised."""
        return self._data(None)

    def class_shares(self, part: str) -> np.ndarray:
        """Return the share of each class in a part's rows, shape (classes,); reads all targets."""
        _, targets, _ = self.data_in_own_units()[part]
        counts = np.zeros(self.dataset.classes or 0, np.int64)
        for start in range(0, len(targets), _ROWS_AT_A_TIME):
            rows = np.arange(start, min(start + _ROWS_AT_A_TIME, len(targets)))
            block = targets.take(rows).reshape(-1).astype(np.int64)
            counts += np.bincount(block, minlength=len(counts))
        return counts / len(targets)

    def build(self) -> keras.Model:
        """Build a model with the seed's initial weights; one of the user's may come compiled."""
        config = self._config
        keras.utils.set_random_seed(self.seed)
        shape = self.data["training"][0].shape[1:]
        outputs = _outputs(self.loss, config, self.dataset)
        return models.build(config.model, shape, outputs, config.hidden)

    def compile(self, model: keras.Model, config: TrainConfig) -> None:
        """Give a model the optimizer of `config`, and the loss."""
        accuracy = ["accuracy"] if self.is_classification else None
        model.compile(_optimizer(config), _find_loss(self.loss, config), metrics=accuracy)

    def fit(
        self, model: keras.Model, config: TrainConfig, **others: Any
    ) -> keras.callbacks.History:
        """Train a model with the sizes of `config`; `others` are arguments of `ddp_gd.fit`."""
        x, y, sample_weight = self.data["training"]
        return fit(
            model,
            x,
            y,
            batch_size=config.batch_size,
            epochs=config.epochs,
            validation_data=self.data.get("validation"),
            sample_weight=sample_weight,
            micro_batch_size=config.micro_batch_size,
            seed=self.seed,
            audit=config.audit,
            **others,
        )

    def _data(self, y_scaling: Normalizer | None) -> dict[str, Part]:
        return {
            name: _rows(self.dataset, self.preprocessing, y_scaling, *part)
            for name, part in self._parts.items()
        }


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


def _find_loss(name: str, config: TrainConfig) -> Any:
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
