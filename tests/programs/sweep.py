"""Every layer, loss, metric and optimizer that Keras has, in models of many branches each.

Usage: python -m programs.sweep BACKEND[,bitwise] OUT.json [GROUP ...] [--alone]

Trained on all workers of a job. In default mode rank 0 compares with Keras on the whole mini-batch,
and writes what differs; in bitwise mode it writes fingerprints. `--alone` gives each layer a model
of its own, to find the one that is wrong.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, losses, metrics, ops, optimizers
from programs import cases, compare
from programs.cases import Case, features, numbers

import ddp_gd

PER_MODEL = 16

VECTOR, SEQUENCE, IMAGE, VOLUME, LABELS, FRAMES = (
    (6,),
    (6, 4),
    (8, 8, 3),
    (4, 4, 4, 2),
    (5,),
    (3, 6, 6, 2),
)


def _units(count: int) -> Any:
    return layers.Dense(count)


def _two(merge: Any) -> Callable[[Any], Any]:
    return lambda x: merge([_units(4)(x), _units(4)(x)])


def _attention(layer: Any) -> Callable[[Any], Any]:
    return lambda x: layer([_units(4)(x), _units(4)(x)])


def _query_value(layer: Any) -> Callable[[Any], Any]:
    return lambda x: layer(x, x)


def _known(layer: Any, data: np.ndarray) -> Any:
    layer.adapt(data)
    return layer


def _masked(x: Any) -> Any:
    return layers.LSTM(3)(layers.Masking(0.5)(x))


# Class -> shape of a row, and what makes a branch of the model: a layer, or a function of a tensor.
# Whole numbers below 7 are the input where the shape is LABELS.
LAYERS: dict[str, tuple[tuple, Callable[[], Any]]] = {
    "Activation": (VECTOR, lambda: layers.Activation("gelu")),
    "ELU": (VECTOR, layers.ELU),
    "LeakyReLU": (VECTOR, layers.LeakyReLU),
    "PReLU": (VECTOR, layers.PReLU),
    "ReLU": (VECTOR, layers.ReLU),
    "Softmax": (VECTOR, layers.Softmax),
    "Dense": (VECTOR, lambda: layers.Dense(4, "relu", activity_regularizer="l2")),
    "EinsumDense": (SEQUENCE, lambda: layers.EinsumDense("abc,cd->abd", (6, 5))),
    "Embedding": (LABELS, lambda: layers.Embedding(7, 3)),
    "ReversibleEmbedding": (LABELS, lambda: layers.ReversibleEmbedding(7, 3)),
    "Identity": (VECTOR, layers.Identity),
    "Lambda": (VECTOR, lambda: layers.Lambda(ops.sin, output_shape=VECTOR)),
    "Masking": (SEQUENCE, lambda: _masked),
    "Add": (VECTOR, lambda: _two(layers.Add())),
    "Average": (VECTOR, lambda: _two(layers.Average())),
    "Concatenate": (VECTOR, lambda: _two(layers.Concatenate())),
    "Dot": (VECTOR, lambda: _two(layers.Dot(1))),
    "Maximum": (VECTOR, lambda: _two(layers.Maximum())),
    "Minimum": (VECTOR, lambda: _two(layers.Minimum())),
    "Multiply": (VECTOR, lambda: _two(layers.Multiply())),
    "Subtract": (VECTOR, lambda: _two(layers.Subtract())),
    "AdditiveAttention": (SEQUENCE, lambda: _attention(layers.AdditiveAttention(dropout=0.2))),
    "Attention": (SEQUENCE, lambda: _attention(layers.Attention(dropout=0.2))),
    "GroupedQueryAttention": (
        SEQUENCE,
        lambda: _query_value(layers.GroupQueryAttention(2, 4, 2, dropout=0.2)),
    ),
    "MultiHeadAttention": (
        SEQUENCE,
        lambda: _query_value(layers.MultiHeadAttention(2, 3, dropout=0.2)),
    ),
    "BatchNormalization": (IMAGE, layers.BatchNormalization),
    "GroupNormalization": (IMAGE, lambda: layers.GroupNormalization(3)),
    "LayerNormalization": (VECTOR, layers.LayerNormalization),
    "RMSNormalization": (VECTOR, layers.RMSNormalization),
    "SpectralNormalization": (VECTOR, lambda: layers.SpectralNormalization(layers.Dense(4))),
    "UnitNormalization": (VECTOR, layers.UnitNormalization),
    "CategoryEncoding": (LABELS, lambda: layers.CategoryEncoding(7, "multi_hot")),
    "Discretization": (
        VECTOR,
        lambda: layers.Discretization([-1.0, 0.0, 1.0], output_mode="one_hot"),
    ),
    "HashedCrossing": (
        LABELS,
        lambda: lambda x: layers.HashedCrossing(5, output_mode="one_hot")((x[:, :1], x[:, 1:2])),
    ),
    "Hashing": (LABELS, lambda: layers.Hashing(5, output_mode="multi_hot")),
    "IntegerLookup": (
        LABELS,
        lambda: layers.IntegerLookup(vocabulary=[1, 3, 5], output_mode="multi_hot"),
    ),
    "Normalization": (VECTOR, lambda: _known(layers.Normalization(), features(*VECTOR, seed=8))),
    "Rescaling": (VECTOR, lambda: layers.Rescaling(2.0, 1.0)),
    "MelSpectrogram": (
        (64,),
        lambda: layers.MelSpectrogram(num_mel_bins=8, fft_length=16, sequence_stride=8),
    ),
    "STFTSpectrogram": (
        (64, 1),
        lambda: layers.STFTSpectrogram("magnitude", frame_length=16, frame_step=8, fft_length=16),
    ),
    "ActivityRegularization": (VECTOR, lambda: layers.ActivityRegularization(0.01, 0.01)),
    "AlphaDropout": (VECTOR, lambda: layers.AlphaDropout(0.3)),
    "Dropout": (VECTOR, lambda: layers.Dropout(0.3)),
    "GaussianDropout": (VECTOR, lambda: layers.GaussianDropout(0.3)),
    "GaussianNoise": (VECTOR, lambda: layers.GaussianNoise(0.3)),
    "SpatialDropout1D": (SEQUENCE, lambda: layers.SpatialDropout1D(0.3)),
    "SpatialDropout2D": (IMAGE, lambda: layers.SpatialDropout2D(0.3)),
    "SpatialDropout3D": (VOLUME, lambda: layers.SpatialDropout3D(0.3)),
    "Flatten": (SEQUENCE, layers.Flatten),
    "Permute": (SEQUENCE, lambda: layers.Permute((2, 1))),
    "RepeatVector": (VECTOR, lambda: layers.RepeatVector(2)),
    "Reshape": (SEQUENCE, lambda: layers.Reshape((3, 8))),
    "Conv1D": (SEQUENCE, lambda: layers.Conv1D(3, 3)),
    "Conv1DTranspose": (SEQUENCE, lambda: layers.Conv1DTranspose(3, 3)),
    "DepthwiseConv1D": (SEQUENCE, lambda: layers.DepthwiseConv1D(3)),
    "SeparableConv1D": (SEQUENCE, lambda: layers.SeparableConv1D(3, 3)),
    "Conv2D": (IMAGE, lambda: layers.Conv2D(3, 3)),
    "Conv2DTranspose": (IMAGE, lambda: layers.Conv2DTranspose(3, 3)),
    "DepthwiseConv2D": (IMAGE, lambda: layers.DepthwiseConv2D(3)),
    "SeparableConv2D": (IMAGE, lambda: layers.SeparableConv2D(3, 3)),
    "Conv3D": (VOLUME, lambda: layers.Conv3D(3, 2)),
    "Conv3DTranspose": (VOLUME, lambda: layers.Conv3DTranspose(3, 2)),
    "ConvLSTM1D": (SEQUENCE[:1] + SEQUENCE, lambda: layers.ConvLSTM1D(2, 3, dropout=0.2)),
    "ConvLSTM2D": (FRAMES, lambda: layers.ConvLSTM2D(2, 3, recurrent_dropout=0.2)),
    "ConvLSTM3D": ((2, *VOLUME), lambda: layers.ConvLSTM3D(2, 2)),
    "GRU": (SEQUENCE, lambda: layers.GRU(3, dropout=0.2, recurrent_dropout=0.2)),
    "LSTM": (SEQUENCE, lambda: layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2)),
    "SimpleRNN": (SEQUENCE, lambda: layers.SimpleRNN(3, dropout=0.2)),
    "RNN": (
        SEQUENCE,
        lambda: layers.RNN(layers.StackedRNNCells([layers.GRUCell(3), layers.LSTMCell(3)])),
    ),
    "Bidirectional": (SEQUENCE, lambda: layers.Bidirectional(layers.LSTM(3))),
    "TimeDistributed": (
        SEQUENCE,
        lambda: layers.TimeDistributed(keras.Sequential([layers.Dense(3), layers.Dropout(0.3)])),
    ),
    **{
        f"{kind}Pooling{n}D": (shape, functools.partial(getattr(layers, f"{kind}Pooling{n}D"), 2))
        for kind in ("Average", "Max", "AdaptiveAverage", "AdaptiveMax")
        for n, shape in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    },
    **{
        name: (shape, getattr(layers, name))
        for kind in (
            "GlobalAveragePooling",
            "GlobalMaxPooling",
            "Cropping",
            "UpSampling",
            "ZeroPadding",
        )
        for name, shape in ((f"{kind}1D", SEQUENCE), (f"{kind}2D", IMAGE), (f"{kind}3D", VOLUME))
    },
    "CenterCrop": (IMAGE, lambda: layers.CenterCrop(6, 6)),
    "Resizing": (IMAGE, lambda: layers.Resizing(5, 5)),
    "AutoContrast": (IMAGE, lambda: layers.AutoContrast((0, 1))),
    "ContrastLimitedAdaptiveHistogramEqualization": (
        IMAGE,
        lambda: layers.ContrastLimitedAdaptiveHistogramEqualization((0, 1), tile_grid_size=(2, 2)),
    ),
    "Equalization": (IMAGE, lambda: layers.Equalization((0, 1))),
    "Solarization": (IMAGE, lambda: layers.Solarization(value_range=(0, 1))),
    "AugMix": (IMAGE, lambda: layers.AugMix((0, 1))),
    "CutMix": (IMAGE, layers.CutMix),
    "MixUp": (IMAGE, layers.MixUp),
    "RandAugment": (IMAGE, lambda: layers.RandAugment((0, 1))),
    "RandomBrightness": (IMAGE, lambda: layers.RandomBrightness(0.2, (0, 1))),
    "RandomColorDegeneration": (IMAGE, lambda: layers.RandomColorDegeneration(0.5, (0, 1))),
    "RandomColorJitter": (
        IMAGE,
        lambda: layers.RandomColorJitter((0, 1), 0.2, 0.2, (0.4, 0.6), (0.1, 0.2)),
    ),
    "RandomContrast": (IMAGE, lambda: layers.RandomContrast(0.5, (0, 1))),
    "RandomCrop": (IMAGE, lambda: layers.RandomCrop(6, 6)),
    "RandomElasticTransform": (IMAGE, lambda: layers.RandomElasticTransform(1.0, (0, 1))),
    "RandomErasing": (IMAGE, lambda: layers.RandomErasing(0.5, value_range=(0, 1))),
    "RandomFlip": (IMAGE, layers.RandomFlip),
    "RandomGaussianBlur": (IMAGE, lambda: layers.RandomGaussianBlur(0.5, value_range=(0, 1))),
    "RandomGrayscale": (IMAGE, lambda: layers.RandomGrayscale(0.5)),
    "RandomHue": (IMAGE, lambda: layers.RandomHue(0.3, (0, 1))),
    "RandomInvert": (IMAGE, lambda: layers.RandomInvert(0.5, (0, 1))),
    "RandomPerspective": (IMAGE, lambda: layers.RandomPerspective(0.5)),
    "RandomPosterization": (IMAGE, lambda: layers.RandomPosterization(3, (0, 1))),
    "RandomRotation": (IMAGE, lambda: layers.RandomRotation(0.2)),
    "RandomSaturation": (IMAGE, lambda: layers.RandomSaturation((0.2, 0.8), (0, 1))),
    "RandomSharpness": (IMAGE, lambda: layers.RandomSharpness(0.5, (0, 1))),
    "RandomShear": (IMAGE, lambda: layers.RandomShear(0.3, 0.3)),
    "RandomTranslation": (IMAGE, lambda: layers.RandomTranslation(0.2, 0.2)),
    "RandomZoom": (IMAGE, lambda: layers.RandomZoom(0.3)),
    "Pipeline": (IMAGE, lambda: layers.Pipeline([layers.Rescaling(2.0), layers.Resizing(5, 5)])),
}

# Rows meet in these, or they draw numbers that no generator's state decides.
REFUSED = {
    "AugMix": "lets Python's own generator choose, while it is traced, what is done in which order",
    "CutMix": "mixes each row with another one",
    "MixUp": "mixes each row with another one",
    "MelSpectrogram": "cuts off what is far below the loudest of all rows",
    "RandomElasticTransform": "draws for rows and pixels at once, in no order of rows",
}
REFUSED["RandAugment"] = "draws which of its layers come in; some of them look at all rows"
SOMETIMES = {"RandAugment"}  # by what it draws
ROWS_MEET = {"Circle", "Dice", "Tversky"}  # losses: each has a model of its own

# What has no place of its own in a model, and why.
NOT_SWEPT = {
    "Layer": "a base class",
    "Wrapper": "a base class",
    "InputLayer": "in every functional model",
    "TFSMLayer": "runs a SavedModel, which can't be trained",
    "FlaxLayer": "for the JAX backend",
    "JaxLayer": "for the JAX backend",
    "TorchModuleWrapper": "for the PyTorch backend",
    "GRUCell": "in RNN",
    "LSTMCell": "in RNN",
    "SimpleRNNCell": "in SimpleRNN",
    "StackedRNNCells": "in RNN",
    "MaxNumBoundingBoxes": "pads bounding boxes of a data set",
    "StringLookup": "of text, which no model hands gradients on from; in the tests of data",
    "TextVectorization": "of text, likewise",
}


def classes(module: Any, base: type) -> set[str]:
    """The names of the classes that Keras has there, each once."""
    found = {c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base)}
    return {c.__name__ for c in found}


def inputs(shape: tuple, seed: int = 0) -> np.ndarray:
    """Rows of that shape; images in [0, 1], and some entries of a sequence to be masked."""
    if shape == LABELS:
        return numbers(7, *shape, seed=seed)
    if shape == IMAGE:
        return np.random.default_rng(seed).uniform(size=(cases.ROWS, *shape)).astype("float32")
    rows = features(*shape, seed=seed)
    if shape == SEQUENCE:
        rows[::3, 3:] = 0.5
    return rows


def branches(shape: tuple, names: list[str]) -> Case:
    """A model with a branch for each of these layers."""
    given = keras.Input(shape, dtype="int64" if shape == LABELS else None)
    heads = []
    for name in names:
        x = given
        if shape in (VECTOR, SEQUENCE):  # so that a gradient goes through the layer
            x = given if name == "Masking" else layers.Dense(shape[-1], name=f"before_{name}")(x)
        x = LAYERS[name][1]()(x)
        x = ops.cast(x, "float32")
        x = layers.Flatten()(x) if len(x.shape) > 2 else x
        heads.append(layers.Dense(2, name=f"after_{name}")(x))
    model = keras.Model(given, layers.Concatenate()(heads) if len(heads) > 1 else heads[0])
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
    return Case(model, inputs(shape), features(2 * len(names), seed=5))


def layer_cases(alone: bool) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Models that have all layers between them; those that are refused have one each."""
    by_shape: dict[tuple, list[str]] = {}
    for name, (shape, _) in LAYERS.items():
        if name in REFUSED:
            yield name, functools.partial(branches, shape, [name])
        else:
            by_shape.setdefault(shape, []).append(name)
    per_model = 1 if alone else PER_MODEL
    for shape, names in by_shape.items():
        for first in range(0, len(names), per_model):
            some = names[first : first + per_model]
            yield " ".join(some), functools.partial(branches, shape, some)


