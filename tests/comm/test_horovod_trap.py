"""Documents another library's behaviour: why `hvd.DistributedOptimizer` is not used here.

It is about Horovod 0.28.1, its last release, with Keras 3. If a test here fails because a version
is another one, look whether Horovod's optimizer averages gradients with it. If it does, this file
has done its work: delete it with its program, and change what the README and docs/coming_from.md
say of Horovod's Keras API. If it still doesn't, put in the new version.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from jobs import run_job

pytestmark = pytest.mark.jobs

PROGRAM = str(Path(__file__).parents[1] / "programs" / "horovod_trap.py")


def test_it_is_about_these_versions() -> None:
    """What is documented here was seen with Horovod 0.28.1 and Keras 3."""
    assert metadata.version("horovod") == "0.28.1"
    assert metadata.version("keras").startswith("3.")


def test_horovods_optimizer_trains_a_model_on_each_rank_and_says_nothing(tmp_path: Path) -> None:
    """From equal weights, Horovod's optimizer ends with two models, silently; `fit` with one."""
    job = run_job(2, [PROGRAM, str(tmp_path)])
    assert job.returncode == 0, job.stderr
    assert "horovod" not in (job.stdout + job.stderr).lower(), job.stdout + job.stderr
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for api in ("horovod.keras", "horovod.tensorflow.keras"):
        assert one[api][0] == other[api][0]
        assert one[api][1] != other[api][1], f"{api}.DistributedOptimizer averages with Keras 3"
    assert one["ddp_gd"] == other["ddp_gd"]
    assert one["ddp_gd"][0] != one["ddp_gd"][1]
    # Its callback that broadcasts the first weights, and its tape, don't take Keras 3's variables.
    for error in one["errors"] + other["errors"]:
        assert "has no attribute 'ref'" in error
