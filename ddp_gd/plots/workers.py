"""What each worker did: its rows of a step, and its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.ticker
from matplotlib.figure import Figure

from . import style

# In print and for colour-blind eyes: no two parts have the same hatch, or the same lightness.
_LOOKS = {
    "compute": (style.BLUE, ""),
    "reduction": (style.VERMILION, "//"),
    "data": (style.GREEN, "xx"),
    "validation": (style.ORANGE, "\\\\"),
    "other": ("#BBBBBB", ""),
}


def draw_shares(shares: Sequence[tuple[int, int]], rows: int) -> Figure:
    """Draw one global mini-batch, and which worker computes which of its rows.

    Args:
        shares: the first row of each worker, and the first that isn't its own any more, from 0.
        rows: of the global mini-batch.
    """
    figure = _figure_for(len(shares))
    axes = figure.subplots()
    for worker, (start, stop) in enumerate(shares):
        axes.barh(worker, stop - start, left=start, height=0.7, color=style.BLUE)
    axes.set_xlim(0, rows)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _finish(figure, len(shares), "row of the global mini-batch")
    return figure


def draw_times(workers: Sequence[Mapping[str, float]]) -> Figure:
    """Draw how each worker spent an epoch, a bar for each of them.

    Args:
        workers: seconds by part, of each worker.
    """
    figure = _figure_for(len(workers), legend=True)
    axes = figure.subplots()
    for part, (colour, hatch) in _LOOKS.items():
        left = [_before(times, part) for times in workers]
        axes.barh(
            range(len(workers)),
            [max(times[part], 0.0) for times in workers],
            left=left,
            height=0.7,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=part,
        )
    axes.set_xlim(left=0)
    _finish(figure, len(workers), "seconds an epoch")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _before(times: Mapping[str, float], part: str) -> float:
    names = list(_LOOKS)
    return sum(max(times[name], 0.0) for name in names[: names.index(part)])


def _figure_for(workers: int, legend: bool = False) -> Figure:
    return style.new_figure(4.6, 0.9 + 0.5 * legend + 0.32 * min(workers, 40))


def _finish(figure: Figure, workers: int, x: str) -> None:
    (axes,) = figure.axes
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=20, integer=True))
    axes.set_ylim(workers - 0.5, -0.5)
    axes.set_axisbelow(True)
    style.finish(axes, x, "worker")
