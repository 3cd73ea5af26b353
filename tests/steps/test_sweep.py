"""Everything Keras has, on several workers: every layer, loss, metric and optimizer."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import keras
import pytest
from keras import layers, losses, metrics, optimizers
from programs import sweep


def test_nothing_of_keras_is_left_out() -> None:
    """Each class of Keras's is in the sweep, or in a list that says why not."""
    assert sweep.classes(layers, keras.Layer) == set(sweep.LAYERS) | set(sweep.NOT_SWEPT)
    swept = {name for group, name, _ in sweep.all_cases(alone=True) if group != "layers"}
    assert sweep.classes(losses, keras.Loss) - swept == {"Loss"}
    assert sweep.classes(metrics, keras.Metric) - swept == set(sweep.METRICS_NOT_SWEPT)
    skipped = set(sweep.OPTIMIZERS_NOT_SWEPT)
    assert sweep.classes(optimizers, optimizers.Optimizer) - swept == skipped


@pytest.mark.jobs
def test_it_equals_keras_or_is_refused(tmp_path: Path) -> None:
    """To rounding, after two epochs of ragged mini-batches: some; all are in test_everything.py."""
    program = ["-m", "programs.sweep", "auto", str(tmp_path / "swept.json"), "0:14"]
    job = jobs.run_job(2, program, "mpirun", timeout=580)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "models at 2 workers" in job.stdout


@pytest.mark.jobs
def test_networks_equal_keras(tmp_path: Path) -> None:
    """Batch statistics, noise, attention and recurrent cells with dropout, added losses."""
    names = ["convolutional", "sequences"]
    program = ["-m", "programs.real_networks", "mpi", str(tmp_path / "networks.json"), *names]
    job = jobs.run_job(3, program, "mpirun", timeout=400)
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("equal") == 2


@pytest.mark.jobs
def test_networks_are_the_same_bits(tmp_path: Path) -> None:
    """In bitwise mode one process and two workers leave the same; all are in test_everything.py."""
    left = []
    for np, backend, launcher in ((1, "single", "python"), (2, "mpi", "mpirun")):
        out = tmp_path / f"{np}.json"
        names = ["augmented", "spectral"]
        program = ["-m", "programs.real_networks", f"{backend},bitwise", str(out), *names]
        job = jobs.run_job(np, program, launcher, timeout=400)
        assert job.returncode == 0, job.stdout + job.stderr
        left.append(json.loads(out.read_text()))
    assert left[0] == left[1]
    assert len(left[0]) == 2
