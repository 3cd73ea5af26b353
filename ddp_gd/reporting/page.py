"""Pages about trainings, made of their saved records alone: report.html, and comparisons.

One file each, without scripts and without anything to load. Every value goes through the template's
escaping, and pictures are `<img>`s, whose content can neither run nor load anything.
"""

import base64
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from ddp_gd.reporting import plot_style
from ddp_gd.reporting.plots import Curve, draw_epochs, draw_shares, draw_times
from ddp_gd.reporting.records import PARTS, Run, is_finite

_WIDTH, _HEIGHT = 4.6, 3.0  # inches; small, so that letters are large enough on a phone


class Picture(NamedTuple):
    """A drawing as the template wants it: what it shows, in words, and its SVG."""

    text: str
    base64: str


@dataclass(frozen=True)
class PageTable:
    """Rows of cells, each beginning with the name of the row."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    caption: str = ""
    numbers: bool = True


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    texts: Sequence[str] = ()
    commands: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[PageTable] = ()


_BASELINES = (
    "To compare with: an R2 of 0 is what always predicting the mean gives, 1 is without error; an "
    "accuracy is as good as naming the most frequent class where it equals that class's share."
)


def report(run: Run) -> str:
    """The page about one training."""
    record = run.record
    command = record["command"]
    if record["config"].get("seed") is None:
        command += f" --seed {record['seed']}"
    text = "To train this again, with --out as another new folder"
    if record["workers"] > 1:
        text += f"; with as many workers, start it with: horovodrun -np {record['workers']}"
    settings = Section(
        "Setting",
        texts=[f"{text}."],
        commands=[command],
        tables=[_facts_table(record["description"])],
    )
    end = Section(
        "Result",
        texts=[_BASELINES],
        tables=[_finals([run])] if record["final"] else [],
    )
    origin = Section(
        "Made with",
        texts=["Fingerprint (SHA-256 of the weights; equal means equal to the last bit):"],
        commands=[record["fingerprint"]],
        tables=[
            _facts_table(record["versions"], "Versions"),
            _facts_table(record["what_the_bits_depend_on"], "What the last bits depend on"),
            _facts_table(record["config"], "Every option"),
        ],
    )
    sections = [end, _curves([run]), _workers(run), _time(run), settings, origin]
    return _render(f"Training {run.folder.name}", sections)


def comparison(runs: Sequence[Run]) -> str:
    """The page about several trainings, beside each other."""
    sections = [_names(runs), _differences(runs), _results(runs), _curves(runs), _times(runs)]
    return _render(f"{len(runs)} trainings compared", sections)


def _numbers(runs: Sequence[Run]) -> list[str]:
    """The head of a table with a column for each run."""
    return ["", *(str(number) for number in range(1, len(runs) + 1))]


def _names(runs: Sequence[Run]) -> Section:
    rows = [[str(n), str(r.folder), r.record["command"]] for n, r in enumerate(runs, start=1)]
    return Section("Runs", tables=[PageTable(rows, ["run", "folder", "command"], numbers=False)])


def _differences(runs: Sequence[Run]) -> Section:
    """The settings that are not the same in all runs."""
    settings = [dict(_texts({**run.record["config"], **_facts(run)})) for run in runs]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    different = [
        [key, *(setting.get(key, "-") for setting in settings)]
        for key in keys
        if len({setting.get(key) for setting in settings}) > 1
    ]
    if not different:
        return Section("What differs", ["Nothing in the settings differs."])
    table = PageTable(different, _numbers(runs), numbers=False)
    return Section("What differs", tables=[table])


def _results(runs: Sequence[Run]) -> Section:
    """Losses at the end, and which weights are the same."""
    prints = [run.record["fingerprint"] for run in runs]
    equal = (
        "All fingerprints are equal: the weights are the same to the last bit."
        if len(set(prints)) == 1
        else "No two fingerprints are equal."
        if len(set(prints)) == len(runs)
        else "Some fingerprints are equal: these runs' weights are the same to the last bit."
    )
    rows = [
        ["fingerprint", *(value[:12] for value in prints)],
        ["the same as run", *(str(prints.index(value) + 1) for value in prints)],
    ]
    return Section("Result", [equal], tables=[_finals(runs), PageTable(rows, _numbers(runs))])


def _times(runs: Sequence[Run]) -> Section:
    """Show what the epochs of each run took."""
    seconds = [[_seconds(epoch) for epoch in _epochs(run)] or [0.0] for run in runs]
    later = [statistics.median(s[1:] or s) for s in seconds]
    numbers = {
        "all epochs, seconds": [sum(s) for s in seconds],
        "first epoch, seconds": [s[0] for s in seconds],
        "a later epoch, median": later,
        **{f"{part} in it": [_mean(run, part) for run in runs] for part in PARTS},
    }
    rows = [[name, *(f"{value:.4g}" for value in values)] for name, values in numbers.items()]
    return Section("Time", [_TIME_TEXT], tables=[PageTable(rows, _numbers(runs))])


def _facts(run: Run) -> dict[str, Any]:
    record = run.record
    names = ("seed", "workers", "micro_batch_size")
    return {name: record[name] for name in names} | {
        "data": record["description"].get("data", "-"),
        **{f"version of {name}": value for name, value in record["versions"].items()},
        **record["what_the_bits_depend_on"],
    }


def _finals(runs: Sequence[Run]) -> PageTable:
    """Losses and metrics at the end, in the target's own units."""
    rows = []
    for part in dict.fromkeys(part for run in runs for part in run.record["final"]):
        values = [run.record["final"].get(part) or {} for run in runs]
        for name in dict.fromkeys(name for value in values for name in value):
            numbers = [value.get(name) for value in values]
            cells = [f"{n:.6g}" if is_finite(n) else "not a finite number" for n in numbers]
            rows.append([f"{part} {name}".replace("_", " "), *cells])
    head = _numbers(runs) if len(runs) > 1 else []
    normalised = any("normalised" in run.record["unit"] for run in runs)
    return PageTable(rows, head, "At the end" + ", in the target's own units" * normalised)


