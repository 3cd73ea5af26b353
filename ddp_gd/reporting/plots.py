"""Losses, metrics and learning rates by epoch; each worker's rows and time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from ddp_gd.reporting import plot_style


class Curve(NamedTuple):
    """A number after each epoch."""

    label: str
    values: Sequence[float]  # of one epoch after the other; what is not finite is left out
    number: int = 0  # of the colour
    dashed: bool = False  # as validation is
    first: int = 1  # the epoch of the first value
    width: float = 1.5  # wide ones can be seen behind narrow ones that lie on them


def draw_losses(history: Mapping[str, Sequence[float]], path: Path, unit: str) -> None:
    """Draw the training and validation loss of every epoch.

    Args:
        history: Keras's `History.history`, with `loss` and perhaps `val_loss`.
        path: the picture; its suffix says which format.
        unit: what the vertical axis shows.
    """
    curves = [Curve("training", history["loss"])]
    if "val_loss" in history:
        curves.append(Curve("validation", history["val_loss"], 1, dashed=True))
    plot_style.save(draw_epochs(curves, unit, plot_style.new_figure()), path)


def draw_epochs(curves: Sequence[Curve], unit: str, figure: Figure) -> Figure:
    """Draw the curves over each other, on an axis that shows 0."""
    axes = figure.subplots()
    values = [np.where(np.isfinite(curve.values), curve.values, np.nan) for curve in curves]
    for curve, heights in zip(curves, values, strict=True):
        axes.plot(
            range(curve.first, curve.first + len(heights)),
            heights,
            color=plot_style.colour(curve.number),
            marker=plot_style.marker(curve.number) if len(heights) < 20 else "",
            markersize=2.5 + curve.width,
            linewidth=curve.width,
            ls="--" if curve.dashed else "-",
            label=curve.label,
        )
    low = min(np.nanmin(heights, initial=0.0) for heights in values)
    high = max(np.nanmax(heights, initial=0.0) for heights in values)
    margin = (high - low) / 20 or 1.0
    axes.set_ylim(low - margin * (low < 0), high + margin)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    plot_style.finish(axes, "epoch", plot_style.plain(unit))
    if len(curves) > 2:  # no room beside the curves
        figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    elif len(curves) == 2:
        axes.legend()
    return figure


# In print and for colour-blind eyes: no two parts have the same hatch, or the same lightness.
_LOOKS = {
    "compute": (plot_style.BLUE, ""),
    "reduction": (plot_style.VERMILION, "//"),
    "data": (plot_style.GREEN, "xx"),
    "validation": (plot_style.ORANGE, "\\\\"),
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
        axes.barh(worker, stop - start, left=start, height=0.7, color=plot_style.BLUE)
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
    left = np.zeros(len(workers))
    for part, (colour, hatch) in _LOOKS.items():
        seconds = np.maximum([times[part] for times in workers], 0.0)
        axes.barh(
            range(len(workers)),
            seconds,
            left=left,
            height=0.7,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=part,
        )
        left = left + seconds
    axes.set_xlim(left=0)
    _finish(figure, len(workers), "seconds of a mean epoch")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _figure_for(workers: int, legend: bool = False) -> Figure:
    return plot_style.new_figure(4.6, 0.9 + 0.5 * legend + 0.32 * min(workers, 40))


def _finish(figure: Figure, workers: int, x: str) -> None:
    (axes,) = figure.axes
    # One tick a worker: a locator would put fractions between few of them.
    axes.set_yticks(range(0, workers, 1 + workers // 20))
    axes.set_ylim(workers - 0.5, -0.5)
    axes.set_axisbelow(True)
    plot_style.finish(axes, x, "worker")
