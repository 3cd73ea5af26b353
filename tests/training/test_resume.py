"""A training that was stopped and gone on with ends as one that never stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from jobs import run_job
from programs.cases import CASES, features, sequential

import ddp_gd
from ddp_gd.errors import CheckpointError, ConfigError, MismatchError
from ddp_gd.job import bitwise
from ddp_gd.reporting.records import PARTS
from ddp_gd.reporting.times import Times
from ddp_gd.training import epochs as training_epochs
from ddp_gd.training import identity
from ddp_gd.training.saving.checkpoint_files import Folder, parse
from ddp_gd.training.saving.snapshot import Position, Snapshot
from tests.faults import kills

# Keras's own code, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROGRAM = str(Path(__file__).parents[1] / "programs" / "resumed.py")
X, Y = features(4), features(1, seed=6)
STEPS = 2  # of an epoch
EPOCHS = 6
ENDS_AFTER = (
    5  # epochs: EarlyStopping remembers, from before the stop, that its patience is used up
)


class Signalled(keras.callbacks.Callback):
    """Sends this process a signal after so many steps, steps of validations, or epochs."""

    def __init__(self, number: signal.Signals, steps: int = 0, tests: int = 0, epochs: int = 0):
        super().__init__()
        self.number, self.steps, self.tests, self.epochs = number, steps, tests, epochs

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), self.number)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.tests -= 1
        if self.tests == 0:
            os.kill(os.getpid(), self.number)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            os.kill(os.getpid(), self.number)


class Stopped(keras.callbacks.Callback):
    """Fails after so many steps, or epochs."""

    def __init__(self, steps: int = 0, epochs: int = 0):
        super().__init__()
        self.steps, self.epochs = steps, epochs

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise KeyboardInterrupt


def network(activation: str = "tanh") -> keras.Model:
    """A small compiled model."""
    return sequential(
        keras.layers.Dense(3, activation),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(1),
        optimizer=keras.optimizers.Adam(0.05),
    )


def train(
    folder: Path | None = None, *more: keras.callbacks.Callback, model: Any = None, **options: Any
) -> tuple[keras.Model, keras.callbacks.History]:
    """Train, with callbacks that remember something and a learning rate that changes."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    if model is None:
        model = network()
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True),
        # Depends on the rate before: must not be applied once more in the middle of an epoch.
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        *more,
    ]
    every = options.pop("every", {"every_steps": 1})
    fit = {"batch_size": 8, "epochs": EPOCHS, "verbose": 0, "validation_split": 0.1, **options}
    resume = options.pop("resume", True)
    fit.pop("resume", None)
    checkpoint = folder and ddp_gd.Checkpoint(folder, resume=resume, **every)
    return model, ddp_gd.fit(model, X, Y, callbacks=callbacks, checkpoint=checkpoint, **fit)


def left(model: keras.Model, history: keras.callbacks.History) -> tuple:
    """Weights, optimizer state and History, to the bit."""
    optimizer = [v.numpy().tobytes() for v in model.optimizer.variables]
    return ddp_gd.fingerprint(model), optimizer, history.history, history.epoch


