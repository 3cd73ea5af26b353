"""The models that the command line builds, and the one it saves for use on raw data."""

import importlib.util
import json
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from ddp_gd.data.normalizer import Normalizer
from ddp_gd.data.preprocessing import Preprocessing
from ddp_gd.errors import ConfigError, DataError, ModelError

KNOWN = ("linear", "mlp", "cnn")
_FILTERS = (16, 32)

_ABOUT = "ddp_gd.json"  # in the archive of a model
_MOST_ABOUT = 2**26  # bytes
_SMALL = 1e-6  # deviations that come near keras.config.epsilon()
_UNKNOWN = "\0unknown"  # stands for texts that training did not see; none that is in a file


def build(
    name: str, input_shape: tuple[int, ...], output_units: int, hidden: Sequence[int] = ()
) -> keras.Model:
    """Build a model by name.

    Args:
        name: ``linear`` (one dense layer), ``mlp`` (dense relu layers, then a dense layer),
            ``cnn`` (two blocks of convolution, batch normalisation, relu and pooling, then a dense
            layer over the mean of the picture), or ``path/to/file.py:function``, which is called as
            ``function(input_shape, output_units)`` and returns any ``keras.Model``, compiled or
            not. That file is run as it stands: give only one you trust.
        input_shape: shape of one row, without the rows axis; ``linear`` and ``mlp`` flatten it.
        output_units: width of the last layer, which has no activation: predictions or logits.
        hidden: units of each hidden layer of ``mlp``, from the input on; the others ignore it.

    Returns:
        The model; those by a word are not compiled. Layers are named ``flatten``,
        ``hidden_1``, ``hidden_2``, ..., ``output``. Initial weights come from Keras's global
        generator: call ``keras.utils.set_random_seed`` first to get the same ones again.

    Raises:
        ConfigError: the name is unknown, a size is not positive, or the file or its function
            cannot be used.
    """
    if ".py" in name:
        return _from_file(name, input_shape, output_units)
    if name not in KNOWN:
        raise ConfigError(
            f"unknown model {name!r}: give {', '.join(KNOWN)} or path/to/file.py:function"
        )
    if not input_shape or min((output_units, *input_shape)) < 1:
        raise ConfigError(
            f"a model of input_shape={input_shape} and output_units={output_units}: "
            "give at least one input axis, and sizes of at least 1"
        )
    widths = list(hidden) if name == "mlp" else []
    if name == "mlp" and (not widths or min(widths) < 1):
        raise ConfigError(
            f"hidden={tuple(hidden)}: give mlp at least one layer, each of at least 1 unit, "
            "or use the model linear"
        )
    if name == "cnn":
        return _cnn(input_shape, output_units)
    layers = [keras.layers.Flatten(name="flatten")] if len(input_shape) > 1 else []
    for number, units in enumerate(widths, start=1):
        layers.append(keras.layers.Dense(units, activation="relu", name=f"hidden_{number}"))
    layers.append(keras.layers.Dense(output_units, name="output"))
    return keras.Sequential([keras.Input(input_shape, name="features"), *layers], name=name)


def _cnn(input_shape: tuple[int, ...], output_units: int) -> keras.Model:
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 4:
        raise ConfigError(
            f"the model cnn is for pictures of 4 by 4 pixels or more, and a row has the shape "
            f"{input_shape}: give mlp, or pictures of shape (height, width, colours)"
        )
    layers: list[keras.Layer] = []
    if len(input_shape) == 2:
        layers.append(keras.layers.Reshape((*input_shape, 1), name="colour"))
    for number, filters in enumerate(_FILTERS, start=1):
        layers += [
            keras.layers.Conv2D(
                filters, 3, padding="same", use_bias=False, name=f"convolution_{number}"
            ),
            keras.layers.BatchNormalization(name=f"normalization_{number}"),
            keras.layers.ReLU(name=f"relu_{number}"),
            keras.layers.MaxPooling2D(name=f"pooling_{number}"),
        ]
    layers.append(keras.layers.GlobalAveragePooling2D(name="mean"))
    layers.append(keras.layers.Dense(output_units, name="output"))
    return keras.Sequential([keras.Input(input_shape, name="features"), *layers], name="cnn")


