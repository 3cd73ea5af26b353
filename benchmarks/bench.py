"""Runs every contender in turns, and writes what came out: bash launch/bench.sh --help."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.draw import draw
from benchmarks.workloads import WORKLOADS
from ddp_gd.job.versions import version

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PYTHON = [sys.executable, "-m"]
TWO = [str(BIN / "horovodrun"), "-np", "2", *PYTHON]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        title: for tables.
        command: what to run; several are run at once.
        environ: variables to add; None takes one away.
        same_result: whether it makes the same updates as the others.
    """

    title: str
    command: Sequence[Sequence[str]]
    environ: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    same_result: bool = True


# What the launch scripts set for ours, the others don't get by accident.
_UNTUNED = {"OMPI_MCA_mpi_yield_when_idle": None}
_TUNED = {
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "HOROVOD_CYCLE_TIME": "0",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}


def contenders(torch_python: str | None) -> dict[str, Contender]:
    """All of them by name; PyTorch where an interpreter that has it is given."""
    found = {
        "keras": Contender("keras.Model.fit", [[*PYTHON, "benchmarks.run_keras", "keras", "1"]]),
        "keras_16": Contender(
            "keras.Model.fit, steps_per_execution=16",
            [[*PYTHON, "benchmarks.run_keras", "keras_16", "16"]],
        ),
        "ours_1": Contender(
            "ddp_gd, 1 process", [[*PYTHON, "benchmarks.run_ddp_gd", "ours_1", "default"]]
        ),
        "bitwise_1": Contender(
            "ddp_gd bitwise, 1 process",
            [[*PYTHON, "benchmarks.run_ddp_gd", "bitwise_1", "bitwise"]],
        ),
        "ours_2": Contender(
            "ddp_gd, 2 workers", [[*TWO, "benchmarks.run_ddp_gd", "ours_2", "default"]]
        ),
        "bitwise_2": Contender(
            "ddp_gd bitwise, 2 workers",
            [[*TWO, "benchmarks.run_ddp_gd", "bitwise_2", "bitwise"]],
        ),
        "horovod": Contender(
            "Horovod tape, 2 workers", [[*TWO, "benchmarks.run_horovod", "horovod"]], _UNTUNED
        ),
        "horovod_tuned": Contender(
            "Horovod tape, tuned, 2 workers",
            [[*TWO, "benchmarks.run_horovod", "horovod_tuned"]],
            _TUNED,
        ),
        "alone": Contender(
            "two processes that never talk",
            [[*PYTHON, "benchmarks.run_alone", "alone", str(number)] for number in (0, 1)],
            {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"},
            same_result=False,
        ),
    }
    if torch_python:
        torchrun = [torch_python, "-m", "torch.distributed.run", "--standalone"]
        found["torch"] = Contender(
            "PyTorch DDP on Gloo, 2 processes",
            [[*torchrun, "--nproc-per-node=2", "-m", "benchmarks.run_torch", "torch"]],
        )
    return found


# What is compared: (who is slower if all is well, who is faster).
RATIOS = [
    ("keras", "ours_1"),
    ("keras_16", "ours_1"),
    ("keras", "bitwise_1"),
    ("torch", "ours_2"),
    ("horovod", "ours_2"),
    ("horovod_tuned", "ours_2"),
    ("alone", "ours_2"),
    ("ours_2", "bitwise_2"),
    ("ours_1", "ours_2"),
]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bash launch/bench.sh", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="times that all are run (default 7)")
    parser.add_argument("--steps", type=int, help="steps of an epoch, to try it out")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--contenders", nargs="+", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmark")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    runners = contenders(options.torch_python)
    for name in options.contenders or []:
        if name not in runners:
            parser.error(f"--contenders {name}: expected some of {' '.join(runners)}")
    runners = {n: r for n, r in runners.items() if n in (options.contenders or runners)}
    with tempfile.TemporaryDirectory(prefix="ddp_gd_bench_") as folder:
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TF_NUM_", "HOROVOD_"))},
            "BENCH_FOLDER": folder,
            "BENCH_WORKLOADS": " ".join(options.workloads),
            "BENCH_STEPS": str(options.steps or 0),
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        _run([[*PYTHON, "benchmarks.prepare"]], environ)
        rounds = []
        for number in range(options.rounds):
            began = time.perf_counter()
            # Each round begins with another contender.
            names = list(runners)[number % len(runners) :] + list(runners)[: number % len(runners)]
            rounds.append({name: _measure(name, runners[name], environ) for name in names})
            seconds = time.perf_counter() - began
            print(f"round {number + 1} of {options.rounds}: {seconds:.0f} s", flush=True)
        learned = _distances(runners, options.workloads, Path(folder))
        modes = {"ours_2": "default", "bitwise_2": "bitwise"}
        memory = {modes[name]: _memory(modes[name], environ) for name in runners if name in modes}
    results = {
        "machine": machine(),
        "versions": versions(options.torch_python),
        "milliseconds_per_step": rounds,
        "distance_to_keras": learned,
        "memory_in_gradients": memory,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results, runners, options.workloads)
    (options.out / "results.md").write_text(text)
    print(text)
    draw(results, {n: r.title for n, r in runners.items()}, options.out / "results.png")


