import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from jobs import run_job
from run_command import run_command

import ddp_gd
from ddp_gd.batching.split import RandomSplit
from ddp_gd.data.normalizer import Normalizer

# Keras's own code, on saving, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MODELS = """
import keras

def plain(shape, outputs):
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(outputs)])

def without_input(shape, outputs):
    return keras.Sequential([keras.layers.Dense(outputs)])

def compiled(shape, outputs):
    model = plain(shape, outputs)
    rate = keras.optimizers.schedules.CosineDecay(0.1, 100)
    model.compile(keras.optimizers.SGD(rate), "mean_absolute_error")
    return model

def too_wide(shape, outputs):
    return plain(shape, outputs + 1)

def broken(shape, outputs):
    raise RuntimeError("oops")

class Own(keras.Model):
    def call(self, x):
        return x

def subclassed(shape, outputs):
    return Own()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder of the test's own, with a space in its name."""
    path = tmp_path / "my work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def command(folder, capsys):
    """Runs the command line in this process: the exit status, and what it printed."""

    def run(*arguments):
        status = run_command("train", *arguments)
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run


def job(workers, *arguments, cwd=None):
    """Run the command line as a job, in the folder `cwd`."""
    code = ["-m", "ddp_gd.train"]
    if cwd is not None:
        start = "import os, runpy; os.chdir(os.environ['CWD']); runpy.run_module('ddp_gd.train', "
        code = ["-c", start + "run_name='__main__')"]
    env = {"CWD": str(cwd)}
    return run_job(workers, [*code, *map(str, arguments)], env=env, timeout=300)


def history(path):
    """Column names and numbers of `history.csv`, shape (epochs, columns)."""
    with (path / "history.csv").open() as file:
        rows = list(csv.reader(file))
    return rows[0], np.array(rows[1:], float)