def on_raw_features(
    model: keras.Model, preprocessing: Preprocessing, targets: Normalizer | None
) -> keras.Model:
    """Wrap a trained model so that it takes raw features and predicts in the target's own units.

    The result shares the weights of `model`, is not compiled, and consists of built-in layers
    around it: saved with `.save("m.keras")` it loads and predicts wherever Keras is installed,
    without this package, provided that `model` itself does.

    It takes an array of shape (rows, ...) like the features of the data; where some of them are
    categories, a dict with an array of shape (rows, 1) for each column, by its name: floats, or
    texts ("true" and "false" for booleans).

    Normalisation is done by `keras.layers.Normalization` in float64. So calling the result on a
    float64 array agrees with `model(preprocessing.transform(x))` to float32 rounding, also for a
    column with mean 1e8 and deviation 1. `keras.Model.predict` is less exact on such a column: it
    turns every array into float32 first, which moves a normalised value by up to
    6e-8 * |mean| / scale.

    Args:
        model: one input of shape (rows, ...) and one output of shape (rows, ..., k): Sequential
            or functional.
        preprocessing: what made its features of the raw ones.
        targets: what the training targets were normalised with, or None if they were not.

    Returns:
        A functional model; predictions are float64 where `targets` is given.

    Raises:
        ModelError: the model has no fixed inputs, several inputs or outputs, or another number of
            columns than the data.
        DataError: a column's name can't be that of an input.
    """
    _require_one_of_each(model)
    if preprocessing.texts:
        raw, x = _encoded(preprocessing, model.name)
    else:
        shape = model.inputs[0].shape[1:]
        normalizer = preprocessing.normalizer
        dtype = model.inputs[0].dtype if normalizer is None else "float64"
        raw = keras.Input(shape, dtype=dtype, name="raw_features")
        if normalizer is not None:
            _require_width("features", len(normalizer.mean), shape[-1])
        x = _scaled(raw, preprocessing)
    _require_width("features", x.shape[-1], model.inputs[0].shape[-1])
    outputs = _in_target_units(model(x), targets)
    return keras.Model(raw, outputs, name=f"{model.name}_on_raw_features")


def in_target_units(model: keras.Model, targets: Normalizer | None) -> keras.Model:
    """Wrap a trained model so that it predicts in the target's own units; not compiled."""
    _require_one_of_each(model)
    features = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype)
    outputs = _in_target_units(model(features), targets)
    return keras.Model(features, outputs, name=f"{model.name}_in_target_units")


def save(model: keras.Model, path: Path, about: Mapping[str, Any]) -> None:
    """Save a model as a `.keras` file, and beside its parts, in the same archive, what it takes.

    Keras doesn't read that part; `read_about` does.
    """
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_ABOUT, json.dumps(about, indent=2))