def _measure(name: str, contender: Contender, environ: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds a step of each workload."""
    folder = Path(environ["BENCH_FOLDER"])
    for left in folder.glob("*.ready"):
        left.unlink()
    changed = {k: v for k, v in {**environ, **contender.environ}.items() if v is not None}
    _run(contender.command, changed)
    workloads = environ["BENCH_WORKLOADS"].split()
    return {w: json.loads((folder / f"{name}-{w}.json").read_text()) for w in workloads}


def _run(commands: Sequence[Sequence[str]], environ: Mapping[str, str]) -> None:
    """Run the commands at the same time, and end with an error if one of them fails."""
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    for command, process, output in zip(commands, processes, outputs, strict=True):
        if process.returncode != 0:
            sys.exit(f"{output}\nbench: {' '.join(command)} ended with {process.returncode}")


def _distances(
    runners: Mapping[str, Contender], workloads: Sequence[str], folder: Path
) -> dict[str, dict[str, float]]:
    """How far each contender's weights end from Keras's, as a part of the way Keras's went.

    Ends with an error where one made other updates: its time would say nothing.
    """

    def weights(file: str) -> np.ndarray:
        with np.load(folder / file) as arrays:
            return np.concatenate([arrays[n].ravel().astype(float) for n in arrays.files])

    distances: dict[str, dict[str, float]] = {}
    for name, contender in runners.items():
        if not contender.same_result or "keras" not in runners:
            continue
        for workload in workloads:
            end, ours = weights(f"keras-{workload}.npz"), weights(f"{name}-{workload}.npz")
            way = np.linalg.norm(end - weights(f"{workload}.npz"))
            distance = float(np.linalg.norm(ours - end) / way)
            distances.setdefault(name, {})[workload] = distance
            if not distance < 0.01:
                sys.exit(f"bench: {name} learned something else on {workload}: {distance:.2g}")
    return distances


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the order statistics that hold it with a probability of at least 95 %.

    With 7 values that are the smallest and the largest (98.4 %).
    """
    values, n = sorted(ratios), len(ratios)
    outside, low = 2 * 0.5**n, 0
    while low + 1 < n // 2 and outside + 2 * math.comb(n, low + 1) * 0.5**n <= 0.05:
        low += 1
        outside += 2 * math.comb(n, low) * 0.5**n
    return statistics.median(values), values[low], values[n - 1 - low]


def table(results: Mapping, runners: Mapping[str, Contender], workloads: Sequence[str]) -> str:
    """Markdown: milliseconds a step, and the ratios of the pairs."""
    rounds = results["milliseconds_per_step"]
    head = "| | " + " | ".join(WORKLOADS[w].title for w in workloads) + " |\n"
    head += "|---" * (len(workloads) + 1) + "|\n"
    text = f"{results['machine']}; {results['versions']}; {len(rounds)} rounds in turns.\n\n"
    text += f"Milliseconds a step, medians:\n\n{head}"
    for name, contender in runners.items():
        cells = [statistics.median(r[name][w] for r in rounds) for w in workloads]
        text += f"| {contender.title} | " + " | ".join(f"{c:.3g}" for c in cells) + " |\n"
    text += f"\nHow many times faster, medians of the rounds' ratios and their interval:\n\n{head}"
    for slow, fast in RATIOS:
        if not {slow, fast} <= set(runners):
            continue
        cells = []
        for w in workloads:
            middle, low, high = interval([r[slow][w] / r[fast][w] for r in rounds])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        text += f"| {runners[fast].title} against {runners[slow].title} | " + " | ".join(cells)
        text += " |\n"
    text += "\nMemory of a worker of two beside model, optimizer state and one gradient, in "
    text += "gradients: "
    text += ", ".join(f"{m} {n:.1f}" for m, n in results["memory_in_gradients"].items())
    return text + ".\n"


_MEMORY_SIZES = (4_000_000, 36_000_000)  # weights


def _memory(mode: str, environ: Mapping[str, str]) -> float:
    """What a worker of two holds beside model, optimizer state and one gradient, in gradients.

    From the growth between two sizes of model, so that what doesn't grow with it does not count.
    """
    found = []
    for weights in _MEMORY_SIZES if environ["BENCH_STEPS"] == "0" else (10_000, 1_000_000):
        command = [*TWO, "benchmarks.memory", str(weights), mode]
        printed = subprocess.check_output(
            command, cwd=ROOT, env=environ, stderr=subprocess.DEVNULL, text=True
        )
        numbers = re.search(r"bytes (\d+) gradient (\d+)", printed)
        assert numbers, printed
        found.append([int(number) for number in numbers.groups()])
    (small, small_gradient), (large, large_gradient) = found
    return (large - small) / (large_gradient - small_gradient) - 1


def machine() -> str:
    """The processor and how many cores of it this process may use."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    return f"{model[1] if model else platform.machine()}, {cores} cores, Linux {platform.machine()}"


def versions(torch_python: str | None) -> str:
    """What was measured."""
    names = ("tensorflow", "keras", "horovod", "numpy")
    text = ", ".join(f"{name} {version(name)}" for name in names)
    if torch_python:
        command = [torch_python, "-c", "import torch; print(torch.__version__)"]
        text += f", torch {subprocess.check_output(command, text=True).strip()}"
    return f"Python {platform.python_version()}, {text}"


if __name__ == "__main__":
    main()