def write_csv(path, names, table):
    """Write a table with a header."""
    lines = [",".join(names), *(",".join(map(repr, row)) for row in np.asarray(table).tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# Any number of workers


@pytest.fixture(scope="module")
def four_workers(tmp_path_factory):
    """Results and output of the main job with four workers."""
    folder = tmp_path_factory.mktemp("four")
    done = job(4, "--epochs", 20, "--seed", 1, cwd=folder)
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "runs").iterdir()
    return SimpleNamespace(results=results, out=done.stdout)


@pytest.mark.jobs
def test_four_workers_have_the_losses_of_one(four_workers, command, folder):
    """The main job has the same losses in every epoch with one worker and with four."""
    assert command("--epochs", 20, "--seed", 1, "--out", "alone").status == 0
    names, alone = history(folder / "alone")
    assert names == ["epoch", "loss", "val_loss"]
    assert alone.shape == (20, 3)
    other_names, together = history(four_workers.results)
    assert other_names == names
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.jobs
def test_only_rank_0_speaks_and_ends_with_the_fingerprint(four_workers):
    """Every line is printed once, and the last is the fingerprint."""
    lines = [re.sub(r"\[\d+,\d+\]<\w+>:", "", line) for line in four_workers.out.splitlines()]
    lines = [line for line in lines if line.strip()]
    assert re.fullmatch(r"fingerprint: [0-9a-f]{64}", lines[-1])
    assert sum("fingerprint" in line for line in lines) == 1
    assert sum(line.startswith("Epoch 20/20") for line in lines) == 1
    assert any(re.match(r"workers +4 \(horovod\); seed 1", line) for line in lines)


@pytest.mark.jobs
def test_config_json_records_the_run(four_workers):
    """config.json holds the settings, versions, worker count and fingerprint."""
    record = json.loads((four_workers.results / "config.json").read_text())
    assert record["workers"] == 4
    assert record["backend"] == "horovod"
    assert record["seed"] == record["config"]["seed"] == 1
    assert record["config"]["batch_size"] == 32
    assert record["rows"] == {"training": 397, "validation": 45}
    assert record["versions"]["keras"] == keras.__version__
    assert record["fingerprint"] in four_workers.out


# Results


@pytest.mark.jobs
def test_results_hold_what_a_user_needs(four_workers):
    """The folder holds the history, times, settings, picture, page and model, and nothing else."""
    names = {path.name for path in four_workers.results.iterdir()}
    assert names == {
        *("history.csv", "times.csv", "config.json", "model.keras"),
        *("loss.png", "report.html"),
    }
    assert (four_workers.results / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.jobs
def test_saved_model_predicts_raw_rows(four_workers):
    """Plain Keras loads the model in safe mode, and its error on raw rows is the one reported."""
    model = keras.saving.load_model(four_workers.results / "model.keras", safe_mode=True)
    dataset = ddp_gd.load("diabetes")
    split = RandomSplit(442, 0.1, seed=1)
    held_back = split.validation_rows(np.arange(45))
    predicted = model.predict(dataset.features[held_back], verbose=0)
    error = np.mean((predicted - dataset.targets[held_back]) ** 2)
    final = json.loads((four_workers.results / "config.json").read_text())["final"]
    assert error == pytest.approx(final["validation"]["loss"], rel=1e-5)
    last_epoch = history(four_workers.results)[1][-1]
    variance = Normalizer.fit(dataset.targets[split.training_rows(np.arange(397))]).scale[0] ** 2
    assert error == pytest.approx(last_epoch[2] * variance, rel=1e-5)


def test_default_folder_is_new_each_time(command, folder):
    """Two runs in a row, in the same second or not, don't share a folder."""
    for _ in range(2):
        assert command("--epochs", 1).status == 0
    assert len(list((folder / "runs").iterdir())) == 2


def test_full_folder_is_left_alone(command, folder):
    """--out that holds something is refused and stays as it is."""
    (folder / "kept").mkdir()
    (folder / "kept" / "thesis.txt").write_text("mine")
    done = command("--out", "kept")
    assert done.status == 2
    assert "--out kept is not empty" in done.err
    assert [path.name for path in (folder / "kept").iterdir()] == ["thesis.txt"]


def test_resume_takes_the_folder_that_an_interrupted_run_left(command, folder):
    """Restarts get the same --out: unfinished results are in no one's way, others stay."""
    options = ["--checkpoint", "saved", "--resume", "--tensorboard", "--out", "out", "--seed", 1]
    (folder / "out" / "logs").mkdir(parents=True)
    assert command("--epochs", 1, *options).status == 0
    done = command("--epochs", 2, *options)
    assert (done.status, "--out out is not empty" in done.err) == (2, True)
    (folder / "out" / "report.html").unlink()  # the last one that is written
    assert command("--epochs", 2, *options).status == 0
    assert len((folder / "out" / "history.csv").read_text().splitlines()) == 3
    (folder / "out" / "report.html").unlink()
    (folder / "out" / "history.csv").unlink()
    (folder / "out" / "history.csv").symlink_to(folder / "elsewhere.csv")
    assert command("--epochs", 3, *options).status == 2
    assert not (folder / "elsewhere.csv").exists()


def test_losses_in_own_units_keep_their_digits(command, folder):
    """Targets with a large mean, or with squares beyond float32, have exact final losses."""
    table = np.random.default_rng(0).normal(size=(60, 3))
    scale = {"a": 100, "b": 1e30}
    write_csv(folder / "a.csv", ["a", "b", "y"], table * [1, 1, 100] + [0, 0, 1.6e9])
    write_csv(folder / "b.csv", ["a", "b", "y"], table * 1e30)
    for name in ("a", "b"):
        arguments = ["--target", "y", "--epochs", 2, "--seed", 1, "--out", name]
        done = command("--data", f"{name}.csv", *arguments)
        assert done.status == 0, done.err
        final = json.loads((folder / name / "config.json").read_text())["final"]
        rows = RandomSplit(60, 0.1, seed=1).training_rows(np.arange(54))
        variance = Normalizer.fit(table[rows, 2:] * scale[name]).scale[0] ** 2
        last_epoch = history(folder / name)[1][-1]
        assert final["validation"]["loss"] == pytest.approx(last_epoch[2] * variance, rel=1e-4)


# Sources and models


def test_odd_csv(command, folder):
    """Spaces, other alphabets and constant columns in a CSV are no problem."""
    table = np.random.default_rng(0).normal(size=(30, 4))
    table[:, 1] = 7
    write_csv(folder / "mes données.csv", ["größe", "constant", "日本", "the $ target"], table)
    done = command(
        *("--data", "mes données.csv", "--target", "the $ target"),
        *("--batch-size", "full", "--epochs", 1, "--validation-split", 0, "--out", "o u/t"),
    )
    assert done.status == 0, done.err
    assert "30 rows to train on, 0 to validate; 3 features -> the $ target" in done.out
    assert history(folder / "o u/t")[0] == ["epoch", "loss"]


@pytest.mark.parametrize(("rows", "split"), [(1, 0), (2, 0.1)])
def test_tiny_data(rows, split, command, folder):
    """One row can be trained on, two can be split."""
    write_csv(folder / "tiny.csv", ["a", "b"], [[1.0, 2.0], [3.0, 4.0]][:rows])
    arguments = ["--data", "tiny.csv", "--target", "b", "--batch-size", 1, "--epochs", 2]
    assert command(*arguments, "--validation-split", split).status == 0


def test_several_target_columns(command, folder):
    """An npz may have several targets in a row; the saved model gives all of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    np.savez(folder / "d.npz", x=x, y=x[:, :2] * [10, 1000])
    assert command("--data", "d.npz", "--epochs", 2, "--out", "out").status == 0
    assert keras.saving.load_model("out/model.keras").predict(x, verbose=0).shape == (40, 2)


def test_classification(command, folder):
    """Images in uint8 with class numbers train, report accuracy, and keep their classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=60)
    x = (rng.integers(0, 100, size=(60, 4, 4, 1)) + 70 * y[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "d.npz", x=x, y=y)
    done = command(
        *("--data", "d.npz", "--loss", "sparse_categorical_crossentropy", "--optimizer", "adam"),
        *("--lr", 0.01, "--epochs", 10, "--seed", 1, "--batch-size", 10, "--out", "out"),
    )
    assert done.status == 0, done.err
    names, _ = history(folder / "out")
    assert names == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    final = json.loads((folder / "out" / "config.json").read_text())["final"]
    predicted = keras.saving.load_model("out/model.keras").predict(x, verbose=0).argmax(axis=1)
    assert np.mean(predicted[:54] == y[:54]) == pytest.approx(final["training"]["accuracy"])


@pytest.mark.parametrize("function", ["plain", "without_input", "compiled"])
def test_own_model(function, command, folder):
    """A model from the user's file is trained; one that comes compiled keeps its own loss."""
    (folder / "m.py").write_text(MODELS)
    done = command("--model", f"m.py:{function}", "--epochs", 1, "--out", "out")
    assert done.status == 0, done.err
    expected = {"compiled": "mean_absolute_error, SGD learning rate CosineDecay"}
    assert expected.get(function, "mean_squared_error, SGD learning rate 0.01") in done.out
    assert keras.saving.load_model("out/model.keras").predict(np.ones((3, 10)), verbose=0).size == 3


def test_optimizer_options_reach_the_update(command, folder):
    """Momentum, nesterov and decay give the weights that the formulas give."""
    x = np.random.default_rng(0).normal(size=(8, 2))
    y = x @ [[1.0], [2.0]] + 3
    np.savez(folder / "d.npz", x=x, y=y)
    done = command(
        *("--data", "d.npz", "--model", "linear", "--no-normalize", "--validation-split", 0),
        *("--batch-size", "full", "--epochs", 5, "--seed", 1, "--lr", 0.1, "--decay", 0.5),
        *("--momentum", 0.9, "--nesterov", "--out", "out"),
    )
    assert done.status == 0, done.err
    assert "0.1 / (1 + 0.5 k), momentum 0.9, nesterov" in done.out
    keras.utils.set_random_seed(1)
    start = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).get_weights()[0]
    rows = np.hstack([x, np.ones((8, 1))])
    w, velocity, losses = np.vstack([start, [[0.0]]]).astype(float), 0.0, []
    for k in range(5):
        losses.append(np.mean((rows @ w - y) ** 2))
        rate, gradient = 0.1 / (1 + 0.5 * k), 2 * rows.T @ (rows @ w - y) / 8
        velocity = 0.9 * velocity - rate * gradient
        w = w + 0.9 * velocity - rate * gradient
    np.testing.assert_allclose(history(folder / "out")[1][:, 1], losses, rtol=1e-5)


# Help and wrong input


def test_help_is_quick_and_complete():
    """--help answers without TensorFlow, with every option."""
    command = [sys.executable, "-X", "importtime", "-m", "ddp_gd.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tyro" in loaded
    assert loaded.isdisjoint({"tensorflow", "keras", "mpi4py", "pyarrow"})
    shown = done.stdout
    assert shown.count("(default:") == len(re.findall(r"│ --[a-z]", shown)) > 15


BAD_FILES = {
    "empty.csv": "",
    "header.csv": "a,b\n",
    "text.csv": "a,b\n1,2\n3,four\n",
    "gap.csv": "a,b\n1,2\n,4\n5,6\n",
    "good.csv": "a,b\n" + "1,2\n3,4\n" * 10,
    "classes.csv": "a,b\n" + "1,0.5\n3,1\n" * 30,
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data absent.csv --target b", "absent.csv does not exist"),
        ("--data nothing", "Unknown data 'nothing'"),
        ("--data empty.csv --target b", "empty.csv is empty"),
        ("--data header.csv --target b", "header.csv has a header but no rows"),
        ("--data text.csv --target b", "column 'b', data row 2 (line 3), is 'four'"),
        ("--data gap.csv --target b", "column 'a', data row 2 (line 3), is empty"),
        ("--data good.csv --target c", "good.csv has no column 'c'; its columns are 'a', 'b'"),
        ("--data good.csv", "Name the target column of good.csv"),
        ("--data lengths.npz", "lengths.npz: x has 5 rows, but y has 4"),
        ("--data sequences.npz", "the targets in sequences.npz have shape (50, 7, 1)"),
        ("--batch-size 0", "--batch-size 0 must be a whole number, 1 or more."),
        ("--batch-size -3", "--batch-size -3 must be a whole number, 1 or more."),
        ("--micro-batch-size -1", "--micro-batch-size -1 must be a whole number, 1 or more."),
        ("--validation-split 1", "--validation-split 1.0 must be a number from 0 to below 1"),
        ("--validation-split nan", "must be a number from 0 to below 1"),
        ("--validation-split 0.9999", "leaves no training row"),
        ("--validation-split 1e-17", "leaves no validation row"),
        ("--loss sqared", "--loss 'sqared' is not a Keras loss; known are binary_crossentropy"),
        ("--model mpl", "unknown model 'mpl': give linear, mlp"),
        ("--model m.py:absent", "'absent' is no such function in m.py"),
        ("--model no.py:plain", "there is no file 'no.py'"),
        ("--model m.py:broken", "raised RuntimeError: oops"),
        ("--model m.py:too_wide", "the data has 1 columns of targets but the model has 2"),
        ("--model m.py:subclassed", "does not declare its inputs"),
        ("--lr 1e30", "The loss or its gradient is NaN or infinite in epoch 1, step"),
        (
            "--data onehot.npz --loss sparse_categorical_crossentropy",
            "one class number for each row",
        ),
        (
            "--data classes.csv --target b --loss sparse_categorical_crossentropy",
            "needs class numbers 0, 1, 2, ... as targets, but classes.csv holds 0.5",
        ),
    ],
)
def test_bad_input_gives_one_message(arguments, message, command, folder):
    """Input that can't be used gives one message in the user's words, and nothing is written."""
    for name, text in BAD_FILES.items():
        (folder / name).write_text(text)
    (folder / "m.py").write_text(MODELS)
    np.savez(folder / "lengths.npz", x=np.ones((5, 2)), y=np.ones(4))
    np.savez(folder / "sequences.npz", x=np.ones((50, 7, 2)), y=np.ones((50, 7, 1)))
    np.savez(folder / "onehot.npz", x=np.ones((50, 2)), y=np.ones((50, 3)))
    before = sorted(folder.rglob("*"))
    done = command(*arguments.split())
    assert done.status == 2
    assert done.err.count(message) == 1, done.err
    assert "Traceback" not in done.err
    written = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert sorted(written) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch-size many", "'many'"),
        ("--epochs 0", "--epochs is 0; it must be at least 1."),
        ("--optimizer sdg", "'sgd', 'adam', 'rmsprop'"),
        ("--batchsize 3", "Unrecognized options: --batchsize"),
    ],
)
def test_wrong_command_lines_are_refused(arguments, message, command, folder):
    """A command line that can't be meant is refused before anything is read."""
    done = command(*arguments.split())
    assert done.status == 2
    assert message in " ".join(done.err.replace("│", " ").split())
    assert not list(folder.iterdir())


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 0", "--epochs is 0; it must be at least 1."),
        ("--data text.csv --target b", "column 'b', data row 2 (line 3), is 'four'"),
        ("--lr 1e30", "The loss or its gradient is NaN or infinite in epoch 1, step"),
    ],
)
def test_two_workers_say_it_once(arguments, message, folder):
    """Of several workers one says what is wrong, and the job fails without leaving anything."""
    (folder / "text.csv").write_text(BAD_FILES["text.csv"])
    done = job(2, *arguments.split(), cwd=folder)
    assert done.returncode != 0
    said = (done.stdout + done.stderr).replace("│", " ")
    assert said.count(message) == 1, said
    assert "Traceback" not in said
    assert [path.name for path in folder.iterdir()] == ["text.csv"]


@pytest.mark.jobs
@pytest.mark.timed
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt_ends_quickly_and_quietly(workers, folder):
    """Ctrl-C lets all workers save within seconds; what is said is where, and how to go on."""
    arguments = ["--epochs", "100000", "--batch-size", "1", "--checkpoint", "saved"]
    arguments += ["-np", "2"] if workers == 2 else []
    with subprocess.Popen(
        [sys.executable, "-m", "ddp_gd", "train", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "Epoch 2/" in line:
                    break
            began = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            rest, _ = process.communicate(timeout=20)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    (said,) = [line for line in rest.splitlines() if not line.startswith("Epoch ")]
    assert said.startswith("ddp_gd: stopped ")
    assert said.endswith(f"Go on: ddp-gd train {' '.join(arguments)} --resume")
    assert [path.name for path in folder.iterdir()] == ["saved"]
