"""What a step costs, as a formula: python -m benchmarks.cost, as root, in the set-up environment.

    seconds = a + b rows weights + c weights            compute: one worker, one thread
            + d + e bytes                               n > 1: to hand the bytes to the network
            + bytes / bandwidth + 2 (n - 1) latency     n > 1: the network, a ring

`rows` are those of a worker's share, `bytes` the 2 (n - 1) / n gradients that a worker sends. a, b
and c are fitted to runs of one worker, d and e to runs of two hosts on a link without a limit. The
formula is then checked against runs of other sizes on links of 1 and 10 Gbit/s, which it was not
fitted to, with the link's bandwidth put in, and on a link that delays, with its latency put in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.bench import ROOT, machine, versions
from benchmarks.draw import draw_cost
from benchmarks.network import Hosts

FITTED = ("64,256,512,1024,1536", "16,64,256")
CHECKED = ("128,768,1280", "32,128")
# Gbit/s, infinite where only the machine limits it, and seconds one way.
LINKS = ((1.0, 0.0), (10.0, 0.0), (np.inf, 1e-3))
_ENVIRON = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONPATH": str(ROOT),
}


class CostModel:
    """The formula and its five constants.

    Args:
        alone: runs of one worker.
        two: runs of two hosts on a link without a limit.
    """

    def __init__(self, alone: Sequence[Mapping[str, float]], two: Sequence[Mapping[str, float]]):
        self.compute = _fit(
            [[1, run["rows"] * run["weights"], run["weights"]] for run in alone],
            [run["ms"] / 1e3 for run in alone],
            [run["ms"] / 1e3 for run in alone],
        )
        self.exchange = _fit(
            [[1, _bytes(run["weights"], 2)] for run in two],
            [run["ms"] / 1e3 - self.seconds(run["weights"], run["rows"], 1) for run in two],
            [run["ms"] / 1e3 for run in two],
        )

    def seconds(
        self,
        weights: float,
        rows: float,
        workers: int,
        gigabits: float = np.inf,
        latency: float = 0.0,
    ) -> float:
        """Seconds of a step.

        Args:
            weights: of the model, float32.
            rows: of one worker's share.
            workers: on as many hosts.
            gigabits: bandwidth of a host's link, in Gbit/s.
            latency: one way between two hosts, in seconds.
        """
        seconds = float(np.dot(self.compute, [1, rows * weights, weights]))
        if workers > 1:
            sent = _bytes(weights, workers)
            seconds += float(np.dot(self.exchange, [1, sent])) + 8 * sent / (gigabits * 1e9)
            seconds += 2 * (workers - 1) * latency
        return seconds


def _fit(
    terms: Sequence[Sequence[float]], seconds: Sequence[float], scale: Sequence[float]
) -> list[float]:
    """Constants, none below 0, with the least sum of squared errors relative to `scale`."""
    columns = np.array(terms) / np.array(scale)[:, None]
    wanted = np.array(seconds) / np.array(scale)
    kept = list(range(columns.shape[1]))
    while True:
        found = np.linalg.lstsq(columns[:, kept], wanted, rcond=None)[0]
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    constants = np.zeros(columns.shape[1])
    constants[kept] = found
    return [float(constant) for constant in constants]


def _bytes(weights: float, workers: int) -> float:
    """What a worker sends in a step."""
    return 4 * weights * 2 * (workers - 1) / workers


def main() -> None:
    """Measure, fit, check, and write what came out."""
    alone = _runs(
        subprocess.check_output(
            [sys.executable, "-m", "benchmarks.run_cost", *FITTED],
            env={**os.environ, **_ENVIRON},
            cwd=ROOT,
            text=True,
        )
    )
    print(f"fitted to {len(alone)} runs of one worker", flush=True)
    with Hosts(None) as hosts:
        two = _runs(hosts.run(["-m", "benchmarks.run_cost", *FITTED], _ENVIRON))
    print(f"and to {len(two)} runs of two hosts", flush=True)
    model = CostModel(alone, two)
    checks = []
    for gigabits, latency in LINKS:
        with Hosts(None if latency else gigabits, latency) as hosts:
            runs = _runs(hosts.run(["-m", "benchmarks.run_cost", *CHECKED], _ENVIRON))
        for run in runs:
            predicted = 1e3 * model.seconds(run["weights"], run["rows"], 2, gigabits, latency)
            link = f"{1e3 * latency:g} ms" if latency else f"{gigabits:g} Gbit/s"
            checks.append({**run, "link": link, "predicted_ms": predicted})
            print(
                f"{link:9}, {run['weights']:9,.0f} weights, {run['rows']:4.0f} rows: "
                f"{run['ms']:7.2f} ms, predicted {predicted:7.2f}",
                flush=True,
            )
    errors = [abs(check["predicted_ms"] / check["ms"] - 1) for check in checks]
    results = {
        "machine": machine(),
        "versions": versions(None),
        "compute": model.compute,
        "exchange": model.exchange,
        "runs_of_one_worker": alone,
        "runs_of_two_hosts": two,
        "checks": checks,
        "median_error": float(np.median(errors)),
        "largest_error": max(errors),
    }
    out = ROOT / "docs" / "benchmark"
    out.mkdir(parents=True, exist_ok=True)
    (out / "cost.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "cost.md").write_text(_table(model))
    draw_cost(results, model.seconds, 1024, out / "cost.png")
    print(f"error of the prediction: median {np.median(errors):.0%}, largest {max(errors):.0%}")


def best_workers(
    model: CostModel, weights: float, batch_size: int, gigabits: float, latency: float
) -> int:
    """So many workers make the shortest step; more would make it longer again."""
    return min(
        range(1, batch_size + 1),
        key=lambda n: model.seconds(weights, batch_size / n, n, gigabits, latency),
    )


def _table(model: CostModel) -> str:
    """Markdown: where models of several sizes stop scaling."""
    links = [(1, 1e-4), (10, 5e-5), (100, 1e-5)]  # Gbit/s, seconds one way
    text = "| weights | batch_size |" + "".join(
        f" {gigabits} Gbit/s, {latency * 1e6:.0f} µs |" for gigabits, latency in links
    )
    text += "\n" + "|---" * (len(links) + 2) + "|\n"
    for weights in (10_000, 100_000, 1_860_000, 6_300_000):
        for batch_size in (256, 4096):
            text += f"| {weights:,} | {batch_size} |"
            for gigabits, latency in links:
                n = best_workers(model, weights, batch_size, gigabits, latency)
                faster = model.seconds(weights, batch_size, 1) / model.seconds(
                    weights, batch_size / n, n, gigabits, latency
                )
                text += f" {n} ({faster:.1f} times) |"
            text += "\n"
    return text


def _runs(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
