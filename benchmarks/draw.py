"""The benchmark's picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.workloads import WORKLOADS

# Okabe and Ito's colours, told apart by every kind of colour vision.
_COLOURS = {
    "keras": "#999999",
    "keras_16": "#666666",
    "horovod": "#e69f00",
    "horovod_tuned": "#d55e00",
    "torch": "#cc79a7",
    "ours_1": "#56b4e9",
    "ours_2": "#0072b2",
    "bitwise_1": "#7fd1b9",
    "bitwise_2": "#009e73",
}


def draw(results: Mapping[str, Any], titles: Mapping[str, str], path: Path) -> None:
    """One panel for each workload: milliseconds a step, the median and every round."""
    rounds = results["milliseconds_per_step"]
    workloads = list(next(iter(rounds[0].values())))
    names = [name for name in _COLOURS if name in titles]
    figure, panels = plt.subplots(
        1, len(workloads), figsize=(2.6 * len(workloads) + 2.2, 3.8), squeeze=False, sharey=True
    )
    for panel, workload in zip(panels[0], workloads, strict=True):
        for place, name in enumerate(names):
            values = [r[name][workload] for r in rounds]
            middle = statistics.median(values)
            panel.barh(place, middle, color=_COLOURS[name], height=0.7)
            panel.plot(values, [place] * len(values), ".", color="black", markersize=3)
            panel.annotate(
                f"{middle:.3g}",
                (max(values), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        panel.set_title(WORKLOADS[workload].title.replace(", ", ",\n"), fontsize=9)
        panel.set_xlim(0, 1.3 * max(r[n][workload] for r in rounds for n in names))
        panel.set_xlabel("ms a step", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(names)), [titles[name] for name in names])
    panels[0][0].invert_yaxis()
    figure.suptitle(
        f"Shorter is faster. Bar: median of {len(rounds)} rounds; dots: each round. "
        f"{results['machine']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_cost(
    results: Mapping[str, Any],
    seconds: Callable[..., float],
    networks: Iterable[tuple[float, float]],
    batch_size: int,
    path: Path,
) -> None:
    """Left: the formula against what was measured. Right: what it says of more workers.

    Args:
        results: as in cost.json.
        seconds: the formula.
        networks: Gbit/s and latency in seconds of three.
        batch_size: for the right one.
        path: the file.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    alone, two = results["runs_of_one_worker"], results["runs_of_two_hosts"]
    groups = [
        (
            "fitted: 1 worker",
            "#999999",
            "o",
            alone,
            [1e3 * seconds(r["weights"], r["rows"], 1) for r in alone],
        ),
        (
            "fitted: 2 hosts, no limit",
            "#56b4e9",
            "s",
            two,
            [1e3 * seconds(r["weights"], r["rows"], 2) for r in two],
        ),
    ]
    links = (("1 Gbit/s", "#d55e00", "^"), ("10 Gbit/s", "#009e73", "v"), ("1 ms", "#cc79a7", "s"))
    for link, colour, marker in links:
        runs = [check for check in results["checks"] if check["link"] == link]
        predicted = [run["predicted_ms"] for run in runs]
        groups.append((f"not fitted: {link}", colour, marker, runs, predicted))
    for label, colour, marker, runs, predicted in groups:
        left.plot(
            [r["ms"] for r in runs], predicted, marker, color=colour, label=label, markersize=5
        )
    ends = [min(r["ms"] for r in alone) / 1.5, max(c["ms"] for c in results["checks"]) * 1.5]
    left.plot(ends, ends, color="black", linewidth=0.8, label="exact")
    left.set(xscale="log", yscale="log", xlabel="measured, ms a step", ylabel="formula, ms a step")
    left.legend(fontsize=8)
    workers = range(1, 65)
    styles = (("#d55e00", "-"), ("#009e73", "--"), ("#0072b2", ":"))
    for (gigabits, latency), (colour, style) in zip(networks, styles, strict=True):
        for weights, width in ((100_000, 0.9), (6_300_000, 2.2)):
            one = seconds(weights, batch_size, 1)
            faster = [one / seconds(weights, batch_size / n, n, gigabits, latency) for n in workers]
            right.plot(
                workers,
                faster,
                style,
                color=colour,
                linewidth=width,
                label=f"{gigabits} Gbit/s, {latency * 1e6:.0f} µs: {weights / 1e6:g} million",
            )
            best = max(workers, key=lambda n, faster=faster: faster[n - 1])
            right.plot(best, faster[best - 1], "o", color=colour, markersize=5)
    right.axhline(1, color="black", linewidth=0.8)
    right.set(
        xscale="log",
        yscale="log",
        xlabel="workers, one core each",
        ylabel="times faster than one worker",
        title=f"Formula, batch_size {batch_size}; dots: no more workers than this",
    )
    right.title.set_fontsize(9)
    right.set_xticks([1, 2, 4, 8, 16, 32, 64], [str(n) for n in (1, 2, 4, 8, 16, 32, 64)])
    right.set_yticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
    right.minorticks_off()
    right.set_ylim(top=right.get_ylim()[1] * 4)  # room for the legend
    right.legend(fontsize=7, ncols=2, loc="upper left", title="network: weights", title_fontsize=7)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(results["machine"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