# Losses and metrics: targets, and how an output gets into their range.
REAL, POSITIVE, BINARY, SIGNED, CLASSES, ONE_HOT = (
    "real",
    "positive",
    "binary",
    "signed",
    "classes",
    "one hot",
)
KINDS = {
    "BinaryCrossentropy": BINARY, "BinaryFocalCrossentropy": BINARY,
    "Dice": BINARY, "Tversky": BINARY,
    "CategoricalCrossentropy": ONE_HOT, "CategoricalFocalCrossentropy": ONE_HOT,
    "CategoricalGeneralizedCrossEntropy": CLASSES, "CategoricalHinge": ONE_HOT, "Circle": CLASSES,
    "Hinge": SIGNED, "SquaredHinge": SIGNED, "KLDivergence": ONE_HOT,
    "MeanSquaredLogarithmicError": POSITIVE, "Poisson": POSITIVE,
    "SparseCategoricalCrossentropy": CLASSES, "CTC": "labels",
    "Accuracy": CLASSES, "BinaryAccuracy": BINARY, "CategoricalAccuracy": ONE_HOT,
}  # fmt: skip


def targets(kind: str, seed: int) -> np.ndarray:
    """Targets of that kind, for outputs with four entries."""
    if kind == POSITIVE:
        return np.abs(features(4, seed=seed)) + 0.1
    if kind == BINARY:
        return numbers(2, 4, seed=seed).astype("float32")
    if kind == SIGNED:
        return 2 * numbers(2, 4, seed=seed).astype("float32") - 1
    if kind == CLASSES:
        return numbers(4, seed=seed)
    if kind == ONE_HOT:
        return np.eye(4, dtype="float32")[numbers(4, seed=seed)]
    return features(4, seed=seed)


