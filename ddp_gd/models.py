"""The models that the command line builds, and the one it saves for use on raw data."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import keras
import numpy as np

from ddp_gd.errors import ConfigError, ModelError
from ddp_gd.split import Normalizer

KNOWN = ("linear", "mlp")


def build(
    name: str, input_shape: tuple[int, ...], output_units: int, hidden: Sequence[int] = ()
) -> keras.Model:
    """Build a model by name.

    Args:
        name: ``linear`` (one dense layer), ``mlp`` (dense relu layers, then a dense layer), or
            ``path/to/file.py:function``, which is called as ``function(input_shape, output_units)``
            and returns any ``keras.Model``, compiled or not. That file is run as it stands: give
            only one you trust.
        input_shape: shape of one row, without the rows axis; ``linear`` and ``mlp`` flatten it.
        output_units: width of the last layer, which has no activation: predictions or logits.
        hidden: units of each hidden layer of ``mlp``, from the input on; the others ignore it.

    Returns:
        The model; ``linear`` and ``mlp`` are not compiled. Layers are named ``flatten``,
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
    layers = [keras.layers.Flatten(name="flatten")] if len(input_shape) > 1 else []
    for number, units in enumerate(widths, start=1):
        layers.append(keras.layers.Dense(units, activation="relu", name=f"hidden_{number}"))
    layers.append(keras.layers.Dense(output_units, name="output"))
    return keras.Sequential([keras.Input(input_shape, name="features"), *layers], name=name)


def with_preprocessing(
    model: keras.Model, features: Normalizer | None, targets: Normalizer | None
) -> keras.Model:
    """Wrap a trained model so that it takes raw features and predicts in the target's own units.

    The result shares the weights of ``model``, is not compiled, and consists of built-in layers
    around it: saved with ``.save("m.keras")`` it loads and predicts wherever Keras is installed,
    without this package, provided that ``model`` itself does.

    The two outer layers are ``keras.layers.Rescaling`` in float64. ``keras.layers.Normalization``
    would take every deviation below 1e-7 for 1e-7, and forgets all but float32 digits of the mean
    when it is loaded. So calling the result on a float64 array agrees with
    ``targets.inverse(model(features.transform(x)))`` to float32 rounding, also for a column with
    mean 1e8 and deviation 1. ``keras.Model.predict`` is less exact on such a column: it turns
    every array into float32 first, which moves a normalised value by up to 6e-8 * |mean| / scale.

    Args:
        model: one input of shape (rows, ...) and one output of shape (rows, ..., k): Sequential
            or functional.
        features: what the training features were normalised with, or None if they were not.
        targets: what the training targets were normalised with, or None if they were not.

    Returns:
        A functional model; predictions are float64 where ``targets`` is given.

    Raises:
        ModelError: the model has no fixed inputs, several inputs or outputs, or another number of
            columns than a normaliser.
    """
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
    _check_columns("features", features, inputs[0].shape)
    _check_columns("targets", targets, outputs[0].shape)

    dtype = inputs[0].dtype if features is None else "float64"
    raw = keras.Input(inputs[0].shape[1:], dtype=dtype, name="raw_features")
    # Constants stay NumPy arrays: Keras saves those with their dtype, but lists as float32.
    x = raw
    if features is not None:
        scale, offset = 1.0 / features.scale, -features.mean / features.scale
        x = keras.layers.Rescaling(scale, offset, dtype="float64", name="normalize")(x)
    x = model(x)
    if targets is not None:
        scale, offset = np.asarray(targets.scale), np.asarray(targets.mean)
        x = keras.layers.Rescaling(scale, offset, dtype="float64", name="to_target_units")(x)
    return keras.Model(raw, x, name=f"{model.name}_on_raw_features")


def _check_columns(what: str, normalizer: Normalizer | None, shape: tuple[int | None, ...]) -> None:
    if normalizer is not None and shape[-1] != len(normalizer.mean):
        raise ModelError(
            f"the data has {len(normalizer.mean)} columns of {what} but the model has "
            f"{shape[-1]}: give it as many"
        )


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
