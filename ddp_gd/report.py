"""Pictures, drawn from saved numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import matplotlib.ticker


def draw_losses(history: Mapping[str, Sequence[float]], path: Path, unit: str) -> None:
    """Draw the training and validation loss of every epoch.

    Args:
        history: Keras's `History.history`, with `loss` and perhaps `val_loss`.
        path: the picture; its suffix says which format.
        unit: what the vertical axis shows.
    """
    figure = matplotlib.figure.Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(history["loss"]) + 1)
    few = "o" if len(history["loss"]) < 20 else ""
    # Told apart without colours too, in print or by colour-blind eyes.
    axes.plot(epochs, history["loss"], color="#0072B2", marker=few, label="training")
    if "val_loss" in history:
        axes.plot(
            epochs, history["val_loss"], color="#D55E00", marker=few, ls="--", label="validation"
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=min(0.0, *history["loss"], *history.get("val_loss", ())))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
