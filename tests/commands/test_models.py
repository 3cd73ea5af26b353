import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ddp_gd.commands import models
from ddp_gd.data.normalizer import Normalizer
from ddp_gd.data.preprocessing import Preprocessing
from ddp_gd.errors import ConfigError, ModelError


@pytest.mark.parametrize(
    ("name", "input_shape", "hidden", "expected"),
    [
        # linear ignores hidden; anything but a vector is flattened first
        ("linear", (3,), (8,), {"output": (3, 2)}),
        ("linear", (4, 5), (), {"output": (20, 2)}),
        ("mlp", (3,), (8, 6), {"hidden_1": (3, 8), "hidden_2": (8, 6), "output": (6, 2)}),
        ("mlp", (4, 5, 1), (7,), {"hidden_1": (20, 7), "output": (7, 2)}),
    ],
)
def test_layers_and_their_sizes(name, input_shape, hidden, expected):
    """A built model has these layers by name, with kernels of these shapes, on any input rank."""
    model = models.build(name, input_shape, 2, hidden)
    kernels = {layer.name: layer.kernel.shape for layer in model.layers if layer.weights}
    assert kernels == expected
    assert model.name == name
    assert model(np.zeros((3, *input_shape))).shape == (3, 2)


def test_mlp_is_relu_inside_and_linear_outside():
    """The mlp equals relu(x W1 + b1) W2 + b2 written out in NumPy."""
    keras.utils.set_random_seed(0)
    model = models.build("mlp", (3,), 2, (16,))
    w1, b1, w2, b2 = model.get_weights()
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(model(x), np.maximum(x @ w1 + b1, 0) @ w2 + b2, atol=1e-5)


def test_seed_repeats_names_and_weights():
    """Built twice from one seed, a model has the same layer names and the same weights."""
    built = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        built.append(models.build("mlp", (3,), 1, (4, 4)))
    first, second = built
    assert [w.path for w in first.weights] == [w.path for w in second.weights]
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rnn", (3,), 1, ()), "unknown model 'rnn': give linear, mlp, cnn or path"),
        (("mlp", (3,), 1, ()), r"hidden=\(\)"),
        (("mlp", (3,), 1, (4, 0)), r"hidden=\(4, 0\)"),
        (("linear", (3,), 0, ()), "output_units=0"),
        (("linear", (), 1, ()), r"input_shape=\(\)"),
        (("linear", (3, 0), 1, ()), r"input_shape=\(3, 0\)"),
    ],
)
def test_model_that_cannot_be_built_is_explained(arguments, message):
    """An unknown name or a size below 1 is a ConfigError that quotes it."""
    with pytest.raises(ConfigError, match=message):
        models.build(*arguments)


USER_FILE = """
import dataclasses
import keras

@dataclasses.dataclass
class Sizes:
    units: "int" = 4

def good(input_shape, output_units):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(output_units)])

def fails(input_shape, output_units):
    return {}["units"]

def leaves(input_shape, output_units):
    raise SystemExit(3)

def wrong(input_shape, output_units):
    return "a model"

constant = 3
"""


def test_function_of_a_file_is_called(tmp_path):
    """path/to/file.py:function runs that file and returns the model of that function."""
    path = tmp_path / "keras.py"  # a name that must not shadow the real module
    path.write_text(USER_FILE)
    model = models.build(f"{path}:good", (3,), 2, ())
    assert model.output_shape == (None, 2)
    assert sys.modules["keras"] is keras


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user.py", "names no function"),
        ("user.py:", "names no function"),
        ("nowhere.py:good", "no file 'nowhere.py'"),
        ("folder.py:good", "no file 'folder.py'"),
        ("user.py.txt:good", "must end in .py"),
        ("user.py:missing", "'missing' is no such function"),
        ("user.py:constant", "'constant' is a int"),
        ("user.py:fails", r"fails\(\(3,\), 2\) raised KeyError: 'units'"),
        ("user.py:leaves", "raised SystemExit: 3"),
        ("user.py:wrong", "returned a str"),
        ("broken.py:good", "running broken.py raised SyntaxError"),
    ],
)
def test_function_that_cannot_be_used_is_explained(tmp_path, monkeypatch, name, message):
    """A missing, failing or wrong file or function is a ConfigError that says which it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(USER_FILE)
    (tmp_path / "user.py.txt").write_text(USER_FILE)
    (tmp_path / "broken.py").write_text("def good(:\n")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match=message):
        models.build(name, (3,), 2, ())


def scaling(normalizer):
    """Preprocessing that normalises columns of numbers, or does nothing."""
    width = 0 if normalizer is None else len(normalizer.mean)
    return Preprocessing(tuple(map(str, range(width))), normalizer)


def raw_data():
    """Ordinary, far from zero, tiny and constant columns; a target far from zero."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4)) * [3, 1, 1e-9, 0] + [5, 1e8, 2e-9, 7]
    targets = rng.normal(size=(50, 2)) * [77, 1] + [152, 1e6]
    return features, targets


