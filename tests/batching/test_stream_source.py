"""`fit` and `evaluate` on data sets whose items are the global mini-batches, in one process."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from programs import compare
from programs.cases import WEIGHTS, numbers, sequential
from programs.items import CUTS, ITEMS, KINDS, Listed, Reordering, X, Y, elements, reshuffled
from programs.streams import batches, finite, pipeline, unknown

import ddp_gd

pytestmark = pytest.mark.filterwarnings(
    # Keras reads a variable as an array, which NumPy 2 wants done in another way.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)
FIT = {"shuffle": False, "verbose": 0}


def _network(**compiled: Any) -> keras.Model:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return sequential(layers.Dense(3, "tanh"), layers.Dense(1), **compiled)


# The same as Keras


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_items_train_and_validate_as_in_keras(kind: str, micro_batch_size: int | None) -> None:
    """Items of any number of rows are the updates that `keras.Model.fit` makes of them."""
    outcomes = []
    for fit, more in (
        (keras.Model.fit, {}),
        (ddp_gd.fit, {"micro_batch_size": micro_batch_size}),
    ):
        model = _network(optimizer="adam", weighted_metrics=["mse"])
        history = fit(model, KINDS[kind](), epochs=3, validation_data=KINDS[kind](), **FIT, **more)
        outcomes.append(compare.outcome(model, history))
    assert compare.differences(*outcomes) == []
    expected = model.evaluate(KINDS[kind](), verbose=0, return_dict=True)
    actual = ddp_gd.evaluate(model, KINDS[kind](), verbose=0)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert list(actual) == list(expected)


def test_an_item_is_one_update() -> None:
    """Items are the updates of `train_on_batch`, in their order."""
    expected, model = _network(), _network()
    for item in ITEMS:
        expected.train_on_batch(*item)
    ddp_gd.fit(model, Listed(), **FIT)
    for one, other in zip(expected.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5)


def test_arrays_and_items_validate_each_other() -> None:
    """Items can be validated on arrays and arrays on items, in Keras's number of steps."""
    outcomes = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        model = _network()
        one = fit(model, Listed(), validation_data=(np.tile(X, (3, 1)), np.tile(Y, (3, 1))), **FIT)
        other = fit(model, X, Y, 5, validation_data=elements(), **FIT)
        outcomes.append(compare.outcome(model, one))
        outcomes[-1].history.update({f"{k} of items": v for k, v in other.history.items()})
    assert compare.differences(*outcomes) == []