def output_of(kind: str, x: Any) -> Any:
    """An output in the range that goes with the targets."""
    head = layers.Dense(4)(x)
    if kind in (POSITIVE, BINARY):
        return layers.Activation("sigmoid")(head)
    return layers.Softmax()(head) if kind in (CLASSES, ONE_HOT) else head


def losses_case(names: list[str]) -> Case:
    """A model with an output for each of these losses."""
    given = keras.Input((4,))
    outputs, wanted, compiled = [], [], []
    for number, name in enumerate(names):
        if name == "CTC":
            sequence = layers.Reshape((5, 6))(layers.Dense(30)(given))
            outputs.append(sequence)
            wanted.append(numbers(5, 2, seed=number) + 1)
        else:
            kind = KINDS.get(name, REAL)
            outputs.append(output_of(kind, layers.Dense(3, "tanh")(given)))
            wanted.append(targets(kind, number))
        compiled.append(getattr(losses, name)())
    model = keras.Model(given, outputs)
    model.compile(keras.optimizers.SGD(0.05), compiled)
    return Case(model, features(4), wanted)


def metrics_case(names: list[str]) -> Case:
    """A model with these metrics on outputs of the kinds that they want."""
    given = keras.Input((4,))
    kinds = list({KIND_OF_METRIC.get(name, ONE_HOT): None for name in names})
    outputs = [output_of(kind, layers.Dense(3, "tanh")(given)) for kind in kinds]
    wanted = [targets(kind, number) for number, kind in enumerate(kinds)]
    by_output = [
        [
            METRICS.get(n, getattr(metrics, n))()
            for n in names
            if KIND_OF_METRIC.get(n, ONE_HOT) == kind
        ]
        for kind in kinds
    ]
    model = keras.Model(given, outputs)
    model.compile(keras.optimizers.SGD(0.05), ["mse"] * len(kinds), metrics=by_output)
    wanted = [w if w.ndim > 1 else w[:, None] for w in wanted]
    return Case(model, features(4), wanted)


