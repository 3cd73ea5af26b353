"""Pictures of what a study found."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes

from ddp_gd.commands.study.summary import best_of_each, speed
from ddp_gd.commands.study.trials import Result
from ddp_gd.reporting import plot_style


def draw_study(results: Sequence[Result], path: Path) -> None:
    """Draw losses against epochs, updates and seconds; learning rates; rows per second.

    Two rows of pictures for each optimizer. In the first row, each batch size at the learning rate
    that was best for it.
    """
    optimizers = list(dict.fromkeys(result.trial.optimizer for result in results))
    figure = plot_style.new_figure(12, 7 * len(optimizers))
    parts = figure.subfigures(len(optimizers), 1, squeeze=False)[:, 0]
    for part, optimizer in zip(parts, optimizers, strict=True):
        part.suptitle(optimizer, fontweight="bold")
        axes = part.subplots(2, 3)
        own = [result for result in results if result.trial.optimizer == optimizer]
        best = best_of_each(own)
        _losses(axes[0], best)
        _rates(axes[1, 0], own)
        _scaling(axes[1, 1], own, best)
        _speed(axes[1, 2], own, best)
    plot_style.save(figure, path, dpi=100)


def _losses(row: Sequence[Axes], best: Sequence[Result]) -> None:
    trained = [(number, r) for number, r in enumerate(best) if math.isfinite(r.score)]
    for number, result in trained:
        epochs = range(1, len(result.loss) + 1)
        updates = [e * result.updates for e in epochs]
        places: tuple[Sequence[float], ...] = (epochs, updates, result.clock)
        for axes, x in zip(row, places, strict=True):
            label = f"{_size(result)}, lr {result.trial.lr:g}"
            looks: dict[str, Any] = {
                "color": plot_style.colour(number),
                "marker": plot_style.marker(number),
                "markersize": 4,
            }
            axes.plot(x, result.loss, label=label, **looks)
            if result.val_loss:
                axes.plot(x, result.val_loss, ls="--", lw=1, alpha=0.7, **looks)
    validated = any(result.val_loss for _, result in trained)
    firsts = [max(r.loss[0], *r.val_loss[:1]) for _, r in trained] or [1.0]
    # One that began badly would hide the others.
    highest = min(max(firsts), 2 * abs(statistics.median(firsts)))
    lowest = min((min([*r.loss, *r.val_loss]) for _, r in trained), default=0.0)
    for axes, unit in zip(row, ("epochs", "updates", "seconds of training"), strict=True):
        axes.set_ylim(min(0.0, lowest), highest + (abs(highest) or 1.0) / 20)
        plot_style.finish(axes, unit, "loss" + " (dashed: validation)" * validated)
    row[0].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for axes in row[1:]:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        # Decades alone name no place where there is less than one; all of 1 to 9 would overlap.
        subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    if trained:
        _legend_above(row[0], "batch size, its best lr", columns=2)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with ticks at the values that were tried.

    A logarithmic locator names too many places between few values, and they overlap.
    """
    axes.set_xscale("log")
    shown = list(values[:1])
    wide = math.log(values[-1] / values[0]) / 8  # room for so many numbers
    for value in values[1:]:
        if math.log(value / shown[-1]) >= wide:
            shown.append(value)
    axes.set_xticks(shown, labels=[f"{value:g}" for value in shown])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _legend_above(axes: Axes, title: str | None = None, columns: int = 3) -> None:
    """Put the legend above the picture, where no curve is."""
    axes.legend(
        title=title,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.02),
        ncols=columns,
        fontsize="small",
        title_fontsize="small",
    )


def _rates(axes: Axes, results: Sequence[Result]) -> None:
    """The loss at the end against the learning rate."""
    fewest = min(result.trial.workers for result in results)
    finals = []
    for number, rows in enumerate(_sizes(results)):
        own = [r for r in results if r.batch_rows == rows and r.trial.workers == fewest]
        own = sorted((r for r in own if math.isfinite(r.score)), key=lambda r: r.trial.lr)
        finals += [result.score for result in own]
        axes.plot(
            [result.trial.lr for result in own],
            [result.score for result in own],
            color=plot_style.colour(number),
            marker=plot_style.marker(number),
            markersize=4,
            label=f"{rows}",
        )
    first = [r.loss[0] for r in results if r.loss and math.isfinite(r.score)]
    if finals:
        # A loss that has grown without end would hide the others.
        axes.set_ylim(
            min(0.0, *finals), min(max(finals), 1.2 * max(min(first), min(finals))) * 1.05
        )
    diverged = [result.trial.lr for result in results if not math.isfinite(result.score)]
    if diverged:
        top: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(diverged, [1.0] * len(diverged), "kx", label="diverged", **top)
    _log_axis(axes, sorted({result.trial.lr for result in results}))
    plot_style.finish(axes, "learning rate", "loss of the last epoch")
    _legend_above(axes, "batch size")


def _scaling(axes: Axes, results: Sequence[Result], best: Sequence[Result]) -> None:
    """The best learning rate against the batch size, and the one proportional to it."""
    rates = sorted({result.trial.lr for result in results})
    sizes = _sizes(results)
    for rate in rates:
        label = "tried" if rate == rates[0] else None
        axes.plot(sizes, [rate] * len(sizes), ls="", marker="_", color="#888888", label=label)
    trained = sorted((r for r in best if math.isfinite(r.score)), key=lambda r: r.batch_rows)
    if trained:
        places = [result.batch_rows for result in trained]
        own = [result.trial.lr for result in trained]
        axes.plot(places, own, color=plot_style.BLUE, marker="o", label="best measured")
        rule = [own[0] * place / places[0] for place in places]
        axes.plot(
            places, rule, color=plot_style.VERMILION, ls="--", label="proportional to batch size"
        )
    _log_axis(axes, sorted(sizes))
    axes.set_yscale("log")
    plot_style.finish(axes, "batch size", "learning rate")
    _legend_above(axes, columns=2)


def _speed(axes: Axes, results: Sequence[Result], best: Sequence[Result]) -> None:
    """Rows per second against the batch size, for each number of workers."""
    for number, workers in enumerate(sorted({result.trial.workers for result in results})):
        places = sorted(best, key=lambda result: result.batch_rows)
        axes.plot(
            [result.batch_rows for result in places],
            [speed(results, result, workers) for result in places],
            color=plot_style.colour(number),
            marker=plot_style.marker(number),
            ls=plot_style.DASHES[number % len(plot_style.DASHES)],
            label=f"{workers}",
        )
    _log_axis(axes, sorted(_sizes(results)))
    axes.set_yscale("log")
    plot_style.finish(axes, "batch size", "rows per second")
    _legend_above(axes, "workers")


def _sizes(results: Sequence[Result]) -> list[int]:
    return list(dict.fromkeys(result.batch_rows for result in results))


def _size(result: Result) -> str:
    full = result.trial.batch_size == "full"
    return f"full ({result.rows})" if full else f"{result.trial.batch_size}"
