"""What we use of Keras and TensorFlow beyond what they promise is there, and does what we need."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ddp_gd.steps import graph, keras_private

PACKAGE = Path(keras_private.__file__).parents[1]


def _model(**settings: object) -> keras.Model:
    first = layers.Dense(2, kernel_regularizer="l2", name="first")
    model = keras.Sequential([keras.Input((3,)), layers.Masking(), first, layers.Dropout(0.5)])
    model.compile("adam", ["mse"], metrics=[keras.losses.mean_absolute_error], **settings)
    return model


def build() -> None:
    """Every variable is there before a row was seen."""
    model = _model()
    keras_private.build(model, (keras.KerasTensor((None, 3)), keras.KerasTensor((None, 2))))
    assert model.optimizer.built
    assert len(model.optimizer.variables) > 2
    assert [loss.name for loss in keras_private.losses(model)] == ["mse"]
    assert keras_private.losses(keras.Sequential()) == []


def takes_training() -> None:
    """A model whose call has no such argument is told from one that has."""

    class Plain(keras.Model):
        def call(self, x: object) -> object:
            return x

    assert keras_private.takes_training(_model())
    assert not keras_private.takes_training(Plain())


def initial_epoch(tmp_path: Path) -> None:
    """BackupAndRestore's epoch is found where Keras's fit looks for it."""
    model = _model()
    assert keras_private.initial_epoch(model) is None
    model._initial_epoch = 4
    assert keras_private.initial_epoch(model) == 4
    assert "_initial_epoch" in inspect.getsource(keras.callbacks.BackupAndRestore)


def layers_and_sublayers() -> None:
    """Layers are listed however deep they stand, with the state that is their own."""
    inner = keras.Sequential([layers.BatchNormalization(name="norm"), layers.Dropout(0.1, seed=1)])
    model = keras.Sequential([keras.Input((3,)), inner])
    names = [layer.name for layer in keras_private.layers(model)]
    assert names[0] == model.name
    assert "norm" in names
    assert model not in keras_private.layers(model, include_self=False)
    assert inner in keras_private.sublayers(model)
    assert len(keras_private.own_state(inner.layers[0])) == 2
    assert len(keras_private.own_state(inner.layers[1])) == 1


def global_seed() -> None:
    """Keras's own generator is found once something has drawn, and can be made before."""
    keras.utils.clear_session()
    assert keras_private.global_seed() is None
    made = keras_private.global_seed(make=True)
    keras.random.normal([1])
    assert keras_private.global_seed() is made
    keras.utils.clear_session()
    keras.random.normal([1])
    assert keras_private.global_seed() is not None


def losses_and_weights() -> None:
    """Other functions take the places of the compiled losses, weights and structure stay."""
    model = _model(loss_weights=[3.0])
    x, y = tf.ones([4, 3]), tf.ones([4, 2])
    model.train_on_batch(x, y)
    ours = keras_private.compiled_loss_with(model, [lambda *_: tf.constant(2.0)])
    assert float(ours([y], [y])) == 6.0
    assert float(model.compute_loss(x, [y], [y], training=False)) < 6.0
    assert keras_private.loss_weights(model) == [3.0]
    extra = keras_private.additional_loss(model, tf.constant([1.0, 2.0]))
    assert float(extra) == 3.0


