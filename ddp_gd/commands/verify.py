"""`python -m ddp_gd.verify`: train at several worker counts, and say how far apart they end.

Each training runs in processes of its own, started with mpirun; a trace of every step tells where
two of them part, and often why.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_gd import settings
from ddp_gd.job import mpirun
from ddp_gd.reporting.text_table import print_table

_UNKNOWN = (
    "not told by the trace. Something in the program depends on the rank or on the number of "
    "workers: look at what makes the variable above"
)


@dataclass(frozen=True)
class Outcome:
    """One training: how many workers made it, how it ended, and its trace."""

    workers: int
    seconds: float
    problem: str
    start: dict[str, Any]
    steps: list[dict[str, Any]]
    end: dict[str, Any]
    weights: list[np.ndarray]

    @property
    def bitwise(self) -> bool:
        """Tell whether it promised equal bits."""
        return bool(self.start.get("bitwise"))


def main() -> int:
    """Compare, print, and return the exit status: 0 if the mode's promise held, else 1."""
    options, arguments = _parse()
    program = _program(options.script, arguments)
    runs: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="ddp_gd-verify-") as folder:
        for workers in options.np:
            print(f"training with {workers} worker{'s' * (workers > 1)} ...", end=" ", flush=True)
            run = _run(program, workers, Path(folder) / f"{len(runs)}", options.script is None)
            print(f"{run.seconds:.1f} s", flush=True)
            runs.append(run)
            if run.problem:
                print(f"\nBROKEN: the training with {workers} did not end well:\n{run.problem}")
                return 1
    print()
    _print_table(runs)
    return _verdict(runs, options.tolerance)


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m ddp_gd.verify",
        description="Train at several worker counts and compare. Exit status 0: the results are "
        "equal, to the last bit in bitwise mode (--bitwise, ddp_gd.init(bitwise=True)), else to "
        "rounding. 1: they are not, and where and why they part is printed.",
        epilog="Every other argument goes to python -m ddp_gd.train, or to the script.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-np", nargs="+", type=int, default=[1, 2], metavar="N", help="worker counts (1 2)"
    )
    parser.add_argument(
        "--script",
        type=Path,
        help="a Python program that calls ddp_gd.fit, in place of the main job",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference of a weight, relative to the largest of its variable, that still "
        "counts as rounding in default mode (1e-4)",
    )
    options, arguments = parser.parse_known_args()
    if min(options.np) < 1 or len(options.np) < 2:
        parser.error(f"-np {' '.join(map(str, options.np))}: give two or more counts, 1 or larger")
    if options.script is not None and not options.script.is_file():
        parser.error(f"--script {options.script}: there is no such file")
    if options.script is None and "--out" in arguments:
        parser.error("--out: verify keeps no results; leave it out")
    return options, arguments


def _program(script: Path | None, arguments: Sequence[str]) -> list[str]:
    if script is not None:
        return [str(script), *arguments]
    fixed = [] if "--seed" in arguments else ["--seed", "0"]  # or each run would draw its own
    return ["-m", "ddp_gd.train", *arguments, *fixed]