KIND_OF_METRIC = {
    **dict.fromkeys(
        ["Accuracy", "SparseCategoricalAccuracy", "SparseTopKCategoricalAccuracy"], CLASSES
    ),
    **dict.fromkeys(["SparseCategoricalCrossentropy", "MeanIoU", "IoU"], CLASSES),
    **dict.fromkeys(["BinaryAccuracy", "BinaryIoU", "BinaryCrossentropy", "AUC", "Recall"], BINARY),
    **dict.fromkeys(["Precision", "TruePositives", "TrueNegatives", "FalsePositives"], BINARY),
    **dict.fromkeys(["FalseNegatives", "Hinge", "SquaredHinge", "PrecisionAtRecall"], BINARY),
    **dict.fromkeys(["RecallAtPrecision", "SensitivityAtSpecificity"], BINARY),
    "SpecificityAtSensitivity": BINARY,
    **dict.fromkeys(["R2Score", "ConcordanceCorrelation", "PearsonCorrelation"], REAL),
    **dict.fromkeys(["MeanSquaredError", "MeanAbsoluteError", "RootMeanSquaredError"], REAL),
}
METRICS: dict[str, Callable[[], Any]] = {
    "PrecisionAtRecall": lambda: metrics.PrecisionAtRecall(0.5),
    "RecallAtPrecision": lambda: metrics.RecallAtPrecision(0.5),
    "SensitivityAtSpecificity": lambda: metrics.SensitivityAtSpecificity(0.5),
    "SpecificityAtSensitivity": lambda: metrics.SpecificityAtSensitivity(0.5),
    "IoU": lambda: metrics.IoU(4, [0, 2], sparse_y_pred=False),
    "MeanIoU": lambda: metrics.MeanIoU(4, sparse_y_pred=False),
    "BinaryIoU": lambda: metrics.BinaryIoU([0, 1], 0.5),
    "OneHotIoU": lambda: metrics.OneHotIoU(4, [0, 2]),
    "OneHotMeanIoU": lambda: metrics.OneHotMeanIoU(4),
    "SparseTopKCategoricalAccuracy": lambda: metrics.SparseTopKCategoricalAccuracy(2),
    "TopKCategoricalAccuracy": lambda: metrics.TopKCategoricalAccuracy(2),
    "F1Score": lambda: metrics.F1Score(threshold=0.4),
    "FBetaScore": lambda: metrics.FBetaScore(threshold=0.4),
}
METRICS_NOT_SWEPT = {
    "Metric": "a base class",
    "Mean": "of a number, not of targets; it holds each loss",
    "Sum": "likewise",
    "MeanMetricWrapper": "a base class of most",
    "Accuracy": "of whole numbers, which outputs with a gradient are not",
}
OPTIMIZERS = {
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.05)),
    "Muon": lambda: optimizers.Muon(0.01),
}
OPTIMIZERS_NOT_SWEPT = {
    "Optimizer": "a base class",
    "MultiOptimizer": "of several, which its own case has",
}