def test_preprocessing_equals_the_normalizers():
    """On raw float64 rows the wrapped model gives what normaliser, model, inverse give."""
    features, targets = raw_data()
    by_column, by_target = Normalizer.fit(features), Normalizer.fit(targets)
    model = models.build("mlp", (4,), 2, (8,))
    wrapped = models.on_raw_features(model, scaling(by_column), by_target)
    inner = model(by_column.transform(features)).numpy()
    np.testing.assert_allclose(
        (wrapped(features).numpy() - by_target.mean) / by_target.scale, inner, atol=2e-6
    )
    assert np.ptp(inner) > 0.1  # the comparison is not between constants


def test_predict_loses_only_what_float32_input_loses():
    """Keras's predict stays within the stated 6e-8 * |mean| / scale of a normalised feature."""
    features, _ = raw_data()
    by_column = Normalizer.fit(features)
    identity = keras.Sequential([keras.Input((4,)), keras.layers.Identity()])
    wrapped = models.on_raw_features(identity, scaling(by_column), None)
    error = np.abs(wrapped.predict(features, verbose=0) - by_column.transform(features))
    bound = 6e-8 * (np.abs(features) / by_column.scale).max(axis=0) + 1e-6
    assert (error.max(axis=0) <= bound).all()
    assert error[:, 1].max() > 0.1  # the loss is real: deviations of 1 at 1e8 are gone


@pytest.mark.parametrize(("with_features", "with_targets"), [(True, False), (False, True)])
def test_either_side_may_go_without(with_features, with_targets):
    """Without a normaliser a side is passed through as it is."""
    features, targets = raw_data()
    features = features.astype(np.float32)
    by_column = Normalizer.fit(features) if with_features else None
    by_target = Normalizer.fit(targets) if with_targets else None
    model = models.build("linear", (4,), 2)
    expected = model(by_column.transform(features) if by_column else features).numpy()
    if by_target:
        expected = by_target.inverse(expected)
    actual = models.on_raw_features(model, scaling(by_column), by_target)(features)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_later_training_reaches_the_wrapped_model():
    """The wrapped model shares the weights, so setting them in one sets them in the other."""
    features, targets = raw_data()
    model = models.build("linear", (4,), 2)
    wrapped = models.on_raw_features(model, scaling(None), Normalizer.fit(targets))
    model.set_weights([np.zeros((4, 2)), np.zeros(2)])
    np.testing.assert_allclose(wrapped(features)[0], targets.mean(axis=0), rtol=1e-12)


def test_image_model_takes_raw_uint8_images():
    """A model of images is wrapped per channel and takes uint8 pixels."""
    images = np.random.default_rng(1).integers(0, 256, size=(6, 4, 4, 3), dtype=np.uint8)
    by_channel = Normalizer.fit(images)
    model = models.build("linear", (4, 4, 3), 2)
    wrapped = models.on_raw_features(model, scaling(by_channel), None)
    expected = model(by_channel.transform(images))
    np.testing.assert_allclose(wrapped.predict(images, verbose=0), expected, atol=1e-5)


# Keras reads variables as np.array(tensor); TensorFlow's __array__ is older than NumPy 2's.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
def test_saved_model_predicts_the_same_in_plain_keras(tmp_path):
    """The saved file predicts the same, to rounding, in a process that never saw this package."""
    features, targets = raw_data()
    by_target = Normalizer.fit(targets)
    model = models.build("mlp", (4,), 2, (8,))
    wrapped = models.on_raw_features(model, scaling(Normalizer.fit(features)), by_target)
    wrapped.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", features)
    script = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model('m.keras')\n"
        "np.save('y.npy', model(np.load('x.npy')))\n"
        "assert not any(name.startswith('ddp_gd') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=600)
    difference = np.load(tmp_path / "y.npy") - wrapped(features).numpy()
    np.testing.assert_allclose(difference / by_target.scale, 0, atol=2e-6)


