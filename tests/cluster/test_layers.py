"""Every layer of Keras on two workers; beside the cluster's tests, since it takes minutes."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest

pytestmark = pytest.mark.cluster


def test_every_layer_equals_keras_or_is_refused(tmp_path: Path) -> None:
    """To rounding, after two epochs of ragged mini-batches, in models of sixteen branches."""
    out = str(tmp_path / "swept.json")
    program = ["-m", "programs.sweep", "auto", out, "layers"]
    job = jobs.run_job(2, program, "mpirun", timeout=900)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "models at 2 workers" in job.stdout