def trackers() -> None:
    """The epoch's loss, and that of each of several outputs, are metrics of the model."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, {"a": layers.Dense(1)(inputs), "b": layers.Dense(1)(inputs)})
    model.compile("sgd", {"a": "mse", "b": "mae"})
    model.train_on_batch(tf.ones([2, 1]), {"a": tf.ones([2, 1]), "b": tf.ones([2, 1])})
    tracker, of_outputs = keras_private.trackers(model)
    assert tracker.name == "loss"
    assert tracker in model.metrics
    assert [metric.name for metric in of_outputs] == ["a_loss", "b_loss"]
    assert keras_private.in_order(model, {"b_loss": 2, "loss": 1, "a_loss": 3}) == [1, 3, 2]
    assert keras_private.in_order(model, {"loss": 1}) == 1


def functions() -> None:
    """A loss shows what it hands on to its function."""
    settings = keras_private.function_settings(keras.losses.Huber(delta=0.25))
    assert settings["delta"] == 0.25


def parts_of_the_step() -> None:
    """Whatever part of Keras's step a model overrides is named, and nothing where it doesn't."""
    for training in (True, False):
        assert keras_private.overrides(_model(), training) is None
    for name in ("train_step", "make_train_function", "_compute_loss", "compute_metrics"):
        model = _model()
        setattr(model, name, lambda *_: None)
        assert keras_private.overrides(model, training=True) == name
    assert keras_private.overrides(_with("test_step"), training=True) is None
    assert keras_private.overrides(_with("test_step"), training=False) == "test_step"


def _with(name: str) -> keras.Model:
    model = _model()
    setattr(model, name, lambda *_: None)
    return model


def own_steps() -> None:
    """A step sees other gradients, a compiled loss and the rows of metrics that are put there."""
    model = _model()
    x, y = tf.ones([4, 3]), tf.ones([4, 2])
    with keras_private.replaced_gradients(lambda ask, t, s, og: [ask([x], og)[0] + 1]):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(x)
        np.testing.assert_array_equal(tape.gradient(loss, [x])[0], np.full([4, 3], 2))
    with keras_private.noted_results() as seen:
        metric = keras.metrics.Mean()
        result = metric.result()
    assert seen[id(result)] == (result, metric)
    with keras_private.compiled_loss_is(model, lambda y, p, w: tf.constant(7.0)):
        assert float(model.compute_loss(y=y, y_pred=model(x))) >= 7
    with keras_private.compiled_metrics_see(model, lambda t: None if t is None else t[:1]):
        model.compute_metrics(x, y, model(x))
    assert float(model.metrics[1].metrics[0].count) == 1


def gradients() -> None:
    """What an optimizer is given is seen, through apply_gradients and through apply."""
    model = _model()
    x, y = tf.ones([4, 3]), tf.ones([4, 2])
    with keras_private.applied_gradients(model.optimizer) as seen:
        model.train_step((x, y))
    assert [variable.path for variable, _ in seen] == [w.path for w in model.trainable_weights]
    assert all(tf.is_tensor(gradient) for _, gradient in seen)
    model.train_step((x, y))
    assert len(seen) == len(model.trainable_weights)


def updates_and_metrics() -> None:
    """What optimizers are asked to apply can be left out, once for one in another; metrics seen."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    weight = keras.Variable(1.0)
    optimizer.build([weight])
    asked = []
    with keras_private.replaced_updates(lambda apply, gradients: asked.append(gradients)):
        optimizer.apply_gradients([(tf.constant(1.0), weight)])
    assert [list(map(float, gradients)) for gradients in asked] == [[1.0]]
    assert float(weight) == 1
    with keras_private.replaced_updates(lambda apply, gradients: asked.append(apply())):
        optimizer.apply([tf.constant(1.0)], [weight])
    assert len(asked) == 2
    assert float(weight) < 1
    model, metric = _model(), keras.metrics.MeanSquaredError()
    with keras_private.noted_metrics() as seen:
        metric.update_state([1.0], [2.0])
    assert seen == [metric]
    x, y = tf.ones([4, 3]), tf.ones([4, 2])
    model.train_step((x, y))
    kept = {id(v) for v in keras_private.compiled_variables(model)}
    assert kept >= {id(v) for v in model.metrics_variables}
    assert not keras_private.overrides_fit(model)
    assert keras_private.overrides_fit(_with("fit"))


def operations() -> None:
    """An operation of a graph can be replaced, and written with other inputs."""

    def replace(kind, inputs, attributes, outputs):
        if kind == "Sin":
            return keras_private.same_operation("Cos", inputs, attributes)
        return None

    def traced(x):
        with keras_private.replacing_operations(replace):
            return tf.sin(x)

    assert float(graph.inlined(traced, tf.TensorSpec([]))(tf.constant(0.0))) == 1.0
    assert float(tf.sin(tf.constant(0.0))) == 0.0