@pytest.mark.parametrize(
    ("feature_columns", "target_columns", "message"),
    [
        (3, 2, "the data has 3 columns of features but the model has 4"),
        (1, 2, "the data has 1 columns of features but the model has 4"),  # would broadcast
        (4, 1, "the data has 1 columns of targets but the model has 2"),  # would broadcast
    ],
)
def test_normalizer_of_another_width_is_refused(feature_columns, target_columns, message):
    """A normaliser of another number of columns is a ModelError, not a broadcast."""
    model = models.build("linear", (4,), 2)
    by_column = Normalizer(np.zeros(feature_columns), np.ones(feature_columns))
    by_target = Normalizer(np.zeros(target_columns), np.ones(target_columns))
    with pytest.raises(ModelError, match=message):
        models.on_raw_features(model, scaling(by_column), by_target)


def test_model_without_one_input_and_output_is_refused():
    """A model with two outputs, and one without declared inputs, are ModelErrors."""
    raw = keras.Input((4,))
    two = keras.Model(raw, [keras.layers.Dense(1)(raw), keras.layers.Dense(1)(raw)])
    with pytest.raises(ModelError, match="1 inputs and 2 outputs"):
        models.on_raw_features(two, scaling(None), None)
    with pytest.raises(ModelError, match="does not declare its inputs"):
        models.on_raw_features(keras.Sequential([keras.layers.Dense(1)]), scaling(None), None)


# Keras reads variables as np.array(tensor); TensorFlow's __array__ is older than NumPy 2's.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
def test_categories_and_missing_numbers_are_inside_the_saved_model(tmp_path):
    """On rows by column, unknown texts and NaN too, the saved model gives what training saw."""
    numbers = Normalizer(np.array([5.0, 2e-9]), np.array([3.0, 1e-9]))
    preprocessing = Preprocessing(
        names=("a", "town", "b", "ok"),
        normalizer=numbers,
        missing=True,
        texts={1: ("", "Bern", "New York"), 3: ("false", "true")},
        numbers={1: np.array([2, 0, 3]), 3: np.array([0, 1])},
    )
    model = models.build("linear", (7,), 1)
    path = tmp_path / "m.keras"
    models.save(models.on_raw_features(model, preprocessing, None), path, {"features": ["a"]})
    assert models.read_about(path) == {"features": ["a"]}
    # town: Bern 0, Köln 1 (not in the training rows), "" 2, New York 3
    coded = np.array([[5, 0, 3e-9, 1], [np.nan, 1, 2e-9, 0], [8, 2, np.nan, 1], [2, 3, 0, 0]])
    towns = np.array([["Bern"], ["Köln"], [""], ["New York"]])
    columns = {
        "a": tf.constant(coded[:, :1]),
        "town": tf.constant(towns),
        "b": tf.constant(coded[:, 2:3]),
        "ok": tf.constant([["true"], ["false"], ["true"], ["false"]]),
    }
    features = preprocessing.transform(coded)
    np.testing.assert_array_equal(
        features,
        [
            [0, 1, 0, 1, 0, 0, 1],
            [0, 0, 0, 0, 0, 1, 0],
            [1, 0, 1, 0, 0, 0, 1],
            [-1, -2, 0, 0, 1, 1, 0],
        ],
    )
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_allclose(loaded(columns), model(features), atol=1e-6)


def test_normalisation_lives_in_a_layer_of_keras():
    """Mean and variance are those of a `keras.layers.Normalization`, to all float64 digits."""
    features, _ = raw_data()
    by_column = Normalizer.fit(features[:, :2])
    wrapped = models.on_raw_features(models.build("linear", (2,), 2), scaling(by_column), None)
    layer = wrapped.get_layer("ddp_gd.normalize")
    assert isinstance(layer, keras.layers.Normalization)
    np.testing.assert_array_equal(layer.mean[0], by_column.mean)
    np.testing.assert_array_equal(np.sqrt(layer.variance[0]), by_column.scale)