@pytest.mark.parametrize("kind", ["PyDataset", "tf.data"])
def test_classes_are_weighted_as_in_keras(kind: str) -> None:
    """`class_weight` weighs the rows of every item."""
    items = [(X[i:k], numbers(3)[i:k]) for i, k in CUTS]
    make = {"PyDataset": Listed, "tf.data": elements}[kind]
    outcomes = []
    for fit in (keras.Model.fit, ddp_gd.fit):
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = sequential(
            layers.Dense(3, "softmax"),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        history = fit(model, make(items), class_weight={0: 3.0, 2: 0.5}, **FIT)
        outcomes.append(compare.outcome(model, history))
    assert compare.differences(*outcomes) == []


def test_several_inputs_and_features_alone() -> None:
    """Items may be dicts and tuples of arrays, or features alone, as in Keras."""

    def items(targets: bool) -> list[Any]:
        xs = [{"a": x, "b": y} for x, y, _ in ITEMS]
        return [(x, (x["b"], x["a"])) if targets else x for x in xs]

    for targets in (True, False):
        outcomes = []
        for fit in (keras.Model.fit, ddp_gd.fit):
            keras.backend.clear_session()
            keras.utils.set_random_seed(3)
            a, b = keras.Input((4,), name="a"), keras.Input((1,), name="b")
            joined = layers.Concatenate()([a, b])
            outputs = [layers.Dense(n, activity_regularizer="l2")(joined) for n in (1, 4)]
            model = keras.Model({"a": a, "b": b}, outputs)
            model.compile("sgd", ["mse", "mae"] if targets else None)
            history = fit(model, Listed(items(targets)), **FIT)
            outcomes.append(compare.outcome(model, history))
        assert compare.differences(*outcomes) == []


def test_hooks_of_a_dataset_are_called_as_in_keras() -> None:
    """`on_epoch_begin` and `on_epoch_end` come when Keras calls them, in training, validation
    and evaluation, and every item is read once between them."""
    noted = []
    for fit, evaluate in (
        (keras.Model.fit, keras.Model.evaluate),
        (ddp_gd.fit, ddp_gd.evaluate),
    ):
        training, validation = Listed(), Listed()
        model = _network()
        fit(model, training, epochs=2, validation_data=validation, **FIT)
        evaluate(model, validation, verbose=0)
        # Before them both look at two items.
        noted.append([d.calls[d.calls.index("end") :] for d in (training, validation)])
        noted[-1][1] = [call for call in noted[-1][1] if isinstance(call, str)]
    assert noted[0] == noted[1]
    assert noted[1][0].count(2) == 2


# The order, and how it is read


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    """Every epoch has an order of its own, which another seed changes and a late start does not."""

    def order(**options: Any) -> list[list[int]]:
        dataset = Listed([(X[i : i + 1], Y[i : i + 1]) for i in range(13)])
        ddp_gd.fit(_network(), dataset, verbose=0, **{"epochs": 3, **options})
        epochs: list[list[int]] = []
        for call in dataset.calls[3:]:
            if call == "begin":
                epochs.append([])
            elif call != "end":
                epochs[-1].append(call)
        return epochs

    first = order(seed=1)
    assert [sorted(epoch) for epoch in first] == [list(range(13))] * 3
    assert len({str(epoch) for epoch in [*first, *order(seed=2)]}) == 6
    assert order(seed=1, initial_epoch=1) == first[1:]
    assert order(shuffle=False) == [list(range(13))] * 3
    assert order(seed=None) == order(seed=None)  # keras.utils.set_random_seed


def test_the_next_item_is_read_while_this_one_computes() -> None:
    """Reading does not wait for the step before."""
    read = threading.Event()

    class Dataset(Listed):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                read.set()
            return super().__getitem__(index)

    def begin(step: int, logs: Any = None) -> None:
        if step == 0:
            assert read.wait(30)

    watching = keras.callbacks.LambdaCallback(on_train_batch_begin=begin)
    ddp_gd.fit(_network(), Dataset(), callbacks=[watching], **FIT)


def test_items_are_read_in_as_many_threads_as_wanted() -> None:
    """`workers=2` reads two items at once."""
    both = threading.Barrier(2, timeout=600)

    class Dataset(Listed):
        def __getitem__(self, index: int) -> Any:
            if threading.current_thread() is not threading.main_thread():
                both.wait()
            return super().__getitem__(index)

    ddp_gd.fit(_network(), Dataset([*ITEMS, ITEMS[0]], workers=2, max_queue_size=2), **FIT)


def test_a_stop_in_mid_epoch_reads_no_further() -> None:
    """`stop_training` ends the epoch, and what has not been read by then is not."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    dataset = Listed([*ITEMS] * 4)
    model = _network()
    ddp_gd.fit(model, dataset, callbacks=[Stop()], **FIT)
    assert int(model.optimizer.iterations) == 1
    ahead = [0, 1, 2, 3]  # one, and those read ahead of it
    assert dataset.calls[:4] == [0, 1, "end", "begin"]
    assert dataset.calls[4:] == ahead[: len(dataset.calls) - 4]


class _Stopped(keras.callbacks.Callback):
    """Ends the training after so many steps, when the step before is saved."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class _Signalled(_Stopped):
    """Asks for the end of the training; it is saved after the step that follows."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("make", "end", "steps"),
    [
        # Saved: step 2 of epoch 1, step 1 or 2 of epoch 2.
        *((make, _Stopped, steps) for make in (Listed, Reordering, reshuffled) for steps in (3, 6)),
        (Reordering, _Signalled, 2),  # saved: all steps of epoch 1, not its end
    ],
)
def test_a_training_goes_on_in_mid_epoch(make: Any, end: Any, steps: int, tmp_path: Path) -> None:
    """A resumed training ends in the bits of one that was never stopped, also where the data set
    itself changes from epoch to epoch."""

    def train(*callbacks: Any, folder: Path | None = None) -> tuple[str, Any]:
        checkpoint = folder and ddp_gd.Checkpoint(folder, every_steps=1, resume=True)
        model = _network(optimizer="adam")
        history = ddp_gd.fit(
            model, make(), epochs=3, seed=1, verbose=0, callbacks=[*callbacks],
            checkpoint=checkpoint,
        )  # fmt: skip
        return ddp_gd.fingerprint(model), history.history

    with pytest.raises(KeyboardInterrupt):
        train(end(steps), folder=tmp_path)
    assert train(folder=tmp_path) == train()


STREAMS: dict[str, tuple[Any, int | None]] = {
    "generator": (batches, 4),
    "pipeline": (pipeline, 4),
    "a_pass_in_steps": (finite, 4),  # passes of seven mini-batches
    "unknown": (unknown, None),
    "ends": (lambda: batches(False), 3),
}


@pytest.mark.filterwarnings("ignore:The data ran out after:UserWarning")
@pytest.mark.parametrize("steps", [3, 4, 9])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_where_it_was(name: str, steps: int, tmp_path: Path) -> None:
    """What is seeded is read again up to its place, in and between epochs of any passes."""
    make, in_epoch = STREAMS[name]

    def train(*callbacks: Any, folder: Path | None = None) -> tuple[str, Any]:
        checkpoint = folder and ddp_gd.Checkpoint(folder, every_steps=1, resume=True)
        model = _network(optimizer="adam")
        history = ddp_gd.fit(
            model, make(), epochs=4, steps_per_epoch=in_epoch, verbose=0, callbacks=[*callbacks],
            checkpoint=checkpoint,
        )  # fmt: skip
        return ddp_gd.fingerprint(model), history.history

    with pytest.raises(KeyboardInterrupt):
        train(_Stopped(steps), folder=tmp_path)
    assert train(folder=tmp_path) == train()


def test_an_order_that_nobody_knows_again_is_said(tmp_path: Path) -> None:
    """Without a seed the training is refused, or goes on with the epoch's beginning if asked to."""

    seeds = iter(range(1, 9))  # other draws each time, as without a seed in another process

    def train(folder: Path, resume: Any, *callbacks: Any) -> int:
        model = _network()
        ddp_gd.fit(
            model,
            pipeline(next(seeds)),
            epochs=2,
            steps_per_epoch=4,
            verbose=0,
            callbacks=[*callbacks],
            checkpoint=ddp_gd.Checkpoint(folder, every_steps=1, resume=resume),
        )
        return int(model.optimizer.iterations)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, False, _Stopped(7))
    with pytest.raises(ddp_gd.MismatchError, match="before step 2 of epoch 2 are not those"):
        train(tmp_path, True)
    with pytest.warns(UserWarning, match="goes on with the beginning of epoch 2"):
        assert train(tmp_path, "new order") == 6 + 4
    with pytest.raises(ddp_gd.ConfigError, match="resume='any'"):
        ddp_gd.Checkpoint(tmp_path, resume="any")  # type: ignore[arg-type]