def statistics() -> None:
    """BatchNormalization takes its moments where we say, and layers are seen when called."""
    layer = layers.BatchNormalization(name="norm", epsilon=0.0, momentum=0.0)
    x = tf.constant([[1.0], [3.0]])
    with (
        keras_private.batch_moments(lambda *_: (tf.constant([2.0]), tf.constant([4.0]))),
        keras_private.watched_layers() as seen,
    ):
        layer(x, training=True)
    ((name, outputs),) = seen
    assert name == "norm"
    assert outputs.numpy().tolist() == [[-0.5], [0.5]]
    assert layer.moving_variance.numpy().tolist() == [4.0]


def masks() -> None:
    """The mask that a layer attaches is read, and one that we attach is taken for it."""
    out = layers.Masking()(tf.constant([[[0.0], [1.0]]]))
    assert keras_private.mask(out).numpy().tolist() == [[False, True]]
    values = tf.constant([[1.0, 5.0]])
    assert keras_private.mask(values) is None
    keras_private.set_mask(values, tf.constant([[True, False]]))
    assert float(keras.losses.MeanAbsoluteError()(tf.zeros([1, 2, 1]), values[..., None])) == 3.0
    masked = tf.reshape(values, [1, 2, 1])
    keras_private.set_mask(masked, tf.constant([[True, False]]))
    assert float(keras.losses.MeanAbsoluteError()(tf.zeros([1, 2, 1]), masked)) == 1.0


def callbacks(tmp_path: Path) -> None:
    """A hook that a callback overrides is told from Keras's own, and profiling from none."""

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            pass

    assert not keras_private.is_default(Looks().on_train_batch_end)
    assert keras_private.is_default(Looks().on_train_batch_begin)
    board = keras.callbacks.TensorBoard(tmp_path)
    board.set_model(_model())
    assert not keras_private.profiles(board)
    board = keras.callbacks.TensorBoard(tmp_path, profile_batch=2)
    board.set_model(_model())
    assert keras_private.profiles(board)


def graphs() -> None:
    """A function keeps its own graph where it is called, and is found inside."""
    inner = graph.isolated(lambda x: tf.sin(x), tf.TensorSpec([]))
    outer = graph.inlined(lambda x: inner(x) + 1, tf.TensorSpec([]))
    assert any(
        op.type == "Sin"
        for g in keras_private.inner_graphs(outer.graph)
        for op in g.get_operations()
    )
    assert inner.function_def.attr["_noinline"].b


@pytest.mark.parametrize(
    "check",
    [
        build,
        takes_training,
        initial_epoch,
        layers_and_sublayers,
        global_seed,
        losses_and_weights,
        trackers,
        functions,
        parts_of_the_step,
        own_steps,
        gradients,
        updates_and_metrics,
        operations,
        statistics,
        masks,
        callbacks,
        graphs,
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
def test_the_installed_keras_has_what_we_use(check: Callable[..., None], tmp_path: Path) -> None:
    """Each private name is where we look for it, and does what we need."""
    takes_a_folder = "tmp_path" in inspect.signature(check).parameters
    check(tmp_path) if takes_a_folder else check()


def _private(path: Path) -> set[str]:
    """The private names of others that a module touches."""
    tree = ast.parse(path.read_text())
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own |= {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "self"}
    own |= {"_exit", "_replace"}  # of os and of NamedTuple, promised by Python
    found = {n.attr for n in attributes if n.attr[0] == "_" and n.attr[:2] != "__"} - own
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                node.module for name in ("keras.src", "tensorflow.python") if name in node.module
            }
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "getattr",
            "hasattr",
            "setattr",
        ):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value[0] == "_" and name.value[:2] != "__":
                found.add(name.value)
    return found


def test_private_names_stand_in_one_file() -> None:
    """No other module of the package touches what Keras and TensorFlow don't promise."""
    touching = {path.name: _private(path) for path in PACKAGE.rglob("*.py")}
    assert {name for name, found in touching.items() if found} == {"keras_private.py"}
