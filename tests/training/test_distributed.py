"""Real jobs of several workers, started as users start them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import jobs
import pytest
from programs.behaviour import SCENARIOS

pytestmark = pytest.mark.jobs

# What the pieces of a step can get wrong in a job; `test_step.py` has every case in one process.
CASES = [
    "loss_mean_with_sample_weight_weighted",
    "weighted_metrics",
    "masked_steps_mean_with_sample_weight",
    "whole_shares_masked",
    "ignored_class",
    "embedding_mask_zero",
    "setting_global_clipnorm",
    "tied_embedding",
    "one_output_masked",
    "layer_add_loss",
    "no_targets",
    "variable_without_gradient",
    "setting_accumulation",
    "setting_ema",
]
TRAININGS = [
    f"training_{model}_{optimizer}"
    for model in ("mlp_l2", "lstm_masked", "embedding", "two_outputs")
    for optimizer in ("sgd", "adam", "rmsprop")
]
# At more workers, those in which empty or uneven shares weigh most.
FEW = [
    *("loss_mean_with_sample_weight_weighted", "whole_shares_masked", "tied_embedding"),
    *("layer_add_loss", "one_output_masked", "setting_accumulation"),
]
# All of them: python -m programs.streams.
STREAMS = [
    "pipeline",
    "ends_in_mid_epoch",
    "padded_pipeline",
    "items_in_steps",
    "texts",
    "unseeded",
]


def _run(np: int, launcher: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return jobs.run_job(np, ["-m", *argv], launcher, timeout=550)


@pytest.mark.parametrize(
    ("np", "launcher", "backend", "cases"),
    [
        (2, "mpirun", "auto", [*CASES[::4], TRAININGS[1]]),
        (3, "mpirun", "auto", [FEW[1], TRAININGS[7]]),
        (2, "mpirun", "mpi", [FEW[0], "training_lstm_masked_adam"]),
        # In pieces, on other threads and in another order, but the same update.
        (2, "mpirun", "auto,bitwise", [FEW[4], TRAININGS[8]]),
    ],
)
def test_a_job_trains_as_keras_does(np: int, launcher: str, backend: str, cases: list[str]) -> None:
    """Gradient, weights, optimizer and History of a job are Keras's own in one process."""
    job = _run(np, launcher, "programs.equal_to_keras", backend, *cases)
    assert job.returncode == 0, job.stderr
    assert f"compared {len(cases) + 1} cases at {np} workers" in job.stdout


@pytest.mark.parametrize(("np", "launcher", "backend"), [(2, "mpirun", "horovod")])
def test_a_job_behaves(np: int, launcher: str, backend: str, tmp_path: Path) -> None:
    """Callbacks, files, stops, refusals and repeats are those of one training, not of several."""
    job = _run(np, launcher, "programs.behaviour", backend, str(tmp_path))
    assert job.returncode == 0, job.stderr
    assert [name for name in SCENARIOS if f"passed: {name}" not in job.stdout] == []


def test_the_same_behaviour_on_mpi(tmp_path: Path) -> None:
    """The mpi backend refuses, stops and repeats as Horovod's does."""
    names = ["stopping", "signalled", "not_a_number", "parted"]
    job = _run(2, "mpirun", "programs.behaviour", "mpi", str(tmp_path), *names)
    assert job.returncode == 0, job.stderr
    assert [name for name in names if f"passed: {name}" not in job.stdout] == []


def test_a_mismatch_ends_the_job_once_and_soon() -> None:
    """A refusal that nobody catches is one line of one worker, and the job fails within seconds."""
    job = _run(3, "mpirun", "programs.refused")
    assert job.returncode != 0
    assert job.stderr.count("ddp_gd: error") == 1, job.stderr
    assert "rank 1" in job.stderr
    assert "rows: rank 0 has '13'" in job.stderr
    assert "Traceback" not in job.stderr
    assert "trained" not in job.stdout


def test_data_sets_and_predictions_in_a_job(tmp_path: Path) -> None:
    """Items train as in Keras, different ones are named, and predictions are the same bits at any
    number of workers; in bitwise mode so are trainings."""

    def left(np: int, launcher: str, backend: str) -> dict[str, str]:
        out = tmp_path / f"{np}-{backend}.json"
        job = _run(np, launcher, "programs.datasets", backend, str(out))
        assert job.returncode == 0, job.stderr
        return json.loads(out.read_text())

    alone = left(1, "python", "single,bitwise")
    assert left(2, "mpirun", "auto,bitwise") == alone


@pytest.mark.parametrize(
    ("np", "backend", "cases"),
    [(3, "auto", STREAMS), (2, "mpi", ["generator", "predicted"])],
)
def test_streams_train_as_in_keras(np: int, backend: str, cases: list[str]) -> None:
    """Whoever reads them, of whatever length and shape, weights and History are Keras's."""
    job = _run(np, "mpirun", "programs.streams", backend, *cases)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("done") == 1


def test_streams_that_go_wrong_are_errors_everywhere() -> None:
    """Each of them raises what is documented on every worker, and the next one trains."""
    job = _run(2, "mpirun", "programs.hostile_streams", "26")
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("done") == 1


def test_an_exception_of_the_reader_ends_all_workers() -> None:
    """Its traceback is shown once, and nobody waits for rank 0 any more."""
    began = time.monotonic()
    job = _run(3, "mpirun", "programs.hostile_streams", "raises")
    assert job.returncode != 0
    assert job.stderr.count("Broken: the disk is on fire") == 1
    assert 'raise Broken("the disk is on fire")' in job.stderr
    assert time.monotonic() - began < 60


@pytest.mark.timed
def test_items_that_take_long_are_made_by_all_workers() -> None:
    """Four workers make sleeping items at least three times as fast as one."""
    one, four = (
        float(_run(np, launcher, "programs.input_bound", "items").stdout)
        for np, launcher in ((1, "python"), (4, "mpirun"))
    )
    assert one > 3 * four
