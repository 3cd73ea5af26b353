"""`python -m ddp_gd.study`."""

import csv
import dataclasses
import json
import os
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from jobs import run_job
from run_command import run_command

import ddp_gd
from ddp_gd.batching.split import RandomSplit
from ddp_gd.commands.config import StudyConfig
from ddp_gd.commands.study import plot, summary, training
from ddp_gd.commands.study.folder import StudyFolder
from ddp_gd.commands.study.plot import draw_study
from ddp_gd.commands.study.trials import Result, Trial, setting
from ddp_gd.data.normalizer import Normalizer
from ddp_gd.errors import ConfigError
from ddp_gd.reporting import plot_style

# Two batch sizes at two rates, one of which lets the smaller batches diverge.
GRID = ["--batch-sizes", "20", "full", "--lr", "0.05", "30", "--optimizers", "sgd"]
SETTING = ["--epochs", "3", "--model", "linear"]


@pytest.fixture
def command(capfd):
    """Runs the command line: the exit status, and what it and its jobs printed."""

    def run(*arguments):
        status = run_command("study", *arguments)
        captured = capfd.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run


def table(folder):
    """The rows of study.csv."""
    with (folder / "study.csv").open() as file:
        return list(csv.DictReader(file))


def keras_alone(lr):
    """Final losses of `linear` in plain Keras: full batch, 3 epochs, the study's own seed."""
    data = ddp_gd.load("diabetes")
    split = RandomSplit(442, 0.1, seed=0)
    rows, held_back = split.training_rows(np.arange(397)), split.validation_rows(np.arange(45))
    x = Normalizer.fit(data.features[rows]).transform(data.features)
    y = Normalizer.fit(data.targets[rows]).transform(data.targets)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(lr), "mse")
    history = model.fit(
        x[rows],
        y[rows],
        batch_size=397,
        epochs=3,
        verbose=0,
        validation_data=(x[held_back], y[held_back]),
    )
    return history.history["loss"][-1], history.history["val_loss"][-1]


@pytest.mark.jobs
def test_whole_study(command, tmp_path, monkeypatch):
    """Every combination is trained once at one and two workers, and what is there stays."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    out = tmp_path / "study"
    arguments = [*GRID, *SETTING, "--out", out]
    done = command(*arguments, "--workers", 1)
    assert done.status == 0, done.err
    assert "4 trainings, 4 to do" in done.out
    first = {path: path.read_bytes() for path in (out / "records").iterdir()}
    assert len(first) == 4

    # One record is lost, two workers are added: five are trained, the other three stay.
    lost = out / "records" / "sgd-batch_full-lr_0.05-workers_1.json"
    lost.unlink()
    done = command(*arguments, "--workers", 1, 2)
    assert done.status == 0, done.err
    assert "8 trainings, 5 to do" in done.out
    assert "1/1  1 worker, sgd, batch size full, lr 0.05" in done.out
    assert "4/4  2 workers, sgd, batch size full, lr 30" in done.out
    for path, content in first.items():
        assert path == lost or path.read_bytes() == content

    rows = table(out)
    axes = ("workers", "batch_size", "lr")
    assert [tuple(row[name] for name in axes) for row in rows] == [
        (workers, size, lr)
        for workers in ("1", "2")
        for size in ("20", "397")
        for lr in ("0.05", "30.0")
    ]
    for row in rows:
        diverged = row["batch_size"] == "20" and row["lr"] == "30.0"
        assert row["outcome"] == ("diverged" if diverged else "trained")
        if diverged:
            continue
        assert int(row["updates"]) == 3 * (20 if row["batch_size"] == "20" else 1)
        seconds = float(row["seconds_per_epoch"])
        assert float(row["rows_per_second"]) == pytest.approx(397 / seconds)
        size = "full" if row["batch_size"] == "397" else row["batch_size"]
        name = f"sgd-batch_{size}-lr_{row['lr']}-workers_{row['workers']}.json"
        record = json.loads((out / "records" / name).read_text())
        assert seconds == pytest.approx(np.median(record["seconds"][1:]))
        if row["batch_size"] == "397":
            loss, val_loss = keras_alone(float(row["lr"]))
            assert float(row["loss"]) == pytest.approx(loss, rel=1e-4)
            assert float(row["val_loss"]) == pytest.approx(val_loss, rel=1e-4)
    for one, two in zip(rows[:4], rows[4:], strict=True):
        if one["outcome"] == "trained":
            assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")

    # Nothing is left to do; another setting is refused, and so is a damaged record.
    assert "8 trainings, 0 to do" in command(*arguments, "--workers", 1, 2).out
    done = command(*GRID, "--epochs", 4, "--model", "linear", "--out", out)
    assert done.status == 2
    assert "epochs was 3 and is 4" in done.err
    lost.write_text("{")
    done = command(*arguments, "--workers", 1)
    assert done.status == 2
    assert f"{lost} is damaged" in done.err


@pytest.mark.jobs
def test_under_a_job(tmp_path):
    """Started with two workers, it trains with those, and refuses to promise others."""
    arguments = ["-m", "ddp_gd.study", "--batch-sizes", "50", "--lr", "0.01", *SETTING]
    arguments += ["--optimizers", "adam", "--out", str(tmp_path / "study")]
    refused = run_job(2, [*arguments, "--workers", "1", "2"])
    assert refused.returncode != 0
    assert refused.stderr.count("--workers 1 2 can't be had in a job of 2") == 1
    assert not list(tmp_path.iterdir())
    done = run_job(2, arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1/1  2 workers, adam, batch size 50, lr 0.01") == 1
    (row,) = table(tmp_path / "study")
    assert row["workers"] == "2"
    assert row["updates"] == str(3 * 8)


def test_other_data_and_compiled_models_are_refused(tmp_path, monkeypatch):
    """Data that have changed, and models that bring an optimizer, end a study at once."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "m.py").write_text(
        "import keras\n"
        "def own(shape, outputs):\n"
        "    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(outputs)])\n"
        "    model.compile('sgd', 'mse')\n"
        "    return model\n"
    )
    np.savez("d.npz", x=rng.normal(size=(30, 2)), y=rng.normal(size=30))
    options = StudyConfig(
        **{"data": ("d.npz",), "batch_sizes": (10,), "lr": (0.1,), "optimizers": ("sgd",)},
        **{"model": "linear", "epochs": 2, "out": "study"},
    )
    with pytest.raises(ConfigError, match=r"m\.py:own returns a compiled model"):
        training.run(dataclasses.replace(options, model="m.py:own"))
    assert not (tmp_path / "study").exists()
    training.run(options)
    np.savez("d.npz", x=rng.normal(size=(30, 2)), y=rng.normal(size=30))
    with pytest.raises(ConfigError, match="can't be compared with these: data: content"):
        training.run(dataclasses.replace(options, lr=(0.2,)))


