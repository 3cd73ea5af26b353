"""`python -m ddp_gd.contrast` and what it is made of."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
from jobs import run_job
from run_command import run_command

from ddp_gd.batching.order import Order
from ddp_gd.commands.config import ContrastConfig
from ddp_gd.commands.contrast import main, noise, schemes
from ddp_gd.commands.contrast.schemes import Examples, Setup, Weights
from ddp_gd.errors import ConfigError
from ddp_gd.job import runtime


def some_setup(rows=37, batch_size=8, workers=3, epochs=2):
    """A small training on random rows."""
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(rows, 3)), draw.normal(size=(rows, 1))
    rows = Examples(x.astype(np.float32), y.astype(np.float32))
    return Setup(rows, batch_size, epochs, lr=0.1, workers=workers, hidden=(4,))


def by_keras(setup, seed, worker, workers):
    """The weights of a `keras.Model` after `train_on_batch` on a worker's shares."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.1), "mean_squared_error")
    plan = setup.plan(seed)
    for epoch, step in itertools.product(range(setup.epochs), range(plan.steps)):
        share = plan.share(step, worker, workers)
        positions = np.arange(share.start, share.stop) + step * plan.batch_size
        if len(positions):
            rows = Order(plan, epoch).rows(positions)
            model.train_on_batch(setup.training.x[rows], setup.training.y[rows])
    return np.concatenate([w.ravel() for w in model.get_weights()])


def same(one, other):
    """Equal to float32 rounding."""
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def trained():
    """Every scheme on a few rows, where the last mini-batch leaves some workers without a row."""
    setup = some_setup(rows=33)
    communicator = runtime.communicator()
    weights = Weights(setup.model(0))
    return setup, weights, schemes.train_all(setup, 1, weights, communicator, every=4)


def test_an_independent_worker_is_plain_keras_on_its_shares(trained):
    """Each of (b)'s workers ends with the weights of `keras.Model.train_on_batch` on its shares."""
    setup, _, by_name = trained
    for worker in range(3):
        expected = by_keras(setup, 1, worker, workers=3)
        same(by_name["independent"].weights[worker, -1], expected)


def test_the_averaged_training_is_plain_keras_on_whole_mini_batches(trained):
    """(a), and what it is compared with, end as `train_on_batch` on every global mini-batch."""
    setup, weights, by_name = trained
    expected = by_keras(setup, 1, worker=0, workers=1)
    same(by_name["averaged"].weights[0, -1], expected)
    same(schemes.keras_in_one_process(setup, weights, seed=1).weights[0, -1], expected)


def test_single_samples_and_the_full_batch_are_plain_keras(trained):
    """(d) and (e) end as `train_on_batch` on single rows, and on all of them."""
    setup, _, by_name = trained
    for name, batch_size in (("single_sample", 1), ("full_batch", 33)):
        alone = dataclasses.replace(setup, batch_size=batch_size)
        same(by_name[name].weights[0, -1], by_keras(alone, 1, worker=0, workers=1))


def test_averaging_at_the_end_is_the_mean_of_the_independent_workers(trained):
    """(c) with one averaging, after the last step, has the mean of the weights of (b)."""
    setup, weights, by_name = trained
    mean = by_name["independent"].weights[:, -1].mean(axis=0)
    same(by_name["averaged_at_end"].weights[:, -1], np.tile(mean, (3, 1)))
    local = schemes.independently(setup, 1, weights, range(3), every=setup.steps)
    same(local[:, -1], np.tile(mean, (3, 1)))


def test_averaging_weights_after_each_step_is_averaging_gradients():
    """With even shares (c) with `every=1` is (a), at every step; with `every=2` it is not."""
    setup = some_setup(rows=32, workers=4)
    weights = Weights(setup.model(0))
    averaged = schemes.with_fit(setup, 0, setup.batch_size)
    every_step = schemes.independently(setup, 0, weights, range(4), every=1)
    assert averaged.shape == (9, 21)
    same(every_step, np.tile(averaged, (4, 1, 1)))
    every_other = schemes.independently(setup, 0, weights, range(4), every=2)
    assert np.abs(every_other[0, -1] - averaged[-1]).max() > 1e-4


def test_weights_are_kept_after_every_step_and_in_long_trainings_after_some():
    """The points of a training are its steps, or some of them, and the ends of its epochs."""
    assert some_setup().points.tolist() == list(range(11))
    points = some_setup(epochs=1001).points  # 5 steps each
    assert len(points) < 2000
    assert {0, 5, 10, 5005} <= set(points.tolist())


def test_row_gradients_average_to_the_step_that_keras_makes():
    """The mean of the rows' gradients is what one update of `train_on_batch` subtracts."""
    setup = some_setup()
    weights = Weights(setup.model(3))
    before = weights.get()
    rows = noise.of_each_row(weights.model, *setup.training)[5:14]
    weights.model.train_on_batch(setup.training.x[5:14], setup.training.y[5:14])
    np.testing.assert_allclose(rows.mean(axis=0), (before - weights.get()) / 0.1, atol=2e-6)


