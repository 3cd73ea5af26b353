"""What is told to be wrong before TensorFlow is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TABLE = "a,b,day,y\n" + "".join(f"{i},x,2024-{i},{i % 3}\n" for i in range(40))


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("train", "--data nowhere.csv --target y", "nowhere.csv does not exist"),
        ("train", "--data t.csv", "Name the target column of t.csv"),
        ("train", "--data t.csv --target z", "t.csv has no column 'z'; its columns are 'a', 'b'"),
        ("train", "--data t.csv --target y --exclude z", "t.csv has no column 'z'"),
        (
            "train",
            "--data t.csv --target y --exclude a --features b",
            "--exclude a and --features b",
        ),
        ("train", "--out full", "--out full is not empty"),
        ("train", "--model nowhere.py:f", "there is no file 'nowhere.py'"),
        ("train", "--momentum 2", "--momentum is 2"),
        ("train", "--epoch 2", "nrecognized"),
        ("study", "--data t.csv --target z", "t.csv has no column 'z'"),
        ("contrast", "--out full", "--out full is not empty"),
        (
            "predict",
            "--model m.keras --data t.csv --out p.csv",
            "--model m.keras: there is no such",
        ),
        ("predict", "--model t.csv --data no.csv --out p.csv", "no.csv does not exist"),
        ("predict", "--model t.csv --data t.csv --out t.csv", "--out t.csv exists already"),
    ],
)
def test_refused_without_tensorflow(
    command: str, arguments: str, said: str, tmp_path: Path
) -> None:
    """Exit status 2 and one message; neither TensorFlow nor MPI is loaded for it."""
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = [sys.executable, "-X", "importtime", "-m", "ddp_gd", command, *arguments.split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    times = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip() for line in times}
    assert "tyro" in loaded
    assert loaded.isdisjoint({"tensorflow", "keras", "mpi4py.MPI", "horovod"})
    rest = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said in " ".join([*rest, done.stdout]).replace("│", " ")
    assert "Traceback" not in done.stderr