def _run(program: list[str], workers: int, folder: Path, main_job: bool) -> Outcome:
    """Train with so many workers, and read the trace back."""
    trace = folder / "trace"
    command = [sys.executable, *program]
    if main_job:
        command += ["--out", str(folder / "out")]
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        mpirun.command(workers, command),
        env=mpirun.environment() | {settings.TRACE: str(trace)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    problem = ""
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ddp_gd: ")]
        problem = "\n".join(said or done.stderr.splitlines()[-15:]) or f"exit {done.returncode}"
    elif not list(trace.glob("*.jsonl")):
        problem = "It called ddp_gd.fit nowhere, so there is nothing to compare."
    start: dict[str, Any] = {}
    end: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    weights: list[np.ndarray] = []
    if not problem:
        for file in sorted(trace.glob("*.jsonl")):  # several calls of fit: one after the other
            first, *middle, last = map(json.loads, file.read_text().splitlines())
            start, end = start or first, last
            steps += [{"fit": file.stem, **step} for step in [first, *middle]]
            with np.load(file.with_suffix(".npz"), allow_pickle=False) as archive:
                weights = [archive[name] for name in archive.files]
    return Outcome(workers, seconds, problem, start, steps, end, weights)


def _print_table(runs: list[Outcome]) -> None:
    heads = ["workers", "final loss", "largest weight difference", "fingerprint", "seconds"]
    rows = [
        [
            str(run.workers),
            f"{run.end['logs']['loss']:.9g}",
            "-" if run is runs[0] else f"{_largest_difference(runs[0], run):.3g}",
            run.end["fingerprint"][:16],
            f"{run.seconds:.1f}",
        ]
        for run in runs
    ]
    print_table(heads, rows)
    print()


def _largest_difference(run: Outcome, other: Outcome) -> float:
    pairs = zip(run.weights, other.weights, strict=True)
    differences = [np.abs(a.astype(np.float64) - b.astype(np.float64)) for a, b in pairs]
    return max((float(d.max()) for d in differences if d.size), default=0.0)


def _verdict(runs: list[Outcome], tolerance: float) -> int:
    promise = "to the last bit" if runs[0].bitwise else f"to rounding ({tolerance:g})"
    for run in runs[1:]:
        parting = _parting(runs[0], run, 0.0 if run.bitwise else tolerance)
        if parting is None:
            continue
        step, variable = parting
        where = "the start, before the first step"
        if "step" in step:
            where = f"epoch {step['epoch'] + 1}, step {step['step'] + 1}"
        print(
            f"BROKEN: {runs[0].workers} and {run.workers} workers part at {where}, in {variable}."
        )
        for cause in list(_causes(runs[0], run, "step" in step)) or [_UNKNOWN]:
            print(f"cause: {cause}")
        return 1
    counts = ", ".join(str(run.workers) for run in runs)
    print(f"EQUAL {promise} with {counts} workers, after each of {len(runs[0].steps) - 1} steps.")
    return 0


def _parting(run: Outcome, other: Outcome, tolerance: float) -> tuple[dict[str, Any], str] | None:
    """The first step after which two trainings are not equal, and the variable where it shows."""
    for ours, theirs in zip(run.steps, other.steps, strict=False):
        for (name, (digest, scale, *ours_values)), (other_digest, _, *their_values) in zip(
            ours["variables"].items(), theirs["variables"].values(), strict=True
        ):
            if digest == other_digest:
                continue
            furthest = max(map(abs, np.subtract(ours_values, their_values)), default=0.0)
            if tolerance == 0.0 or not furthest <= tolerance * scale:
                return ours, name
        if tolerance == 0.0 and ours.get("loss") != theirs.get("loss"):
            return ours, "the loss"
    if len(run.steps) != len(other.steps):
        return run.steps[min(len(run.steps), len(other.steps)) - 1], "the number of steps"
    return None


def _causes(run: Outcome, other: Outcome, started: bool) -> Iterator[str]:
    """Name what is known to make two trainings part, and was there."""
    for name, value in run.start["facts"].items():
        theirs = other.start["facts"][name]
        if run.bitwise and value != theirs:
            kind = "threads" if "threads" in name else "hardware or versions"
            kind = "graph rewriting" if "rewriting" in name else kind
            yield f"{kind}: {name} was {value!r}, then {theirs!r}"
    if not started:
        yield (
            "the trainings begin with other weights or data: fix the seed "
            "(keras.utils.set_random_seed) before the model is built"
        )
        return
    if run.start["constant_seeds"]:
        yield (
            f"a random layer: {run.start['constant_seeds'][0]} draws numbers by a seed of the "
            "program's own, perhaps one that depends on the rank; use a keras.random.SeedGenerator"
        )