@pytest.fixture(scope="module")
def never_stopped() -> tuple:
    """What the training leaves when nothing happens."""
    ended = left(*train(seed=7))
    assert len(ended[2]["loss"]) == ENDS_AFTER
    return ended


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, STEPS * ENDS_AFTER])
def test_stopped_after_any_step(steps: int, tmp_path: Path, never_stopped: tuple) -> None:
    """Weights, optimizer, History and what callbacks remember go on as if nothing had been."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Stopped(steps=steps), seed=7)
    assert left(*train(tmp_path, seed=7 if steps == 1 else None)) == never_stopped


@pytest.mark.parametrize(
    ("number", "when", "made"),
    [
        # The step after the one in which the signal came is the last, be it of the validation.
        ("SIGTERM", {"steps": 3}, "step 2 of epoch 2"),
        ("SIGINT", {"steps": 4}, "step 2 of epoch 2"),
        ("SIGTERM", {"steps": 2}, "step 2 of epoch 1"),
        ("SIGTERM", {"epochs": 3}, "epoch 3"),
        ("SIGTERM", {"epochs": ENDS_AFTER}, f"epoch {ENDS_AFTER}"),  # a callback ends it, too
        ("SIGTERM", {"steps": 1, "epochs": 0}, "step 2 of epoch 1"),
    ],
)
def test_stopped_by_a_signal(
    number: str, when: dict, made: str, tmp_path: Path, never_stopped: tuple, capsys
) -> None:
    """The step is finished and saved, the exit status says what it was, and it can go on."""
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit if number == "SIGTERM" else KeyboardInterrupt) as ended:
        train(tmp_path, Signalled(signal.Signals[number], **when), seed=7, every={})
    if number == "SIGTERM":
        assert ended.value.code == 143
    said = capsys.readouterr().err
    assert said.startswith(f"ddp_gd: stopped by {number} after {made}; saved in {tmp_path}")
    assert left(*train(tmp_path, every={})) == never_stopped
    assert capsys.readouterr().err.startswith(f"ddp_gd: goes on after {made}, from the newest")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "Go on with Checkpoint(..., resume=True)."),
        ("ddp-gd train -np 2", "Go on: ddp-gd train -np 2 --resume"),
        ("ddp-gd train --resume -np 2", "Go on: ddp-gd train --resume -np 2"),
    ],
)
def test_the_command_to_go_on_with(typed: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that was typed; a script has none that could say so."""
    monkeypatch.setenv("DDP_GD_COMMAND", typed)
    assert training_epochs._go_on() == said


class AlwaysDropout(keras.layers.Dropout):
    """Draws random numbers in a validation, too."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return super().call(inputs, training=True)


@pytest.mark.parametrize("ended", [False, True])
def test_stopped_in_a_validation(ended: bool, tmp_path: Path, capsys) -> None:
    """What the validation changed is undone and saved, and the validation is made once more; also
    where a callback had ended the training in the middle of the epoch."""

    class Ends(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = ended and len(self.model.history.epoch) == 1

    def run(folder: Path | None, *more: keras.callbacks.Callback) -> tuple:
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = sequential(AlwaysDropout(0.3), keras.layers.Dense(1), metrics=["mae"])
        rows = {"validation_split": 0.4, "validation_batch_size": 2, "epochs": 4}
        return left(
            *train(folder, Ends(), *more, model=model, seed=7, every={}, batch_size=4, **rows)
        )

    with pytest.raises(SystemExit) as caught:
        run(tmp_path, Signalled(signal.SIGTERM, tests=4))  # the first one of the second epoch
    assert caught.value.code == 143
    assert f"after step {1 if ended else 2} of epoch 2;" in capsys.readouterr().err
    whole = run(None)
    assert len(whole[2]["loss"]) == (2 if ended else 4)
    assert run(tmp_path) == whole


@pytest.mark.parametrize("every", [{}, {"every_seconds": 1e-9}, {"every_steps": 5}])
def test_stopped_twice(every: dict, tmp_path: Path, never_stopped: tuple) -> None:
    """At the end of epochs, by the clock, at steps that divide no epoch: each time it goes on."""
    for epochs in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, Stopped(epochs=epochs), seed=7, every=every)
    assert left(*train(tmp_path, seed=7, every=every)) == never_stopped
    # It has ended: nothing is trained any more.
    assert left(*train(tmp_path, every=every)) == never_stopped
    assert len(list(tmp_path.glob("*.safetensors"))) <= 3


def test_times_begin_anew_in_mid_epoch(tmp_path: Path) -> None:
    """Of an epoch that was begun before, the seconds since it went on are measured."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Times(), Stopped(steps=4), seed=7)
    times, began = Times(), time.perf_counter()
    train(tmp_path, times)
    assert times.epochs[0]["epoch"] == 2
    assert sum(row["seconds"] for row in times.epochs) <= time.perf_counter() - began
    assert min(row[part] for row in times.epochs for part in PARTS) >= 0


