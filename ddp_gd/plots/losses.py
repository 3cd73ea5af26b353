"""The loss of every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.ticker

from . import style


def draw_losses(history: Mapping[str, Sequence[float]], path: Path, unit: str) -> None:
    """Draw the training and validation loss of every epoch.

    Args:
        history: Keras's `History.history`, with `loss` and perhaps `val_loss`.
        path: the picture; its suffix says which format.
        unit: what the vertical axis shows.
    """
    figure = style.new_figure()
    axes = figure.subplots()
    epochs = range(1, len(history["loss"]) + 1)
    few = "o" if len(history["loss"]) < 20 else ""
    axes.plot(epochs, history["loss"], color=style.BLUE, marker=few, label="training")
    if "val_loss" in history:
        axes.plot(
            epochs,
            history["val_loss"],
            color=style.VERMILION,
            marker=few,
            ls="--",
            label="validation",
        )
    axes.set_ylim(bottom=min(0.0, *history["loss"], *history.get("val_loss", ())))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    style.finish(axes, "epoch", unit)
    axes.legend()
    style.save(figure, path)