def optimizer_case(name: str) -> Case:
    """A network with an embedding, trained with that optimizer."""
    make = OPTIMIZERS.get(name, lambda: getattr(optimizers, name)(0.01))
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int64"),
            layers.Embedding(7, 3),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile(make(), "mse")
    # ScheduleFreeAdamW begins with the weights only where it is built before Keras traces a step.
    model.optimizer.build(model.trainable_variables)
    return Case(model, numbers(7, 5), features(2, seed=5))


def all_cases(alone: bool) -> Iterator[tuple[str, str, Callable[[], Case]]]:
    """Group, name and case."""
    for name, build in layer_cases(alone):
        yield "layers", name, build
    for group, base, skipped, build in (
        ("losses", losses.Loss, {"Loss": ""}, losses_case),
        ("metrics", metrics.Metric, METRICS_NOT_SWEPT, metrics_case),
    ):
        names = classes(getattr(keras, group), base) - set(skipped)
        apart = names if alone else names & ROWS_MEET
        for some in [
            *([sorted(names - apart)] if names - apart else []),
            *([n] for n in sorted(apart)),
        ]:
            yield group, " ".join(some), functools.partial(build, some)
    for name in sorted(classes(optimizers, optimizers.Optimizer) - set(OPTIMIZERS_NOT_SWEPT)):
        yield "optimizers", name, functools.partial(optimizer_case, name)