def test_a_training_may_be_made_longer(tmp_path: Path, never_stopped: tuple) -> None:
    """More epochs than before: the ones that are there are not trained again."""
    train(tmp_path, seed=7, epochs=3)
    assert left(*train(tmp_path)) == never_stopped


def test_what_monitors_goes_on_as_it_was(tmp_path: Path) -> None:
    """Keras turns the sign of `min_delta` once in each process: it must not be turned twice."""

    def run(folder: Path | None, *more: keras.callbacks.Callback) -> tuple:
        # No epoch is better than the one before by so much, so each lowers the rate.
        plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=10.0)
        return left(*train(folder, plateau, *more, seed=7))

    whole = run(None)
    assert whole[2]["learning_rate"][-1] < 0.01
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stopped(epochs=3))
    assert run(tmp_path) == whole


def test_callbacks_may_be_added_and_left_out(tmp_path: Path) -> None:
    """The others remember what they did, whatever their place among them."""
    keras.utils.set_random_seed(3)
    stopping = [keras.callbacks.EarlyStopping("loss", patience=n) for n in (2, 3)]
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=9)
    checkpoint = ddp_gd.Checkpoint(tmp_path, resume=True)
    fit = {"batch_size": 8, "verbose": 0, "seed": 7, "checkpoint": checkpoint}
    ddp_gd.fit(network(), X, Y, epochs=2, callbacks=[plateau, *stopping], **fit)
    best = stopping[0].best
    again = keras.callbacks.EarlyStopping("loss", patience=5)
    noted = []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: noted.append(again.best))
    ddp_gd.fit(network(), X, Y, epochs=3, callbacks=[look, again], **fit)
    assert noted == [best]


def test_numbers_in_logs_may_be_tensors(tmp_path: Path) -> None:
    """They are saved as numbers."""
    rate = keras.callbacks.LambdaCallback()

    def add(epoch: int, logs: Any = None) -> None:
        logs["rate"] = rate.model.optimizer.learning_rate + 0

    rate.on_epoch_end = add
    train(tmp_path, rate, seed=7, epochs=2)
    _, history = train(tmp_path, epochs=2)
    assert history.history["rate"] == pytest.approx([0.05 * 0.9, 0.05 * 0.9**2])


def test_other_class_weights_are_refused(tmp_path: Path) -> None:
    """Also where no row that is compared has them."""
    fit = {"batch_size": 8, "verbose": 0, "checkpoint": ddp_gd.Checkpoint(tmp_path, resume=True)}
    y = np.zeros((len(X), 1), np.int64)
    for epochs in (1, 2):
        ddp_gd.fit(network(), X, y, class_weight={1: 2, 0: 1}, epochs=epochs, **fit)
    with pytest.raises(MismatchError, match=r"class_weight: the checkpoint has '\{0: 1.0, 1: 2.0"):
        ddp_gd.fit(network(), X, y, class_weight={0: 1, 1: 3}, epochs=3, **fit)


def test_bfloat16_and_values_per_class(tmp_path: Path) -> None:
    """Dtypes that NumPy doesn't know, and metrics that are arrays, are saved with every bit."""

    def model() -> keras.Model:
        return sequential(
            keras.layers.Dense(3, dtype="bfloat16"),
            keras.layers.Dense(2, "softmax"),
            loss="categorical_crossentropy",
            metrics=[keras.metrics.F1Score()],
        )

    def run(folder: Path | None, epochs: int) -> tuple:
        keras.utils.set_random_seed(3)
        made = model()
        y = keras.utils.to_categorical(np.arange(13) % 2)
        checkpoint = folder and ddp_gd.Checkpoint(folder, resume=True)
        history = ddp_gd.fit(made, X, y, 8, epochs=epochs, verbose=0, seed=1, checkpoint=checkpoint)
        scores = [value.tolist() for value in history.history["f1_score"]]
        return ddp_gd.fingerprint(made), scores, history.history["loss"]

    run(tmp_path, 2)
    assert run(tmp_path, 4) == run(None, 4)