# Refusals


def _endless() -> Any:
    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index: int) -> Any:
            return ITEMS[0]

    return Endless()


def _unlike(number: int, item: Any) -> list[Any]:
    items: list[Any] = [ITEMS[0], ITEMS[1], ITEMS[2]]
    items[number] = item
    return items


CONFIG, DATA = ddp_gd.ConfigError, ddp_gd.DataError
x0, y0, w0 = ITEMS[0]
REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], list[str]]] = {
    "y": (Listed, {"y": Y}, CONFIG, ["y is 'ndarray'", "PyDataset", "leave y out"]),
    "sample_weight": (elements, {"sample_weight": WEIGHTS}, CONFIG, ["sample_weight is 'ndarray'"]),
    "batch_size": (Listed, {"batch_size": 4}, CONFIG, ["batch_size=4", "PyDataset"]),
    "full": (elements, {"batch_size": "full"}, CONFIG, ["batch_size='full'", "tf.data.Dataset"]),
    "split": (Listed, {"validation_split": 0.2}, CONFIG, ["validation_split=0.2"]),
    "validation_batch_size": (
        Listed, {"validation_data": elements(), "validation_batch_size": 32}, CONFIG,
        ["validation_batch_size=32"],
    ),
    "shuffle": (Listed, {"shuffle": "batch"}, CONFIG, ["shuffle='batch'"]),
    "micro": (Listed, {"micro_batch_size": 0}, CONFIG, ["micro_batch_size=0"]),
    "seed": (Listed, {"shuffle": True, "seed": -1}, CONFIG, ["seed=-1"]),
    "both_weights": (
        Listed, {"class_weight": {0: 1.0}}, CONFIG, ["class_weight and sample_weight"],
    ),
    "processes": (
        lambda: Listed(workers=3, use_multiprocessing=True), {}, CONFIG,
        ["use_multiprocessing=True", "workers=3, use_multiprocessing=False"],
    ),
    "endless": (_endless, {}, DATA, ["num_batches None", "__len__", "steps_per_epoch"]),
    "empty": (lambda: Listed([]), {}, DATA, ["no items"]),
    "repeat": (lambda: elements().repeat(), {}, DATA, [".repeat()", "steps_per_epoch"]),
    "rows": (
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)), {}, DATA, ["element 0", ".batch("],
    ),
    "nothing": (lambda: iter([]), {}, DATA, ["generator has no items"]),
    "iterable": (lambda: {3}, {}, DATA, ["item 0 of the set", "'int'"]),
    "validation": (Listed, {"validation_data": 3}, DATA, ["'int'", "PyDataset", "generator"]),
    "read": (elements, {"read": "rank 1"}, CONFIG, ["read='rank 1'", "'every worker'"]),
    "a_number": (lambda: Listed([3]), {}, DATA, ["item 0 of the PyDataset", "'int'"]),
    "four": (lambda: Listed([(X, Y, WEIGHTS, X)]), {}, DATA, ["item 0", "tuple of 4"]),
    "no_rows": (lambda: Listed([(X[:0], Y[:0])]), {}, DATA, ["item 0", "0 rows"]),
    "lengths": (lambda: Listed([(X, Y[:3])]), {}, DATA, ["item 0", "x: 13", "y: 3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_trained_is_refused_untouched(name: str) -> None:
    """A refusal quotes what is wrong, says what to give instead, and changes no weight."""
    make, options, kind, quoted = REFUSED[name]
    model = _network()
    before = model.get_weights()
    with pytest.raises(kind) as caught:
        ddp_gd.fit(model, make(), **{**FIT, **options})
    assert [text for text in quoted if text not in str(caught.value)] == []
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


MALFORMED: dict[str, tuple[Any, list[str]]] = {
    "none": (None, ["x is None"]),
    "rows": ((x0[:0], y0[:0], w0[:0]), ["0 rows"]),
    "lengths": ((x0, y0[:2], w0), ["x: 5", "y: 2"]),
    "weights": ((x0, y0), ["unlike", "None", "float32[]"]),
    "width": ((x0[:, :3], y0, w0), ["unlike", "float32[3]", "float32[4]"]),
    "dtype": ((x0.astype("int32"), y0, w0), ["unlike", "int32[4]", "float32[4]"]),
    "structure": (([x0], y0, w0), ["unlike"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_item_is_named(name: str) -> None:
    """An item that is no mini-batch, or unlike the first, is named and never trained on."""
    item, quoted = MALFORMED[name]
    model = _network()
    with pytest.raises(ddp_gd.DataError) as caught:
        ddp_gd.fit(model, Listed(_unlike(2, item)), **FIT)
    texts = [*quoted, "item 2 of the PyDataset"]
    assert [text for text in texts if text not in str(caught.value)] == []
    assert int(model.optimizer.iterations) == 2


def test_every_epoch_has_as_many_items() -> None:
    """A PyDataset whose length changes between epochs is refused."""

    class Shrinking(Listed):
        def on_epoch_end(self) -> None:
            self.items = self.items[:-1]

    with pytest.raises(ddp_gd.DataError, match="has 2 items in this epoch and had 3"):
        ddp_gd.fit(_network(), Shrinking(), **FIT)


def test_what_reading_raises_is_raised() -> None:
    """An error of the data set's own code is raised as it is."""

    class Broken(Listed):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise OSError("disk on fire")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="disk on fire"):
        ddp_gd.fit(_network(), Broken(), **FIT)


def test_a_loss_that_is_no_number_names_the_item() -> None:
    """NaN in an item stops at its step and names it, in training and evaluation."""
    x = x0.copy()
    x[3] = np.nan
    dataset = Listed(_unlike(1, (x, y0, w0)))
    where = r"step 2 of 3, on rank 0 \(its rows: 0 to 4 of item 1 of the PyDataset\)"
    with pytest.raises(ddp_gd.NumericsError, match=where):
        ddp_gd.fit(_network(), dataset, **FIT)
    with pytest.raises(ddp_gd.NumericsError, match=where):
        ddp_gd.evaluate(_network(), dataset, verbose=0)
    with pytest.raises(ddp_gd.NumericsError, match=r"element 1 of the tf\.data"):
        ddp_gd.fit(_network(), elements(dataset.items), **FIT)
