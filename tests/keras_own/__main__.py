"""Run Keras's own tests, those that the installed Keras has in it, with our verbs.

    python -m keras_own OUT [--workers 1] [--files trainers/trainer_test.py ...]

OUT.json has, for every test that calls one of them, how it ended (on every worker) and why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jobs

FOLDERS = (
    "trainers", "models", "callbacks", "optimizers", "metrics", "saving", "distillation", "layers",
)  # fmt: skip
SECONDS = 3600  # for one folder, at most


def keras_folder() -> Path:
    """Where the source of the installed Keras lies; Keras itself isn't imported."""
    code = "import importlib.util as u; print(u.find_spec('keras').submodule_search_locations[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()) / "src"


def files(wanted: list[str]) -> list[Path]:
    """The files with tests that may call one of the verbs."""
    folder = keras_folder()
    if wanted:
        return [folder / name for name in wanted]
    found = [path for name in FOLDERS for path in sorted((folder / name).rglob("*_test.py"))]
    words = (".fit(", ".evaluate(", ".predict(", "run_layer_test(")
    return [path for path in found if any(word in path.read_text() for word in words)]


def run(paths: list[Path], workers: int, out: Path) -> float:
    """Run the tests of some files, and return how long that took."""
    began = time.monotonic()
    argv = ["-m", "pytest", "-p", "keras_own.plugin", "-q", *map(str, paths)]
    argv += ["-p", "no:cacheprovider", "--override-ini", "addopts=", "-W", "ignore"]
    argv += ["--continue-on-collection-errors", "--import-mode=importlib"]
    argv += ["--rootdir", str(keras_folder()), "-c", os.devnull]
    words, environ = jobs.command(
        workers,
        argv,
        "mpirun" if workers > 1 else "python",
        {"KERAS_OWN_OUT": str(out), "DDP_GD_STALL_SECONDS": "60"},
    )
    log = out.with_suffix(".log")
    with log.open("a") as file:
        try:
            subprocess.run(words, env=environ, stdout=file, stderr=file, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            file.write(f"{paths[0].parent} took more than {SECONDS} s\n")
    return time.monotonic() - began


def results(out: Path, workers: int) -> list[dict[str, Any]]:
    """Every test that called a verb on some worker, with its worst outcome."""
    found: dict[str, dict[str, Any]] = {}
    for rank in range(workers):
        path = Path(f"{out}.{rank}")
        for text in path.read_text().splitlines() if path.exists() else ():
            line = json.loads(text)
            before = found.setdefault(line["test"], line)
            if before["outcome"] == "passed" and line["outcome"] != "passed":
                found[line["test"]] = line
    return [line for line in found.values() if line["called"]]


def main() -> None:
    """Run them file by file, and print how many passed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--files", nargs="*", default=[])
    options = parser.parse_args()
    folders: dict[str, list[Path]] = {}
    for path in files(options.files):
        folders.setdefault(path.relative_to(keras_folder()).parts[0], []).append(path)
    for name, paths in folders.items():
        seconds = run(paths, options.workers, options.out)
        counts = Counter(line["outcome"] for line in results(options.out, options.workers))
        print(f"{name}: {seconds:.0f} s; so far {dict(counts)}", flush=True)
    lines = results(options.out, options.workers)
    options.out.with_suffix(".json").write_text(json.dumps(lines, indent=1))
    for line in lines:
        if line["outcome"] == "failed":
            print(line["test"].rpartition("/")[2], line["text"].splitlines()[:1])


if __name__ == "__main__":
    main()