def test_a_callback_that_draws_without_a_seed(tmp_path: Path) -> None:
    """Keras's global generator, made in the middle of a training, goes on where it was."""
    drawn = []

    class Draw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch > 0:
                drawn.append(keras.random.normal((2,)).numpy().tolist())

    whole = left(*train(None, Draw(), seed=7))
    never_stopped, drawn = drawn, []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Draw(), Stopped(epochs=3), seed=7)
    drawn.pop()  # the epoch that failed is not saved, and is ended again
    assert left(*train(tmp_path, Draw(), seed=7)) == whole
    assert drawn == never_stopped


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"batch_size": 6}, "batch_size=8"),
        ({"seed": 8}, "seed=7"),
        ({"validation_split": 0.2}, "validation rows"),
        ({"model": lambda: sequential(keras.layers.Dense(1))}, "trainable_variables"),
        (
            {"model": lambda: network(activation="relu")},
            r"layer 2 \(Dense dense\) activation: the checkpoint has 'tanh', this training 'relu'",
        ),
        ({"shuffle": False}, "shuffle=True"),
    ],
)
def test_another_training_is_refused(options: dict, quoted: str, tmp_path: Path) -> None:
    """What differs is named, and the checkpoints stay."""
    train(tmp_path, seed=7, epochs=1)
    before = sorted(tmp_path.iterdir())
    if "model" in options:
        options = {**options, "model": options["model"]()}
    with pytest.raises(MismatchError, match=quoted):
        train(tmp_path, **options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", CASES)
def test_the_same_model_is_known_again(name: str) -> None:
    """Built a second time in a process it has other automatic names, and other seeds."""
    snapshots = [
        Snapshot(Position(1, 0, 0), 7, False, identity.model_facts(model), {}, {}, {}, [], {})
        for model in (CASES[name]().model, CASES[name]().model)
    ]
    assert any(fact.startswith("layer ") for fact in snapshots[0].facts)
    snapshots[0].require_same(snapshots[1].facts)


def test_another_wiring_is_refused() -> None:
    """The same layers, connected otherwise, and operations with other arguments."""

    def facts(most: int = 1, repeated: bool = False) -> dict[str, str]:
        x = keras.Input((4,))
        first, second = keras.layers.Dense(4), keras.layers.Dense(4)
        y = second(first(x) if repeated else x)
        return identity.model_facts(keras.Model(x, first(x) + keras.ops.clip(y, 0, most)))

    snapshot = Snapshot(Position(1, 0, 0), 7, False, facts(), {}, {}, {}, [], {})
    snapshot.require_same(facts())
    with pytest.raises(MismatchError, match="x_max: the checkpoint has '1', this training '2'"):
        snapshot.require_same(facts(most=2))
    with pytest.raises(MismatchError, match=r"model inputs\[\d\]"):
        snapshot.require_same(facts(repeated=True))


def test_another_machine_is_told(tmp_path: Path) -> None:
    """Where the bits would be others: a warning, in bitwise mode, where they count, an error."""
    train(tmp_path, seed=7, epochs=1)
    facts = bitwise.facts()
    other = {**facts, "processor": "another one"}
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(bitwise, "facts", lambda: other)
        with pytest.warns(UserWarning, match=r"processor: the checkpoint has .*'another one'"):
            train(tmp_path, epochs=2)
    snapshot = Snapshot(Position(1, 0, 0), 7, False, {"model": "A", **facts}, facts, {}, {}, [], {})
    with pytest.raises(MismatchError, match=r"processor: the checkpoint has .*'another one'"):
        snapshot.require_same({"model": "A", **other})


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Without `resume`, a training neither continues nor overwrites another one."""
    train(tmp_path, seed=7, epochs=1)
    with pytest.raises(ConfigError, match=r"holds the checkpoints of a training: step-0+2-"):
        train(tmp_path, resume=False)
    (tmp_path / "empty").mkdir()
    train(tmp_path / "empty", resume=False, epochs=1)
    with pytest.raises(ConfigError, match=r"checkpoint='folder' must be a ddp_gd\.Checkpoint"):
        ddp_gd.fit(sequential(), X, Y, checkpoint="folder")


def test_a_damaged_checkpoint_costs_only_the_steps_since(
    tmp_path: Path, never_stopped: tuple, capsys: pytest.CaptureFixture
) -> None:
    """The one before is used, loudly; with none left the training does not begin again."""
    train(tmp_path, seed=7, epochs=2)
    paths = sorted(tmp_path.iterdir())
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    assert left(*train(tmp_path)) == never_stopped
    assert f"{paths[-1].name} is damaged" in capsys.readouterr().err
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is whole"):
        train(tmp_path)


def test_a_disk_that_fails_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that can't be written is an error, not a training that goes on unsaved."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not a folder"):
        train(tmp_path / "file")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(CheckpointError, match="can't be written: I/O error"):
        train(tmp_path)


@pytest.mark.jobs
def test_killed_and_resumed_with_other_workers(tmp_path: Path) -> None:
    """Killed at 2 workers, asked to stop at 3, ended at 1: the same bits as never stopped."""

    def run(out: str, workers: int, launcher: str, *killed: str, backend: str = "auto") -> int:
        argv = [PROGRAM, str(tmp_path / out), str(tmp_path / "saved"), *killed]
        return run_job(workers, argv, launcher, {"BACKEND": backend}).returncode

    def began(out: str) -> int:
        return int((tmp_path / f"{out}.began").read_text())

    assert run("killed", 2, "mpirun", "1", "11", "SIGKILL") != 0
    left = kills.newest_whole(tmp_path / "saved")
    assert run("stopped", 3, "mpirun", "2", "15", "SIGTERM", backend="mpi") == 143
    assert began("stopped") == left > began("killed") == 0
    assert not (tmp_path / "killed").exists()
    assert not (tmp_path / "stopped").exists()
    left = kills.newest_whole(tmp_path / "saved")
    assert run("resumed", 1, "python") == 0
    assert began("resumed") == left > began("stopped")
    (tmp_path / "saved").rename(tmp_path / "other")
    assert run("whole", 1, "python") == 0
    resumed, whole = (json.loads((tmp_path / out).read_text()) for out in ("resumed", "whole"))
    assert resumed == whole
    assert len(whole["history"]["loss"]) == 6


@pytest.mark.jobs
def test_the_main_job_goes_on(tmp_path: Path) -> None:
    """`--checkpoint` and `--resume`: the same history.csv, at another number of workers."""

    def run(workers: int, launcher: str, out: str, *options: str) -> tuple[int, str, str]:
        argv = ["-m", "ddp_gd.train", "--bitwise", "--batch-size", "33", *options]
        argv += ["--out", str(tmp_path / out)]
        job = run_job(workers, argv, launcher)
        return job.returncode, job.stdout.splitlines()[-1] if job.stdout else "", job.stderr

    saved = ["--checkpoint", str(tmp_path / "saved")]
    code, whole, error = run(1, "python", "whole", "--epochs", "4", "--seed", "2")
    assert code == 0, error
    code, _, error = run(3, "mpirun", "part", "--epochs", "2", "--seed", "2", *saved)
    assert code == 0, error
    code, ended, error = run(1, "python", "rest", "--epochs", "4", "--resume", *saved)
    assert (code, ended) == (0, whole), error
    histories = [(tmp_path / out / "history.csv").read_bytes() for out in ("whole", "rest")]
    assert histories[0] == histories[1]
    assert len(list(csv.reader(histories[0].decode().splitlines()))) == 5
    # The files hold options and normalisation, too.
    arrays, header = parse(Folder(tmp_path / "saved").newest())
    assert json.loads(header)["about"]["config"]["batch_size"] == 33
    assert arrays["about/features mean"].shape == (10,)
    assert arrays["about/targets scale"] > 1