def _curves(runs: Sequence[Run]) -> Section:
    """Loss, metrics and learning rate of every epoch."""
    figures = []
    names = dict.fromkeys(name for run in runs for name in run.history)
    plain = [name for name in names if not name.startswith("val_")]
    for name in sorted(plain, key=lambda name: name != "loss"):
        curves = []
        for number, run in enumerate(runs):
            label = f"{number + 1} " if len(runs) > 1 else ""
            for key, part in ((name, "training"), (f"val_{name}", "validation")):
                if key in run.history:
                    dashed = part == "validation"
                    colour = number if len(runs) > 1 else int(dashed)
                    width = _width(number, runs)
                    values = run.history[key]
                    curves.append(Curve(label + part, values, colour, dashed, width=width))
        units = {run.record["unit"] for run in runs}
        unit = units.pop() if name == "loss" and len(units) == 1 else name.replace("_", " ")
        figures.append(_picture(f"{name.capitalize()} after each epoch", curves, unit))
    rates = []
    for number, run in enumerate(runs):
        if epochs := [epoch[0] for epoch in _epochs(run)]:  # those of worker 0
            values = [epoch["learning_rate"] for epoch in epochs]
            first, width = int(epochs[0]["epoch"]), _width(number, runs)
            rates.append(Curve(f"{number + 1}", values, number, first=first, width=width))
    if rates:
        figures.append(_picture("Learning rate at the end of each epoch", rates, "learning rate"))
    text = "Training values are means over an epoch while the weights change; validation values "
    return Section("Curves", [text + "are of its end."], figures=figures)


def _width(number: int, runs: Sequence[Run]) -> float:
    return 1.5 + min(len(runs) - 1 - number, 3)


