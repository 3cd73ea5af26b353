"""The records that a training left in its folder, read back and checked."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_gd.batching.plan import Plan, plan_of
from ddp_gd.errors import ConfigError, DataError

RECORDS = ("config.json", "history.csv", "times.csv")

# How the seconds of an epoch are divided up; what is left of them is "other".
PARTS = ("compute", "reduction", "data", "validation", "other")

# Names in config.json, with what they hold.
_RECORD: dict[str, type] = {
    "command": str,
    "config": dict,
    "description": dict,
    "final": dict,
    "fingerprint": str,
    "micro_batch_size": object,
    "rows": dict,
    "seed": int,
    "unit": str,
    "versions": dict,
    "what_the_bits_depend_on": dict,
    "workers": int,
}
TIMES = ("epoch", "worker", "learning_rate", "seconds", *PARTS)  # columns of times.csv


@dataclass(frozen=True)
class Run:
    """The records of one training."""

    folder: Path
    record: Mapping[str, Any]  # config.json
    # Loss and metrics after each epoch; what isn't one number an epoch is left out.
    history: Mapping[str, list[float]]
    # A row of times.csv for each epoch and worker, see `times.Times`. Of a training that went on
    # with a saved one, only the epochs since then.
    times: list[Mapping[str, float]]
    plan: Plan


def read_run(folder: str | Path) -> Run:
    """Read the records of a training.

    Raises:
        ConfigError: it is not the folder of a training's results.
        DataError: a record is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"RUN {folder} is no folder; give the results of ddp_gd.train.")
    for name in RECORDS:
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} has no {name}; give a folder with the results of ddp_gd.train."
            )
    record = _record(folder / "config.json")
    path = folder / "config.json"
    size, rows = record["config"].get("batch_size"), record["rows"].get("training")
    try:
        plan = plan_of(rows, size, record["micro_batch_size"])
    except (ConfigError, TypeError) as error:
        raise _damaged(path, f"batch_size={size!r} of rows={rows!r}") from error
    if record["workers"] < 1:
        raise _damaged(path, f"workers={record['workers']!r}")
    history = _history(folder / "history.csv")
    times = _times(folder / "times.csv", record["workers"])
    return Run(folder, record, history, times, plan)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict):
        raise _damaged(path, f"it holds a {type(record).__name__}, not an object")
    for name, kind in _RECORD.items():
        if name not in record:
            raise _damaged(path, f"{name!r} is missing")
        if not isinstance(record[name], kind):
            raise _damaged(path, f"{name!r} is {record[name]!r}")
    for part, values in record["final"].items():
        if not isinstance(values, dict | None):
            raise _damaged(path, f"'final' of {part!r} is {values!r}")
    return record


def _history(path: Path) -> dict[str, list[float]]:
    names, rows = _table(path)
    if names[:1] != ["epoch"] or "loss" not in names:
        raise _damaged(path, f"its columns are {', '.join(names)}, without 'epoch' or 'loss'")
    if not rows:
        raise _damaged(path, "it has no row")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {
        name: [_number(path, name, cell) for cell in cells]
        for name, cells in columns.items()
        # F1Score, for one, has a number for each class.
        if name != "epoch" and not any(cell.startswith("array(") for cell in cells)
    }


def _times(path: Path, workers: int) -> list[Mapping[str, float]]:
    names, rows = _table(path)
    if tuple(names) != TIMES:
        raise _damaged(path, f"its columns are {', '.join(names)}, not {', '.join(TIMES)}")
    times: list[Mapping[str, float]] = [
        {name: _number(path, name, cell) for name, cell in zip(names, row, strict=True)}
        for row in rows
    ]
    for row in times:
        if not 0 <= row["worker"] < workers:
            raise _damaged(path, f"it names worker {row['worker']:g} of {workers}")
    return times


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(path, str(error)) from error
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise _damaged(path, f"row {number} has {len(row)} cells, not {len(names)}")
    return names, rows


def _number(path: Path, name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise _damaged(path, f"{cell!r} in the column {name!r} is no number") from None


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Train again, or give another folder.")


def is_finite(value: object) -> bool:
    """Tell whether a value of a record is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
