"""What a step costs, as a formula: python -m benchmarks.cost, as root, in the set-up environment.

    seconds = a + b rows weights + c weights                     compute: one worker, one thread
            + d + max(e, u 8 / rate) bytes                       n > 1: what is sent
            + 2 (n - 1) (f + g log2(1 + message / 64 KiB)) latency    n > 1: waiting for it

`rows` are those of a worker's share, `bytes` the 2 (n - 1) / n gradients that a worker sends in a
ring, `message` a 2 (n - 1)th of them, 64 KiB what Open MPI sends at once over TCP. Fitted are a, b
and c to runs of one worker, d and e to runs of two hosts on a link without a limit, u to those on a
link of 1 Gbit/s, f and g to what a delay of half a millisecond adds. The formula is then checked
against runs of other sizes, which it was not fitted to, on links of 1 and 10 Gbit/s and on one with
a delay of 1 ms.
"""

from __future__ import annotations

import dataclasses
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
_SLOW, _DELAY = 1.0, 5e-4  # Gbit/s and seconds one way, of the links that are fitted to
_NETWORKS = ((1, 1e-4), (10, 5e-5), (100, 1e-5))  # the same, that the formula is asked about
_CHECKED_LINKS = ((1.0, None), (10.0, None), (None, 1e-3))
Runs = Sequence[Mapping[str, float]]
_ENVIRON = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONPATH": str(ROOT),
}


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The formula and its constants.

    Attributes:
        compute: a, b and c.
        exchange: d and e.
        slowdown: u, how many times longer a byte takes than the link's rate says.
        latencies: f and g.
    """

    compute: list[float]
    exchange: list[float]
    slowdown: float
    latencies: list[float]

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
            handing, byte = self.exchange
            byte = max(byte, self.slowdown * 8 / (gigabits * 1e9))
            seconds += handing + byte * _bytes(weights, workers)
            seconds += float(np.dot(self.latencies, _messages(weights, workers))) * latency
        return seconds


def fit(alone: Runs, two: Runs, slow: Runs, relayed: Runs, delayed: Runs) -> CostModel:
    """Find the constants.

    Args:
        alone: runs of one worker.
        two: of two hosts on a link without a limit.
        slow: of two hosts on a link of 1 Gbit/s.
        relayed: of two hosts on a link through a relay that doesn't delay.
        delayed: the same runs, with a delay of half a millisecond.
    """
    compute = _fit([[1, r["rows"] * r["weights"], r["weights"]] for r in alone], alone)
    model = CostModel(compute, [0.0, 0.0], 1.0, [0.0, 0.0])
    model = dataclasses.replace(model, exchange=fit_exchange(model, two))
    handing = model.exchange[0]
    slowdown = _fit(
        [[8 * _bytes(run["weights"], 2) / (_SLOW * 1e9)] for run in slow],
        slow,
        [model.seconds(run["weights"], run["rows"], 1) + handing for run in slow],
    )
    latencies = _fit(
        [[_DELAY * count for count in _messages(run["weights"], 2)] for run in delayed],
        delayed,
        [run["ms"] / 1e3 for run in relayed],
    )
    return dataclasses.replace(model, slowdown=slowdown[0], latencies=latencies)


def fit_exchange(model: CostModel, two: Runs) -> list[float]:
    """d and e for runs of two hosts on a link."""
    computing = [model.seconds(run["weights"], run["rows"], 1) for run in two]
    return _fit([[1, _bytes(run["weights"], 2)] for run in two], two, computing)


def _fit(
    terms: Sequence[Sequence[float]], runs: Runs, known: Sequence[float] | None = None
) -> list[float]:
    """Constants, none below 0, with the least sum of squared relative errors.

    Args:
        terms: what each constant is multiplied by, for each run.
        runs: what they add up to.
        known: seconds of each run that something else takes.
    """
    seconds = np.array([run["ms"] / 1e3 for run in runs])
    columns = np.array(terms) / seconds[:, None]
    wanted = (seconds - (0.0 if known is None else np.array(known))) / seconds
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


def _messages(weights: float, workers: int) -> list[float]:
    """What f and g are multiplied by, beside the latency."""
    count = 2 * (workers - 1)
    return [count, count * float(np.log2(1 + _bytes(weights, workers) / count / 2**16))]


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
    two, slow = _two_hosts(FITTED), _two_hosts(FITTED, _SLOW)
    relayed, delayed = _two_hosts(FITTED, delay=0.0), _two_hosts(FITTED, delay=_DELAY)
    print(f"and to {len(two)} runs of two hosts on each of four links", flush=True)
    model = fit(alone, two, slow, relayed, delayed)
    through_relay = dataclasses.replace(model, exchange=fit_exchange(model, relayed))
    checks = []
    for gigabits, delay in _CHECKED_LINKS:
        link = f"{gigabits:g} Gbit/s" if delay is None else f"{1e3 * delay:g} ms"
        for run in _two_hosts(CHECKED, gigabits, delay):
            size = run["weights"], run["rows"], 2
            if delay is None:
                predicted = 1e3 * model.seconds(*size, gigabits or np.inf)
            else:
                predicted = 1e3 * through_relay.seconds(*size, latency=delay)
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
        **dataclasses.asdict(model),
        "exchange_through_relay": through_relay.exchange,
        "runs_of_one_worker": alone,
        "runs_of_two_hosts": two,
        "runs_at_1_gigabit": slow,
        "runs_through_relay": relayed,
        "runs_with_half_a_millisecond": delayed,
        "checks": checks,
        "median_error": float(np.median(errors)),
        "largest_error": max(errors),
    }
    out = ROOT / "docs" / "benchmark"
    out.mkdir(parents=True, exist_ok=True)
    (out / "cost.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "cost.md").write_text(_table(model))
    draw_cost(results, model.seconds, _NETWORKS, 1024, out / "cost.png")
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
    text = "| weights | batch_size |" + "".join(
        f" {gigabits} Gbit/s, {latency * 1e6:.0f} µs |" for gigabits, latency in _NETWORKS
    )
    text += "\n" + "|---" * (len(_NETWORKS) + 2) + "|\n"
    for weights in (10_000, 100_000, 1_860_000, 6_300_000):
        for batch_size in (256, 4096):
            text += f"| {weights:,} | {batch_size} |"
            for gigabits, latency in _NETWORKS:
                n = best_workers(model, weights, batch_size, gigabits, latency)
                faster = model.seconds(weights, batch_size, 1) / model.seconds(
                    weights, batch_size / n, n, gigabits, latency
                )
                text += f" {n} ({faster:.1f} times) |"
            text += "\n"
    return text


def _two_hosts(
    sizes: Sequence[str], gigabits: float | None = None, delay: float | None = None
) -> list[dict[str, Any]]:
    with Hosts(gigabits, delay) as hosts:
        return _runs(hosts.run(["-m", "benchmarks.run_cost", *sizes], _ENVIRON))


def _runs(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