def result(size, lr, final, workers=1, seconds=1.0, diverged=""):
    """A result as if it had been measured."""
    losses = [1.0, final]
    trial = Trial(workers, "sgd", size, lr)
    return Result(trial, 100, -(-100 // size), diverged, losses, losses, [9.0, seconds], "f")


def test_what_was_found():
    """The table marks the best of each column, and the linear rule is judged by what was tried."""
    results = [
        *(result(1, 0.01, 0.5), result(1, 0.1, 0.6), result(1, 1.0, 0.1, diverged="NaN")),
        *(result(10, lr, loss, seconds=0.5) for lr, loss in ((0.01, 0.9), (0.1, 0.4), (1.0, 0.8))),
        *(result(100, lr, 0.9 - lr, seconds=0.1 + lr) for lr in (0.01, 0.1)),
        result(100, 1.0, 0.8, seconds=0.1),
    ]
    rows = list(summary.table(results))
    assert rows[0] == [
        *("optimizer", "batch size", "best lr", "updates", "loss", "val_loss"),
        "rows/s, 1 worker",
    ]
    assert [row[:4] for row in rows[1:]] == [
        ["sgd", "1", "0.01", "200"],
        ["sgd", "10", "0.1", "20"],
        ["sgd", "100", "0.1", "2"],
    ]
    assert [row[4:] for row in rows[1:]] == [
        ["0.5", "0.5", "100"],
        ["* 0.4", "* 0.4", "200"],
        ["0.8", "0.8", "* 909.1"],
    ]
    verdicts = [line.split("  ")[-1].strip() for line in summary.linear_rule(results)][1:]
    assert [verdict[-30:] for verdict in verdicts] == [
        "the nearest one tried was best",
        "the nearest one tried was best",
        verdicts[2][-30:],
    ]
    assert verdicts[2].endswith("too high")


@pytest.mark.parametrize(
    "results",
    [
        [result(1, 0.1, float("inf"), diverged="NaN")],
        [result(1, 0.1, 1e30), result(1, 1.0, -5.0), result(100, 0.1, 0.0)],
    ],
)
def test_any_results_can_be_drawn(results, tmp_path):
    """Divergence alone, huge and negative losses make a picture without a warning."""
    draw_study(results, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ([20, 30], ["20", "30"]),
        ([32], ["32"]),
        ([1, 4, 20, 100, 397], ["1", "4", "20", "100", "397"]),
        ([8, 9, 10, 100], ["8", "100"]),  # what would overlap is left out
    ],
)
def test_the_axis_of_batch_sizes_shows_those_that_were_tried(sizes: list[int], shown: list[str]):
    """However few they are, no label lies on another."""
    axes = plot_style.new_figure(4, 3).subplots()
    axes.plot(sizes, sizes)
    plot._log_axis(axes, sizes)
    axes.figure.draw_without_rendering()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == shown
    assert not list(axes.xaxis.get_minorticklocs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, "--batch-sizes is empty"),
        ({"lr": (0.1, 0.1)}, "--lr 0.1 0.1 names a value twice"),
        ({"lr": (0.1, -1.0)}, "--lr is -1.0; it must be a number above 0"),
        ({"workers": (0,)}, "--workers has 0"),
        ({"epochs": 1}, "--epochs is 1; it must be at least 2"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """Axes that can't be meant are refused with the value."""
    with pytest.raises(ConfigError) as error:
        StudyConfig(**options)
    assert message in str(error.value)


def test_a_batch_size_that_cannot_be_is_refused_before_the_first_training(tmp_path):
    """The sizes of all trainings are checked before one is made or a file is written."""
    options = StudyConfig(batch_sizes=(20, 0), lr=(0.1,), out=str(tmp_path / "study"))
    with pytest.raises(ConfigError, match="batch_size=0 "):
        training.run(options)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    """A folder that is not a study's is refused."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that is no study"):
        StudyFolder(str(tmp_path)).begin(setting(StudyConfig()))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
