"""Losses, metrics and learning rates, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from . import style


class Curve(NamedTuple):
    """A number after each epoch.

    Attributes:
        label: for the legend.
        values: of one epoch after the other; what is not finite is left out.
        number: of the colour, from 0.
        dashed: drawn as validation is.
        first: the epoch of the first value.
        width: of the line; wide ones can be seen behind narrow ones that lie on them.
    """

    label: str
    values: Sequence[float]
    number: int = 0
    dashed: bool = False
    first: int = 1
    width: float = 1.5


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
    style.save(draw_epochs(curves, unit, style.new_figure()), path)


def draw_epochs(curves: Sequence[Curve], unit: str, figure: Figure) -> Figure:
    """Draw the curves over each other, on an axis that shows 0."""
    axes = figure.subplots()
    values = [np.where(np.isfinite(curve.values), curve.values, np.nan) for curve in curves]
    for curve, heights in zip(curves, values, strict=True):
        axes.plot(
            range(curve.first, curve.first + len(heights)),
            heights,
            color=style.colour(curve.number),
            marker=style.marker(curve.number) if len(heights) < 20 else "",
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
    style.finish(axes, "epoch", style.plain(unit))
    if len(curves) > 2:  # no room beside the curves
        figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    elif len(curves) == 2:
        axes.legend()
    return figure
