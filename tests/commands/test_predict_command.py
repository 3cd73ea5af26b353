"""`python -m ddp_gd.predict`: the rows of a file, in order, through a model that was saved."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from jobs import run_job
from run_command import run_command

from ddp_gd.batching.split import RandomSplit

# Keras's own code, on saving, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


ROWS = 600


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a table of every kind of column, and models that were trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    r = np.random.default_rng(0)
    town = r.choice(["Bern", "Köln", "New York"], ROWS)
    member = r.choice(["true", "false"], ROWS)
    age = r.normal(size=ROWS) + 1e8
    price = (age - 1e8) * 2 + (town == "Bern") * 3 + r.normal(size=ROWS) / 10
    label = np.where(price > 1, "dear", "cheap")
    lines = ["age,town,member,price,label"]
    lines += [
        f"{a!r},{t},{m},{p!r},{k}"
        for a, t, m, p, k in zip(age.tolist(), town, member, price.tolist(), label, strict=True)
    ]
    (folder / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--data", folder / "t.csv", "--features", "age", "town", "member", "--seed", 1]
    options += ["--epochs", 4, "--verbose", 0]
    for target in ("price", "label"):
        assert run_command("train", *options, "--target", target, "--out", folder / target) == 0
    numbers = ["--data", folder / "t.csv", "--features", "age", "--target", "price", "--seed", 1]
    done = run_command(
        "train", *numbers, "--epochs", 1, "--verbose", 0, "--out", folder / "numbers"
    )
    assert done == 0
    return folder


def test_predictions_are_what_evaluate_saw(trained, tmp_path):
    """The error of the predictions on the validation rows is the one that the training reported."""
    out = tmp_path / "p.csv"
    model = trained / "price" / "model.keras"
    done = run_command("predict", "--model", model, "--data", trained / "t.csv", "--out", out)
    assert done == 0
    found = np.array([[float(row["price"])] for row in read(out)])
    truth = np.array([[float(row["price"])] for row in read(trained / "t.csv")])
    split = RandomSplit(ROWS, 0.1, seed=1)
    rows = split.validation_rows(np.arange(split.validation))
    final = json.loads((trained / "price" / "config.json").read_text())["final"]
    error = np.mean((found - truth)[rows] ** 2)
    assert error == pytest.approx(final["validation"]["loss"], rel=1e-6)
    assert error < np.var(truth) / 4  # it has learned something, so the order of rows is right


def test_plain_keras_predicts_the_same(trained, tmp_path):
    """The saved model, in plain Keras and safe mode, given columns by name, predicts the same."""
    out = tmp_path / "p.csv"
    path = trained / "price" / "model.keras"
    assert run_command("predict", "--model", path, "--data", trained / "t.csv", "--out", out) == 0
    rows = read(trained / "t.csv")
    columns = {
        "age": tf.constant([[float(row["age"])] for row in rows], tf.float64),
        "town": tf.constant([[row["town"]] for row in rows]),
        "member": tf.constant([[row["member"]] for row in rows]),
    }
    model = keras.saving.load_model(path, safe_mode=True)
    found = np.array([[float(row["price"])] for row in read(out)])
    np.testing.assert_allclose(found, model(columns), rtol=1e-5, atol=1e-5)


def test_classes_come_with_their_probability(trained, tmp_path):
    """The most probable class by its own name, and its probability, a softmax of the logits."""
    out, logits = tmp_path / "p.csv", tmp_path / "p.npy"
    for name in (out, logits):
        model = trained / "label" / "model.keras"
        done = run_command("predict", "--model", model, "--data", trained / "t.csv", "--out", name)
        assert done == 0
    values = np.load(logits)
    assert values.shape == (ROWS, 2)
    chances = np.asarray(keras.ops.softmax(values))
    names = json.loads(zipfile.ZipFile(model).read("ddp_gd.json"))["class_names"]
    for row, chance in zip(read(out), chances, strict=True):
        assert row["label"] == names[chance.argmax()]
        assert float(row["probability"]) == pytest.approx(chance.max(), rel=1e-5)
    truth = [row["label"] for row in read(trained / "t.csv")]
    assert np.mean([row["label"] == t for row, t in zip(read(out), truth, strict=True)]) > 0.8


@pytest.mark.jobs
def test_any_number_of_workers_writes_the_same_file(trained, tmp_path):
    """Bit for bit, at 1 and 3 workers, and with a batch size that divides nothing."""
    contents = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.csv"
        argv = ["-m", "ddp_gd.predict", "--model", str(trained / "price" / "model.keras")]
        argv += ["--data", str(trained / "t.csv"), "--out", str(out), "--batch-size", "7"]
        launcher = "mpirun" if workers > 1 else "python"
        done = run_job(workers, [*argv, "--bitwise"], launcher)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("600 predictions") == 1
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_other_sources_and_columns(trained, tmp_path):
    """Columns in another order, more of them, unknown texts, and arrays for a model of numbers."""
    path = tmp_path / "new.csv"
    path.write_text("id,member,town,age\n7,true,Genf,1e8\n8,TRUE,Bern,100000001\n")
    out = tmp_path / "p.csv"
    model = trained / "price" / "model.keras"
    assert run_command("predict", "--model", model, "--data", path, "--out", out) == 0
    assert len(read(out)) == 2
    x = np.array([[1e8], [1e8 + 1]])
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    found = []
    for number, name in enumerate(("x.npy", "x.npz")):
        out = tmp_path / f"{number}.csv"
        model = trained / "numbers" / "model.keras"
        assert (
            run_command("predict", "--model", model, "--data", tmp_path / name, "--out", out) == 0
        )
        found.append([float(row["price"]) for row in read(out)])
    assert found[0] == found[1]
    loaded = keras.saving.load_model(model)
    np.testing.assert_allclose(found[0], loaded(x)[:, 0], rtol=1e-6)


def test_unknown_texts_are_counted(trained, tmp_path, capsys):
    """Texts that the training did not see are said, with how many they are."""
    path = tmp_path / "new.csv"
    path.write_text("member,town,age\ntrue,Genf,1e8\ntrue,Bern,1e8\ntrue,Genf,1e8\n")
    arguments = ["--model", trained / "price" / "model.keras", "--data", path]
    assert run_command("predict", *arguments, "--out", tmp_path / "p.csv") == 0
    said = "column 'town': 2 of 3 cells hold texts that the training did not see, such as 'Genf'"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "target", "outputs"),
    [("binary_crossentropy", "y", 1), ("sparse_categorical_crossentropy", "y", 4)],
)
def test_own_models_of_classes_give_probabilities(tmp_path, monkeypatch, loss, target, outputs):
    """Logits or not is what the model's own loss says; classes may have gaps."""
    monkeypatch.chdir(tmp_path)
    r = np.random.default_rng(0)
    x = r.normal(size=(100, 2))
    y = (x[:, 0] > 0) * (1 if outputs == 1 else 3)
    lines = [f"{a!r},{b!r},{c}" for (a, b), c in zip(x.tolist(), y, strict=True)]
    Path("t.csv").write_text("\n".join(["a,b,y", *lines, ""]))
    Path("own.py").write_text(
        "import keras\n"
        "def model(shape, outputs):\n"
        f"    m = keras.Sequential([keras.Input(shape), keras.layers.Dense({outputs})])\n"
        f"    loss = keras.losses.get({loss!r})\n"
        "    classes = {'binary_crossentropy': keras.losses.BinaryCrossentropy,\n"
        "        'sparse_categorical_crossentropy': keras.losses.SparseCategoricalCrossentropy}\n"
        f"    m.compile(keras.optimizers.Adam(0.1), classes[{loss!r}](from_logits=True))\n"
        "    return m\n"
    )
    arguments = ["--data", "t.csv", "--target", "y", "--loss", loss, "--seed", 1, "--epochs", 20]
    options = ["--model", "own.py:model", "--verbose", 0, "--out", "out"]
    assert run_command("train", *arguments, *options) == 0
    arguments = ["--model", "out/model.keras", "--data", "t.csv", "--out", "p.csv"]
    assert run_command("predict", *arguments) == 0
    rows = read(Path("p.csv"))
    assert all(0.4 <= float(row["probability"]) <= 1 for row in rows)
    right = [row[target] == str(c) for row, c in zip(rows, y, strict=True)]
    assert np.mean(right) > 0.9