def outcome(build: Callable[[], Case], bitwise: bool, ghosts: bool) -> Any:
    """A fingerprint, what refused the model, or how it differs from Keras; None on other ranks.

    Micro-batches normalise by themselves: with such `ghosts` Keras's training is another one.
    """
    cases.CASES["swept"] = build
    try:
        actual = compare.train("swept")
    except ddp_gd.ModelError as error:
        return f"refused: {error}"
    if ddp_gd.rank() > 0:
        return None
    different = []
    if not (bitwise and ghosts):
        different = compare.differences(compare.train("swept", with_keras=True), actual, 5e-5)
    if bitwise and not different:
        arrays = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in actual.arrays.items()}
        return [arrays, {k: np.array(v).tolist() for k, v in actual.history.items()}]
    return f"different: {different}" if different and bitwise else different


def main(mode: str, out: str, *some: str) -> int:
    """Train all cases of these groups, or names, or all; return how many are not as expected.

    A word like 1:3 takes every third of them, from the second one on.
    """
    backend, _, bitwise = mode.partition(",")
    ddp_gd.init(backend, bitwise=bool(bitwise))
    wanted = [word for word in some if word != "--alone" and ":" not in word]
    first, every = next(([int(n) for n in w.split(":")] for w in some if ":" in w), (0, 1))
    refused = set(REFUSED)
    if ddp_gd.size() == 1 and not bitwise:
        refused = set()
    found, wrong = {}, 0
    chosen = [
        (group, name, build)
        for group, name, build in all_cases("--alone" in some)
        if not wanted or group in wanted or name in wanted
    ]
    for group, name, build in chosen[first::every]:
        if name == "AugMix" and name not in refused:
            continue  # what Python draws depends on how often Keras traces it
        result = found[f"{group}: {name}"] = outcome(
            build, bool(bitwise), "BatchNormalization" in name
        )
        if name in SOMETIMES:
            ok = isinstance(result, str) or not result or bool(bitwise)
        elif name in refused:
            ok = isinstance(result, str)
        else:
            ok = not isinstance(result, str) if bitwise else not result
        if not ok:
            wrong += 1
            print(f"{group} {name}: {str(result)[:800]}", flush=True)
    if ddp_gd.rank() == 0:
        Path(out).write_text(json.dumps(found))
        print(f"swept {len(found)} models at {ddp_gd.size()} workers")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