def test_the_exact_noise_is_that_of_all_mini_batches():
    """The formula is the RMS distance over every mini-batch there is; random ones come near."""
    gradients = np.random.default_rng(2).normal(size=(7, 5)) + 1
    full = gradients.mean(axis=0)
    for size in (1, 2, 3, 6, 7):
        chosen = itertools.combinations(range(7), size)
        squares = [np.sum((gradients[list(rows)].mean(axis=0) - full) ** 2) for rows in chosen]
        rms = np.sqrt(np.mean(squares)) / np.linalg.norm(full)
        exact = noise.expected(gradients, size)
        assert exact == pytest.approx(rms, abs=1e-12)
        measured = noise.measured(gradients, size, draws=4000)
        assert measured == pytest.approx(exact, rel=0.05, abs=1e-12)
    assert noise.sizes(7) == [1, 2, 4, 7]
    assert noise.sizes(8) == [1, 2, 4, 8]


def numbers(record):
    """All numbers of a record, by where they stand."""
    if isinstance(record, dict):
        return {f"{k}/{n}": v for k, part in record.items() for n, v in numbers(part).items()}
    if isinstance(record, list):
        return numbers(dict(enumerate(record)))
    return {"": record} if isinstance(record, float) else {}


@pytest.mark.jobs
def test_a_job_and_one_process_that_simulates_it_find_the_same(tmp_path, capsys):
    """Two workers and one process with `--workers 2` write the same numbers, to rounding."""
    # The last mini-batch of 33 has one row: the second worker has no part of it.
    options = ["--epochs", "1", "--seeds", "1", "--batch-size", "33", "--every", "3"]
    job = run_job(2, ["-m", "ddp_gd.contrast", *options, "--out", str(tmp_path / "job")])
    assert job.returncode == 0, job.stderr
    main.run(
        ContrastConfig(
            out=str(tmp_path / "one"), workers=2, epochs=1, seeds=1, batch_size=33, every=3
        )
    )
    records = [json.loads((tmp_path / d / "contrast.json").read_text()) for d in ("job", "one")]
    of_job, of_one = records
    assert (of_job["simulated"], of_one["simulated"]) == (False, True)
    # What a process that is alone can't tell: the workers of (a) have the same weights all along.
    averaged = of_job["schemes"]["averaged"]
    assert averaged.pop("workers_apart_at_most")["values"] == [[0.0]]
    assert averaged["first_seed"].pop("workers_apart") == [0.0] * 14
    for part in ("training_loss", "validation_loss"):
        first, second = averaged["first_seed"][part]
        assert first == second
        averaged["first_seed"][part] = [first]
    found, expected = numbers(of_job), numbers(of_one)
    assert found.keys() == expected.keys()
    assert len(found) > 150
    for where, value in expected.items():
        assert found[where] == pytest.approx(value, rel=1e-4, abs=1e-6), where
    assert of_job["schemes"]["independent"]["updates"] == [13, 12]
    assert max(of_job["keras_in_one_process"]["distance_to_a"]) < 1e-5
    said = [job.stdout, capsys.readouterr().out]
    assert "workers  2 (horovod; each makes its own updates of (b) and (c))" in said[0]
    assert "workers  2 (simulated one after the other in this process" in said[1]
    for text in said:
        assert "(b) independent: 2 models" in text
        assert "2 x 12 to 13" in text
    for folder in ("job", "one"):
        assert (tmp_path / folder / "contrast.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_diverges_is_a_result(tmp_path, capsys):
    """A learning rate that is too large is told in the table, and makes a record and a picture."""
    out = tmp_path / "out"
    main.run(ContrastConfig(out=str(out), lr=1e4, epochs=1, seeds=1, batch_size=200))
    record = json.loads((out / "contrast.json").read_text())
    assert record["schemes"]["single_sample"]["training_loss"]["values"] == [[None]]
    assert "1 of 1 diverged" in capsys.readouterr().out
    assert (out / "contrast.png").exists()


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("workers", 1, "--workers is 1"),
        ("epochs", 0, "--epochs is 0"),
        ("seeds", 0, "--seeds is 0"),
        ("every", -1, "--every is -1"),
        ("lr", 0.0, "--lr is 0.0"),
        ("lr", float("inf"), "--lr is inf"),
    ],
)
def test_values_that_cannot_be_used_are_refused(field, value, option):
    """A bad value is refused at construction, with the option's name and the value."""
    with pytest.raises(ConfigError) as error:
        ContrastConfig(**{field: value})
    assert str(error.value).startswith(option)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "--batch-size is 0; it must be at least 4, a row for each worker"),
        (3, "--batch-size is 3; it must be at least 4, a row for each worker"),
        (398, "--batch-size 398 is larger than the 397 rows of the training data"),
    ],
)
def test_a_batch_size_that_does_not_fit_is_refused(batch_size, message, tmp_path, capsys):
    """Each worker gets a row of a mini-batch, which has at most all rows; else nothing is made."""
    out = tmp_path / "out"
    assert run_command("contrast", "--out", out, "--batch-size", batch_size) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.jobs
def test_a_job_has_its_own_number_of_workers(tmp_path):
    """`--workers` is refused in a job of another size."""
    out = tmp_path / "out"
    job = run_job(2, ["-m", "ddp_gd.contrast", "--workers", "3", "--out", str(out)])
    assert job.returncode != 0
    assert job.stderr.count("--workers is 3, but this job has 2") == 1
    assert not out.exists()