def test_columns_may_have_any_name(tmp_path):
    """Names of layers, and of the model, are no reason for a traceback."""
    path = tmp_path / "t.csv"
    names = ["normalize", "ddp_gd features", "to_target_units", "string_lookup", "in dex", "y"]
    rows = [f"{i},x{i % 2},{i},z{i % 3},{i},{i}" for i in range(40)]
    path.write_text("\n".join([",".join(names), *rows, ""]))
    options = ["--data", path, "--target", "y", "--epochs", 1, "--verbose", 0]
    assert run_command("train", *options, "--out", tmp_path / "out") == 0
    arguments = ["--model", tmp_path / "out" / "model.keras", "--data", path]
    assert run_command("predict", *arguments, "--out", tmp_path / "p.csv") == 0
    path.write_text(path.read_text().replace("in dex", "mlp"))
    assert run_command("train", *options, "--out", tmp_path / "out2") == 2


def test_other_models_are_taken(tmp_path):
    """A model that another program saved, of one input, predicts for arrays and tables."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "p.csv"
    arguments = ["--model", tmp_path / "m.keras", "--data", tmp_path / "x.npy"]
    assert run_command("predict", *arguments, "--out", out) == 0
    found = [[float(v) for v in row.values()] for row in read(out)]
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_used_is_explained(trained, tmp_path, capsys):
    """One message, exit status 2, and no file."""
    model = trained / "price" / "model.keras"
    numbers = trained / "numbers" / "model.keras"
    broken = tmp_path / "broken.keras"
    broken.write_bytes(model.read_bytes()[:1000])
    unsafe = tmp_path / "unsafe.keras"
    inputs = keras.Input((1,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(unsafe)
    few = tmp_path / "few.csv"
    few.write_text("town,age\nBern,1\n")
    holes = tmp_path / "holes.csv"
    holes.write_text("town,age,member\nBern,,true\n")
    np.save(tmp_path / "wide.npy", np.ones((3, 4)))
    (tmp_path / "there.csv").write_text("mine")
    table = trained / "t.csv"
    cases = [
        ((model, few, "p.csv"), "no column 'member'"),
        (
            (model, holes, "p.csv"),
            "data row 1 (line 2), is empty. Fill in: the model",
        ),
        ((numbers, tmp_path / "wide.npy", "p.csv"), "takes rows of shape (1,), the data have"),
        ((broken, table, "p.csv"), "is not a whole .keras file"),
        ((unsafe, table, "p.csv"), "can't be loaded"),
        ((tmp_path / "no.keras", table, "p.csv"), "no.keras"),
        ((model, table, "there.csv"), "exists already"),
        ((model, table, "nowhere/p.csv"), "there is no folder"),
        ((model, table, "p.txt"), "must end in .csv or .npy"),
    ]
    for (path, source, out), message in cases:
        arguments = ["--model", path, "--data", source, "--out", tmp_path / out]
        assert run_command("predict", *arguments) == 2
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in said, said
    arguments = ["--model", model, "--data", table, "--out", tmp_path / "p.csv", "--batch-size", 0]
    assert run_command("predict", *arguments) == 2
    assert "--batch-size 0 must be a whole number" in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not list(tmp_path.glob("**/p.*"))