def _workers(run: Run) -> Section:
    """Show which rows of a step each worker computes."""
    plan, workers = run.plan, run.record["workers"]
    steps = dict.fromkeys([0, plan.steps - 1])
    shares = {step: [plan.share(step, w, workers) for w in range(workers)] for step in steps}
    head = ["worker", *("rows of a step" if step == 0 else "of the last step" for step in steps)]
    rows = [[str(w), *(_rows(shares[step][w]) for step in steps)] for w in range(workers)]
    first = [(share.start, share.stop) for share in shares[0]]
    text = f"One update averages {plan.step_rows(0)} rows; an epoch has {plan.steps} of them."
    if workers > 1:
        text += f" Each worker computes its share of the rows, and the {workers} sums are added."
    if plan.micro_batch_size is not None:
        text += f" A share is computed in pieces of {plan.micro_batch_size} rows."
    figure = draw_shares(first, plan.step_rows(0))
    return Section(
        "What each worker does of a step",
        [text],
        figures=[_encode("The rows of one global mini-batch that each worker computes", figure)],
        tables=[PageTable(rows, head)],
    )


def _rows(share: Any) -> str:
    count = share.stop - share.start
    return f"{share.start + 1} to {share.stop} ({count})" if count else "none"


_TIME_TEXT = (
    "compute: in TensorFlow without the collectives. reduction: from when a worker's own sums are "
    "there to when the sum of all workers is, waiting for the others included. data: waiting for "
    "rows. other: Python, callbacks, checks, checkpoints. The first epoch also builds TensorFlow's "
    "graphs and is not counted where there are others."
)


def _time(run: Run) -> Section:
    """Show how each worker spent an epoch."""
    epochs = _epochs(run)
    if not epochs:
        return Section("Time", ["No epoch was trained: the training had ended when it was saved."])
    counted = epochs[1:] or epochs
    workers = [
        {name: statistics.fmean(epoch[w][name] for epoch in counted) for name in counted[0][w]}
        for w in range(run.record["workers"])
    ]
    rows = [
        [
            str(number),
            *(f"{w[part]:.3g} ({max(w[part], 0) / w['seconds']:.0%})" for part in PARTS),
            f"{w['seconds']:.3g}",
        ]
        for number, w in enumerate(workers)
    ]
    text = (
        f"{len(epochs)} epoch{'s' * (len(epochs) > 1)} took "
        f"{sum(map(_seconds, epochs)):.4g} s, the first of them {_seconds(epochs[0]):.4g} s."
    )
    compute = [w["compute"] for w in workers]
    if len(workers) > 1:
        text += (
            f" The slowest worker computed {max(compute) / statistics.fmean(compute):.2f} times as "
            "long as the mean."
        )
    alt = "Seconds of a mean epoch on each worker, by what they were spent on"
    return Section(
        "Time",
        [text, _TIME_TEXT],
        figures=[_encode(alt, draw_times(workers))],
        tables=[PageTable(rows, ["worker", *PARTS, "all"], "Seconds of a mean epoch")],
    )


def _epochs(run: Run) -> list[list[Mapping[str, float]]]:
    """The rows of times.csv, by epoch and worker."""
    by_epoch: dict[float, list[Mapping[str, float]]] = {}
    for row in sorted(run.times, key=lambda row: (row["epoch"], row["worker"])):
        by_epoch.setdefault(row["epoch"], []).append(row)
    return list(by_epoch.values())


def _seconds(epoch: Sequence[Mapping[str, float]]) -> float:
    return max(worker["seconds"] for worker in epoch)


def _mean(run: Run, part: str) -> float:
    epochs = _epochs(run)
    values = [worker[part] for epoch in epochs[1:] or epochs for worker in epoch]
    return statistics.fmean(values or [0.0])


def _facts_table(facts: Mapping[str, Any], caption: str = "") -> PageTable:
    return PageTable(list(_texts(facts)), caption=caption, numbers=False)


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        yield name.replace("_", " "), value if isinstance(value, str) else json.dumps(value)


def _picture(text: str, curves: Sequence[Curve], unit: str) -> Picture:
    return _encode(text, draw_epochs(curves, unit, plot_style.new_figure(_WIDTH, _HEIGHT)))


def _encode(text: str, figure: plot_style.Figure) -> Picture:
    return Picture(text, base64.b64encode(plot_style.as_svg(figure).encode()).decode())


def _render(title: str, sections: Sequence[Section]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddp_gd.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html").render(title=title, sections=sections)
