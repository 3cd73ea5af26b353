"""The scripts in examples/, run as their readers run them."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs import run_job

pytestmark = pytest.mark.jobs

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWN = (EXAMPLES / "README.md").read_text().splitlines()
# Runs a script; rank 0 leaves the weights of its `model` and the losses of its last fit.
LEAVE = """
import json, os, runpy, sys
import numpy as np
model = runpy.run_path(sys.argv[1], run_name="__main__")["model"]
if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
    np.savez(sys.argv[2], *model.get_weights(), losses=json.dumps(model.history.history))
"""


def run(np: int, script: str, *arguments: str) -> list[str]:
    """What rank 0 prints, without times."""
    job = run_job(np, [str(EXAMPLES / script), *arguments], "python" if np == 1 else "mpirun")
    assert job.returncode == 0, job.stderr
    return [re.sub(r" - [^ ]+ ms/step", "", line) for line in job.stdout.splitlines()]


def numbers(line: str) -> list[float]:
    """Every number that is printed with a colon before it."""
    return [float(word) for word in re.findall(r": ([-+.e0-9]+)(?= |$)", line)]


def shown(start: str) -> list[float]:
    """The numbers of the line that examples/README.md shows."""
    return numbers(next(line for line in SHOWN if line.strip().startswith(start)))


def test_three_lines_are_changed_and_the_training_is_keras_own(tmp_path: Path) -> None:
    """The two plain scripts differ in three lines; two workers end where Keras alone does."""
    plain, changed = EXAMPLES / "plain_keras.py", EXAMPLES / "plain_keras_ddp_gd.py"
    lines = [path.read_text().splitlines() for path in (plain, changed)]
    diff = [line for line in difflib.ndiff(*lines) if line[0] in "+-" and line[1:].strip()]
    assert [line[:7] for line in diff] == ["+ impor", "+ ddp_g", "- model", "+ ddp_g"]
    assert [f"{line[0]}{line[2:]}" in SHOWN for line in diff] == [True] * 4

    ends = []
    for workers, path in ((1, plain), (2, changed)):
        left = tmp_path / f"{path.stem}.npz"
        argv = ["-c", LEAVE, str(path), str(left)]
        job = run_job(workers, argv, "python" if workers == 1 else "mpirun")
        assert job.returncode == 0, job.stderr
        with np.load(left) as arrays:
            losses = json.loads(str(arrays["losses"]))
            ends.append(([arrays[n] for n in arrays.files if n != "losses"], losses))
    (weights, history), (our_weights, our_history) = ends
    for theirs, ours in zip(weights, our_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert history.keys() == our_history.keys()
    for name, theirs in history.items():
        np.testing.assert_allclose(our_history[name], theirs, rtol=1e-5)
    assert shown("Epoch 5/5") == pytest.approx([h[-1] for h in our_history.values()], rel=1e-4)


def test_mnist_is_the_same_to_the_last_bit_with_two_workers(tmp_path: Path) -> None:
    """With --bitwise mnist.py prints the same alone and in a job, and it learns."""
    random = np.random.default_rng(0)
    for name, rows in (("train", 300), ("test", 100)):
        y = random.integers(0, 10, rows)
        x = random.integers(0, 60, (rows, 28, 28))
        for row, digit in enumerate(y):  # a bar, the lower the larger the digit
            x[row, 2 + 2 * digit : 6 + 2 * digit, 4:24] += 150
        np.savez(tmp_path / f"{name}.npz", x=x.astype(np.uint8), y=y)
    files = [f"--train={tmp_path / 'train.npz'}", f"--test={tmp_path / 'test.npz'}"]
    alone = run(1, "mnist.py", *files, "--bitwise", "--epochs=2")
    assert run(2, "mnist.py", *files, "--bitwise", "--epochs=2") == alone
    first, second, measured, fingerprint = alone
    assert numbers(second)[1] < numbers(first)[1]
    assert re.fullmatch(r"test: loss \d\.\d{4}, accuracy \d\.\d{4}", measured)
    assert re.fullmatch(r"fingerprint: [0-9a-f]{64}", fingerprint)


def test_own_model_goes_on_with_two_workers(tmp_path: Path) -> None:
    """own_model.py, stopped and gone on with in a job, prints what one process prints."""
    out = tmp_path / "alone"
    alone = run(1, "own_model.py", f"--out={out}")
    epochs = [line for line in alone if line.startswith("Epoch")]
    assert len(epochs) < 40  # it stops early
    assert "learning rate: 0.025" in alone
    assert numbers(alone[-2]) == pytest.approx(shown("validation loss"), rel=1e-3)

    stopped = tmp_path / "stopped"
    shutil.copytree(out, stopped)
    for newest in sorted((stopped / "checkpoints").iterdir())[1:]:  # those of the last two epochs
        newest.unlink()
    (stopped / "best.keras").unlink()
    resumed = run(2, "own_model.py", f"--out={stopped}")
    rest = alone[-len(resumed) :]
    assert sum(line.startswith("Epoch") for line in resumed) == 2
    for ours, theirs in zip(resumed, rest, strict=True):
        assert ours.split(":")[0] == theirs.split(":")[0]
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-5)
    assert not (stopped / "best.keras").exists()  # the best epoch was before


def test_the_notebook_runs_and_both_trainings_are_the_same(tmp_path: Path) -> None:
    """Its cells, one after the other, as a program: workers are started from it twice."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    program = tmp_path / "cells.py"
    program.write_text("\n\n".join(code))
    job = run_job(1, [str(program)], "python")
    assert job.returncode == 0, job.stderr
    one, two, same = job.stdout.splitlines()
    assert one.startswith("1 workers: [0.")
    assert two.removeprefix("2") == one.removeprefix("1")
    assert same == "the weights differ by less than 1e-4: True"
