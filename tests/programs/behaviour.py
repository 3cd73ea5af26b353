"""What `fit` does in a job beside the arithmetic: one function each, on every worker.

Usage: python -m programs.behaviour BACKEND FOLDER [SCENARIO...]

Every worker raises the same errors, so they can be caught, and one job checks many. An assertion
that fails on any worker ends the job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from programs import compare
from programs.cases import BATCH, WEIGHTS, features, sequential
from programs.summaries import Noted, seen

import ddp_gd
from ddp_gd.batching.order import Order
from ddp_gd.batching.plan import Plan, share_of

X, Y = features(4), features(1, seed=6)


def network(units: int = 3, **compiled: Any) -> keras.Model:
    """A small compiled model, the same each time."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return sequential(layers.Dense(units, "tanh"), layers.Dense(1), **compiled)


def fit(model: keras.Model, x: Any = X, y: Any = Y, **options: Any) -> keras.callbacks.History:
    """`ddp_gd.fit` with the settings that every scenario shares."""
    return ddp_gd.fit(
        model, x, y, **{"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    )


@contextlib.contextmanager
def raises(kind: type[Exception], *quoted: str) -> Iterator[None]:
    """Expect an exception whose text has all of `quoted`."""
    with pytest.raises(kind) as caught:
        yield
    for text in quoted:
        assert text in str(caught.value), f"{text!r} is not in: {caught.value}"


def same_everywhere(folder: Path) -> None:
    """Whatever a worker starts with, it ends with rank 0's bits."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(10 + ddp_gd.rank())  # other initial weights, other seeds
    model = sequential(layers.Dense(5), layers.Dropout(0.5), layers.BatchNormalization())
    history = fit(model, X, features(5), epochs=2, shuffle=True)
    path = folder / f"fingerprint-{ddp_gd.rank()}"
    path.write_text(f"{ddp_gd.fingerprint(model)} {history.history}")
    fit(network())  # no worker goes on before all have written
    texts = {(folder / f"fingerprint-{rank}").read_text() for rank in range(ddp_gd.size())}
    assert len(texts) == 1, texts


def batches(_: Path) -> None:
    """Batches of one row, of fewer rows than workers, and of all rows train as Keras does."""
    for batch_size, micro_batch_size in ((1, None), (2, None), (2, 1), ("full", 2)):
        model = network(optimizer="adam")
        history = fit(
            model, batch_size=batch_size, sample_weight=WEIGHTS,
            micro_batch_size=micro_batch_size, epochs=2, validation_data=(X[:2], Y[:2]),
        )  # fmt: skip
        actual = compare.outcome(model, history)
        if ddp_gd.rank() == 0:
            model = network(optimizer="adam")
            rows = len(X) if batch_size == "full" else batch_size
            history = model.fit(
                X, Y, rows, sample_weight=WEIGHTS, epochs=2, shuffle=False, verbose=0,
                validation_data=(X[:2], Y[:2]),
            )  # fmt: skip
            wrong = compare.differences(compare.outcome(model, history), actual)
            assert wrong == [], (batch_size, micro_batch_size, wrong)


def shuffling(_: Path) -> None:
    """A shuffled epoch is Keras's on the rows in the plan's order."""
    # Of a batch of 2 rows a third worker has none.
    for shuffle, batch_size in ((True, BATCH), ("batch", BATCH), ("batch", 2)):
        model = network()
        history = fit(model, batch_size=batch_size, shuffle=shuffle, seed=9)
        actual = compare.outcome(model, history)
        plan = Plan(len(X), batch_size, shuffle=shuffle, seed=9)
        order = Order(plan, 0).rows(np.arange(len(X)))
        if ddp_gd.rank() == 0:
            model = network()
            history = model.fit(X[order], Y[order], batch_size, shuffle=False, verbose=0)
            assert compare.differences(compare.outcome(model, history), actual) == []


def evaluation(_: Path) -> None:
    """`evaluate` gives Keras's numbers, on every worker."""
    metrics = ["mae", keras.metrics.RootMeanSquaredError(), keras.metrics.R2Score()]
    model = network(metrics=metrics)
    for batch_size in (1, 5, 100):
        actual = ddp_gd.evaluate(model, X, Y, batch_size, 0, WEIGHTS)
        wanted = model.evaluate(X, Y, batch_size, 0, WEIGHTS, return_dict=True)
        assert list(wanted) == list(actual)
        np.testing.assert_allclose(list(actual.values()), list(wanted.values()), rtol=1e-5)


def metrics_of_all_rows(_: Path) -> None:
    """Metrics that aren't means are those of all workers' rows together."""
    metrics: Callable[[], list] = lambda: [  # noqa: E731
        keras.metrics.AUC(), keras.metrics.F1Score(), keras.metrics.Precision(),
        keras.metrics.PearsonCorrelation(), keras.metrics.MeanIoU(2),
    ]  # fmt: skip
    y = (Y > 0).astype("float32")
    histories = []
    for trained in (fit, lambda m, x, y: m.fit(x, y, BATCH, shuffle=False, verbose=0)):
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = sequential(layers.Dense(1, "sigmoid"), metrics=metrics())
        histories.append(trained(model, X, y).history)
    assert list(histories[0]) == list(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5, err_msg=name)


def callbacks_that_write(folder: Path) -> None:
    """What writes files does so on rank 0 only; other callbacks run everywhere."""
    mine = folder / f"rank-{ddp_gd.rank()}"
    seen: list[int] = []
    everywhere = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    writers = [
        keras.callbacks.CSVLogger(f"{mine}.csv"),
        keras.callbacks.ModelCheckpoint(f"{mine}.keras"),
    ]
    fit(network(), epochs=2, callbacks=[*writers, everywhere])
    assert seen == [0, 1]
    fit(network())  # every worker is done
    names = sorted(path.name for path in folder.glob("rank-*"))
    assert names == ["rank-0.csv", "rank-0.keras"], names


def backup(folder: Path) -> None:
    """A run goes on from BackupAndRestore's files, which rank 0 has, to the same end."""
    whole = network(optimizer="adam")
    fit(whole, epochs=4, shuffle=True, seed=2)
    for epochs in (2, 4):
        model = network(optimizer="adam")
        keeper = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
        history = fit(model, epochs=epochs, shuffle=True, seed=2, callbacks=[keeper])
        assert len(history.history["loss"]) == 2
    for one, other in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def stopping(_: Path) -> None:
    """One worker's `stop_training` stops all of them at the same step, and callbacks agree."""

    class StopsOnRank1(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if ddp_gd.rank() == 1 and batch == 2:
                self.model.stop_training = True

    model = network()
    fit(model, batch_size=2, epochs=3, callbacks=[StopsOnRank1()])
    assert int(model.optimizer.iterations) == 3
    early = keras.callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True)
    model = network(optimizer=keras.optimizers.SGD(3.0))
    history = fit(model, epochs=9, callbacks=[early])
    assert len(history.history["loss"]) < 9


def signalled(folder: Path) -> None:
    """A signal to one worker, here one with empty shares, stops all after the next step."""

    class Signal(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if ddp_gd.rank() == ddp_gd.size() - 1 and batch == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

    model = network()
    checkpoint = ddp_gd.Checkpoint(folder / "signalled")
    with pytest.raises(SystemExit) as ended:
        fit(model, batch_size=2, callbacks=[Signal()], checkpoint=checkpoint)
    assert ended.value.code == 143
    assert int(model.optimizer.iterations) == 3


def not_a_number(_: Path) -> None:
    """A loss that is NaN names the step and the worker whose rows made it."""
    x = X.copy()
    x[10] = np.nan  # step 2 has rows 8 to 12
    first, last = {1: (8, 12), 2: (8, 10), 3: (10, 11)}[ddp_gd.size()]
    with raises(
        ddp_gd.NumericsError, "epoch 1, step 2 of 2", f"(its rows: {first} to {last}, counted",
        f"on rank {1 if ddp_gd.size() == 3 else 0} (",
    ):  # fmt: skip
        fit(network(), x)
    history = fit(network(), x, epochs=2, terminate_on_nan=False)
    assert np.isnan(history.history["loss"]).all()


def no_gradient(_: Path) -> None:
    """A gradient that is infinite, of a loss that isn't, stops all workers at its step, too."""

    def root(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.sqrt(keras.ops.abs(y_true - y_pred))[:, 0]

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", root)
    x = X.copy()
    x[11] = 0  # the prediction for it is 0, as is the target; sqrt has no slope there
    y = np.where(np.arange(13)[:, None] == 11, 0, Y + 9).astype("float32")
    with raises(ddp_gd.NumericsError, "or its gradient", "step 2 of 2"):
        fit(model, x, y)


def mismatches(_: Path) -> None:
    """A worker that was called with something else is named, with the difference."""
    odd = ddp_gd.rank() == 1
    other = 1 + odd
    huber = keras.losses.Huber
    held_out = (X[: 5 - odd], Y[: 5 - odd])
    table: dict[str, Callable[[], Any]] = {
        "rows": lambda: fit(network(), X[: 13 - odd], Y[: 13 - odd]),
        "dtype and shape of x": lambda: fit(network(), X.astype("f8") if odd else X),
        "dtype and shape of sample_weight": lambda: fit(
            network(), sample_weight=WEIGHTS if odd else None
        ),
        "content": lambda: fit(network(), X + odd),
        "model.trainable_variables[0]": lambda: fit(network(2 + other)),
        "plan": lambda: fit(network(), batch_size=7 + odd),
        "epochs": lambda: fit(network(), epochs=other),
        "checkpoint": lambda: fit(network(), checkpoint=ddp_gd.Checkpoint("x") if odd else None),
        "optimizer": lambda: fit(network(optimizer=keras.optimizers.SGD(0.1 * other))),
        "losses and metrics": lambda: fit(network(loss=huber(delta=0.5 * other))),
        "loss_weights": lambda: fit(network(loss_weights=[float(other)])),
        "validation rows": lambda: fit(network(), validation_data=held_out),
        "validation plan": lambda: fit(
            network(), validation_data=(X, Y), validation_batch_size=3 + odd
        ),
        "validation_freq": lambda: fit(
            network(), validation_data=(X, Y), validation_freq=other, epochs=2
        ),
        "batch_size=3": lambda: ddp_gd.evaluate(network(), X, Y, 3 + odd),
    }
    for name, call in table.items():
        print(f"rank {ddp_gd.rank()}: {name}", file=sys.stderr, flush=True)
        with raises(ddp_gd.MismatchError, name, ": rank 0 has ", "rank 1"):
            call()


def parted(_: Path) -> None:
    """A callback that changes weights on one worker only is found after the epoch."""

    def change(epoch: int, logs: Any = None) -> None:
        if ddp_gd.rank() == 1 and epoch == 1:
            model.layers[0].bias.assign_add([1e-7, 0, 0])

    blamed = "rank 1 no longer" if ddp_gd.size() > 2 else "ranks 0 and 1 are no longer"
    model = network()
    with raises(ddp_gd.ReplicaError, "After epoch 2", blamed, "the same after epoch 1"):
        fit(model, epochs=3, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=change)])


def drawn(folder: Path) -> None:
    """Who draws from Keras's global generator on one worker only parts them if the model does."""

    class Noise(layers.Layer):
        def call(self, x: Any) -> Any:
            return x + keras.random.normal(keras.ops.shape(x))

    def draw(epoch: int = 0, logs: Any = None) -> None:
        if ddp_gd.rank() == 0:
            keras.random.normal((2,))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=draw)
    for before in (False, True):
        model = network()
        if before:
            draw()
        saved = ddp_gd.Checkpoint(folder / f"drawn{before}", resume=True)
        for epochs in (1, 2):
            fit(model, epochs=epochs, callbacks=[callback], checkpoint=saved)
    keras.backend.clear_session()
    model = sequential(Noise(), layers.Dense(1))
    fit(model, epochs=2)
    with raises(ddp_gd.ReplicaError, "After epoch 1"):
        fit(model, callbacks=[callback])


def flipped(folder: Path) -> None:
    """A flipped bit of the optimizer's state is found at the next check, and never saved."""

    class Flip(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if ddp_gd.rank() == 0 and batch == 1:
                momentum = model.optimizer.variables[2]
                bits = momentum.numpy()
                bits.reshape(-1).view(np.uint32)[1] ^= 1
                momentum.assign(bits)

    for options, after, since in (
        ({"check_every": 3}, "step 3 of epoch 1", "its beginning"),
        ({"checkpoint": ddp_gd.Checkpoint(folder / "saved", every_steps=1)}, "step 2", "step 1"),
    ):
        model = network(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        with raises(ddp_gd.ReplicaError, f"After {after}", f"the same after {since}"):
            fit(model, batch_size=2, callbacks=[Flip()], **options)
    fit(network())  # rank 0 is done
    assert [path.name[:17] for path in (folder / "saved").iterdir()] == ["step-000000000001"]


def summaries(folder: Path) -> None:
    """Layers write through `tf.summary` on rank 0, of its share, once a step."""
    values = X[:, :1] * 0 + np.arange(len(X), dtype="float32")[:, None]
    keras.backend.clear_session()
    model = sequential(Noted(), layers.Dense(1), shape=(1,))
    board = keras.callbacks.TensorBoard(folder / "board", update_freq=1, write_graph=False)
    fit(model, values, values, callbacks=[board], epochs=2, validation_data=(values, values))
    if ddp_gd.rank() == 0:
        first = [share_of(rows, None, 0, ddp_gd.size()).stop for rows in (BATCH, len(X) - BATCH)]
        means = [values[: first[0]].mean(), values[BATCH : BATCH + first[1]].mean()]
        assert [value for _, value in seen(folder / "board" / "train")] == [*means, *means]
        assert len(seen(folder / "board" / "validation")) == 4
    fit(network())  # rank 0 has looked


SCENARIOS = {
    function.__name__: function
    for function in (
        same_everywhere, batches, shuffling, evaluation, metrics_of_all_rows, callbacks_that_write,
        backup, stopping, signalled, not_a_number, no_gradient, mismatches, parted, drawn, flipped,
        summaries,
    )
}  # fmt: skip


def main(backend: str, folder: str, names: list[str]) -> None:
    """Run the scenarios, all of them if none is named."""
    ddp_gd.init(backend)
    for name in names or SCENARIOS:
        SCENARIOS[name](Path(folder))
        if ddp_gd.rank() == 0:
            print(f"passed: {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
