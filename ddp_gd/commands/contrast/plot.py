"""One averaged update beside independent updates: losses, distances, gradient noise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from ddp_gd.reporting import plot_style

_FONT = 11  # readable where the picture is shown 800 pixels wide
_A, _B, _C = plot_style.BLUE, plot_style.VERMILION, plot_style.GREEN


def draw_contrast(record: Mapping[str, Any], path: Path) -> None:
    """Draw what `python -m ddp_gd.contrast` found.

    Args:
        record: its contrast.json.
        path: the picture; its suffix says which format.
    """
    with matplotlib.rc_context({"font.size": _FONT, "legend.fontsize": _FONT - 1}):
        figure = plot_style.new_figure(8.8, 7.0)
        panels = figure.subplots(2, 2)
        _draw_losses(panels[0, 0], record)
        _draw_distances(panels[0, 1], record)
        _draw_ends(panels[1, 0], record)
        _draw_noise(panels[1, 1], record["gradient_noise"])
        plot_style.save(figure, path)


def _draw_losses(axes: Axes, record: Mapping[str, Any]) -> None:
    """(a) as one curve, and plain Keras on it; (b) as one curve for each worker."""
    curves = {name: scheme["first_seed"]["training_loss"] for name, scheme in _schemes(record)}
    alone = record["keras_in_one_process"]["training_loss"][0]
    epochs = range(len(alone))
    for number, curve in enumerate(curves["independent"]):
        label = f"(b) {len(curves['independent'])} workers, independent"
        axes.plot(epochs, _array(curve), color=_B, lw=1.2, label=None if number else label)
    workers = len(curves["averaged"])
    label = f"(a) averaged, {workers} workers" if workers > 1 else "(a) averaged"
    axes.plot(epochs, _array(curves["averaged"][0]), color=_A, lw=3, label=label)
    axes.plot(
        epochs, _array(alone), "o", color=plot_style.BLACK, ms=4, label="plain Keras, one process"
    )
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    plot_style.finish(axes, "epochs (the same rows for all)", "training loss, all rows")
    axes.set_title("One curve, or one for each worker")
    axes.legend()


def _draw_distances(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw how far apart the workers of (b) and (c) are, and those of (a) if there are several."""
    schemes = dict(_schemes(record))
    for name, colour in (("independent", _B), ("local_sgd", _C), ("averaged", _A)):
        title, seed = schemes[name]["title"], schemes[name]["first_seed"]
        if seed["workers_apart"] is None:
            continue
        apart = 100 * _array(seed["workers_apart"])
        wide = 3 if name == "averaged" else 1.5  # it lies on the axis
        axes.plot(seed["step"], apart, color=colour, lw=wide, label=title, clip_on=False)
        if name != "averaged":
            axes.plot(seed["step"], 100 * _array(seed["distance_to_a"]), "--", color=colour, lw=1)
    axes.plot([], [], "--", color=plot_style.BLACK, lw=1, label="distance from (a)")
    axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend
    axes.set_title("How far the workers are apart")
    plot_style.finish(axes, "steps", "distance, % of the weights' norm")
    axes.legend()


def _draw_ends(axes: Axes, record: Mapping[str, Any]) -> None:
    """Mean and standard deviation of the losses at the end."""
    schemes = [scheme for _, scheme in _schemes(record)]
    parts = {"training": ("o", _A, -0.12), "validation": ("s", plot_style.ORANGE, 0.12)}
    for part, (marker, colour, offset) in parts.items():
        spreads = [scheme[f"{part}_loss"] for scheme in schemes]
        axes.errorbar(
            _array([spread["mean"] for spread in spreads]),
            np.arange(len(schemes)) + offset,
            xerr=_array([spread["std"] or 0.0 for spread in spreads]),
            fmt=marker,
            color=colour,
            ms=7,
            capsize=4,
            label=part,
        )
    titles = [scheme["title"].replace("averaged ", "averaged\n") for scheme in schemes]
    axes.set_yticks(range(len(schemes)), titles)
    axes.invert_yaxis()
    plot_style.finish(axes, "loss at the end", "")
    seeds = record["config"]["seeds"]
    axes.set_title(f"Mean and standard deviation, {seeds} seeds" if seeds > 1 else "One seed")
    axes.legend()


def _draw_noise(axes: Axes, noise: Mapping[str, Any]) -> None:
    """Draw the noise as measured, as it must be, and as it would be with endless rows."""
    sizes = _array(noise["batch_size"])
    some = sizes < sizes[-1]  # all rows have no noise: nowhere on a logarithmic axis
    fine = np.geomspace(1, sizes[some][-1], 100)
    without_replacement = np.sqrt((sizes[-1] - fine) / ((sizes[-1] - 1) * fine))
    looks = ((_A, "o"), (plot_style.PURPLE, "^"))
    for (where, values), (colour, marker) in zip(noise["at"].items(), looks, strict=True):
        line = _array(values["one_over_sqrt_b"])
        axes.loglog(fine, line[0] * without_replacement, "-", color=colour, lw=1)
        axes.loglog(sizes[some], line[some], ":", color=plot_style.BLACK, lw=1.5)
        measured = _array(values["measured"])[some]
        axes.loglog(sizes[some], measured, marker, color=colour, label=where)
    axes.plot([], [], "-", color=plot_style.BLACK, lw=1, label="exact, without replacement")
    axes.plot([], [], ":", color=plot_style.BLACK, lw=1.5, label="1/sqrt(B)")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 4)  # room for the legend
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    axes.set_xticks(sizes[some][::2], [f"{size:g}" for size in sizes[some][::2]])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_title("Noise of a mini-batch's gradient")
    plot_style.finish(axes, "batch size B (rows)", "relative to the full gradient")
    axes.legend(loc="lower left")


def _schemes(record: Mapping[str, Any]) -> Any:
    return record["schemes"].items()


def _array(values: Any) -> np.ndarray:
    """Convert to floats; what was not finite, None in the record, is NaN and not drawn."""
    return np.array(values, float)