def read_about(path: Path) -> dict[str, Any]:
    """Read what `save` wrote about a model: nothing, if something else saved it.

    Raises:
        ModelError: it is not a `.keras` file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if _ABOUT not in archive.namelist():
                return {}
            if archive.getinfo(_ABOUT).file_size > _MOST_ABOUT:
                raise ValueError("its description is too long")
            about = json.loads(archive.read(_ABOUT))
            return about if isinstance(about, dict) else {}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelError(f"{path} is not a whole .keras file: {error}") from error


def _require_one_of_each(model: keras.Model) -> None:
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError as error:
        raise ModelError(
            f"model {model.name!r} does not declare its inputs: use a functional model, or a "
            "Sequential one that starts with keras.Input"
        ) from error
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"model {model.name!r} has {len(inputs)} inputs and {len(outputs)} outputs: "
            "raw features can be built in for one of each only"
        )


def _require_width(what: str, of_data: int, of_model: int) -> None:
    if of_data != of_model:
        raise ModelError(
            f"the data has {of_data} columns of {what} but the model has {of_model}: give it as "
            "many"
        )


def _encoded(preprocessing: Preprocessing, model_name: str) -> tuple[dict[str, Any], Any]:
    """Inputs by column, and the features that are made of them."""
    names = preprocessing.names
    if model_name in names:
        raise DataError(f"column {model_name!r} has the name of the model: give it another name")
    if bad := [name for name in names if "/" in name]:
        raise DataError(
            f"column {bad[0]!r} can't name an input of a Keras model: leave out the '/'"
        )
    raw = {
        name: keras.Input(
            (1,), dtype="string" if p in preprocessing.texts else "float64", name=name
        )
        for p, name in enumerate(names)
    }
    groups = []
    if places := preprocessing.number_places:
        columns = [raw[names[p]] for p in places]
        together = keras.layers.Concatenate(dtype="float64", name="ddp_gd.numbers")
        numbers = together(columns) if len(columns) > 1 else columns[0]
        groups.append(keras.ops.cast(_scaled(numbers, preprocessing), "float32"))
    for place, texts in preprocessing.texts.items():
        lookup = keras.layers.StringLookup(
            vocabulary=list(texts),
            output_mode="one_hot",
            oov_token=_UNKNOWN,
            name=f"ddp_gd.texts_of_{place}",
        )
        one_hot = keras.ops.cast(lookup(raw[names[place]]), "float32")
        groups.append(one_hot[:, 1:])  # the first is for unknown texts
    join = keras.layers.Concatenate(name="ddp_gd.features")
    return raw, join(groups) if len(groups) > 1 else groups[0]


def _scaled(raw: Any, preprocessing: Preprocessing) -> Any:
    if preprocessing.normalizer is None:
        return raw
    x = _normalization(raw, preprocessing.normalizer, "ddp_gd.normalize")
    return keras.ops.nan_to_num(x, nan=0.0) if preprocessing.missing else x


def _in_target_units(x: Any, targets: Normalizer | None) -> Any:
    if targets is None:
        return x
    _require_width("targets", len(targets.mean), x.shape[-1])
    return _normalization(x, targets, "ddp_gd.to_target_units", invert=True)


def _normalization(x: Any, normalizer: Normalizer, name: str, invert: bool = False) -> Any:
    """Apply Keras's layer with these moments, to all their float64 digits.

    The layer takes deviations below Keras's epsilon for that: columns with such a unit are given
    another one before, or after, that differs by a power of two and so by no digit.
    """
    scale = np.asarray(normalizer.scale)
    factor = np.where(scale < _SMALL, np.exp2(-np.floor(np.log2(scale))), 1.0)
    layer = keras.layers.Normalization(invert=invert, dtype="float64", name=name)
    layer.build((None, *x.shape[1:]))
    # Not as arguments: those are saved with float32 digits.
    layer.adapt_mean.assign(normalizer.mean * factor)
    layer.adapt_variance.assign(np.square(scale * factor))
    layer.finalize_state()
    if np.all(factor == 1.0):
        return layer(x)
    # Constants stay NumPy arrays: Keras saves those with their dtype, but lists as float32.
    unit = np.asarray(1.0 / factor if invert else factor)
    rescaling = keras.layers.Rescaling(unit, dtype="float64", name=f"{name}_unit")
    return rescaling(layer(x)) if invert else layer(rescaling(x))


def _from_file(name: str, input_shape: tuple[int, ...], output_units: int) -> keras.Model:
    file_name, colon, function_name = name.rpartition(":")
    if not (colon and file_name and function_name):
        raise ConfigError(f"model {name!r} names no function: write path/to/file.py:function")
    if not Path(file_name).is_file():
        raise ConfigError(f"model {name!r}: there is no file {file_name!r}")
    module = _import_file(Path(file_name), name)
    function = getattr(module, function_name, None)
    if not callable(function):
        problem = "no such function" if function is None else f"a {type(function).__name__}"
        raise ConfigError(
            f"model {name!r}: {function_name!r} is {problem} in {file_name}: define "
            f"{function_name}(input_shape, output_units) there"
        )
    try:
        model = function(input_shape, output_units)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"model {name!r}: {function_name}({input_shape}, {output_units}) raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"model {name!r}: {function_name} returned a {type(model).__name__}: "
            "return a keras.Model"
        )
    if isinstance(model, keras.Sequential) and not model.built:
        model.build((None, *input_shape))  # one that doesn't start with keras.Input
    return model


def _import_file(path: Path, name: str) -> ModuleType:
    module_name = f"ddp_gd_model_{path.stem}"  # its own name: never in the way of a real module
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model {name!r}: {path} is not a Python file: it must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ConfigError(
            f"model {name!r}: running {path} raised {type(error).__name__}: {error}"
        ) from error
    return module
