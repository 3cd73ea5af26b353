"""Loads data on several workers: `loaded.py FOLDER OUT`, `differ|options|peak FOLDER`."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
from run_command import run_command

import ddp_gd
from ddp_gd.batching.split import RandomSplit
from ddp_gd.comm import agree
from ddp_gd.data import convert, load
from ddp_gd.data.training_rows import TrainingRows
from ddp_gd.job import runtime


def measure(folder: Path, out: Path) -> None:
    """Mean and scale of the training rows from every format, and which workers converted it."""
    convert.CACHED_FROM_BYTES = 0
    converted: list[int] = []
    unchanged = convert.convert

    def noted(*arguments):
        converted.append(1)
        return unchanged(*arguments)

    convert.convert = noted
    found = {}
    sources = {
        "csv": (folder / "t.csv", "y"),
        "parquet": (folder / "t.parquet", "y"),
        "npz": (folder / "t.npz", None),
        "npy": (folder / "x.npy", str(folder / "y.npy")),
    }
    communicator = runtime.communicator()
    for name, (source, target) in sources.items():
        converted.clear()
        dataset = ddp_gd.load(source, target)
        split = RandomSplit(len(dataset.features), 0.1, seed=1)
        training = TrainingRows(communicator, dataset, split.training, split.training_rows)
        normalizer = training.preprocessing(normalize=True).normalizer
        found[name] = {
            "mean": [repr(float(v)) for v in normalizer.mean],
            "scale": [repr(float(v)) for v in normalizer.scale],
            "converted": agree.gather_json(communicator, len(converted)),
        }
    if ddp_gd.rank() == 0:
        out.write_text(json.dumps(found))


def differ(folder: Path) -> None:
    """Each worker believes to be alone on its host, where the file of that name is another one."""
    communicator = runtime.communicator()
    communicator.local_rank = 0
    load.boot_id = lambda: str(communicator.rank)
    own = folder / str(communicator.rank)
    own.mkdir()
    os.chdir(own)
    Path("t.csv").write_text(f"a,y\n1,{communicator.rank}\n")
    ddp_gd.load("t.csv", "y")


def options(folder: Path) -> None:
    """Each worker asks for something else."""
    (folder / "t.csv").write_text("a,b,y\n1,2,3\n")
    ddp_gd.load(folder / "t.csv", "y", features=["ab"[ddp_gd.rank()]])


def peak(folder: Path) -> None:
    """The most memory that was resident while training on an epoch of `x.npy`, in KiB."""
    data = ["--data", folder / "x.npy", "--target", folder / "y.npy", "--batch-size", 5000]
    options = ["--model", "linear", "--epochs", 1, "--seed", 1, "--verbose", 0]
    run_command("train", *data, *options, "--out", folder / f"out{os.getpid()}")
    # Not ru_maxrss: that begins with what the process was forked from.
    status = Path("/proc/self/status").read_text()
    print("peak:", re.search(r"VmHWM:\s+(\d+) kB", status)[1])


if __name__ == "__main__":
    ddp_gd.init(os.environ.get("BACKEND", "auto"))
    np.seterr(all="raise")
    if sys.argv[1] in ("differ", "options", "peak"):
        globals()[sys.argv[1]](Path(sys.argv[2]))
    else:
        measure(Path(sys.argv[1]), Path(sys.argv[2]))
