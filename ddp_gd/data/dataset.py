"""Features and targets, mapped into memory."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddp_gd.data.table import Kind
from ddp_gd.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Features and targets of the same rows, mapped into memory.

    Attributes:
        features: shape (rows, columns), or (rows, ...) as an array file has them. A column of
            categories holds their numbers in `categories`.
        targets: shape (rows, k), or (rows, ...) as an array file has them; texts and booleans as
            class numbers, int64.
        feature_names: one name for each entry of the last axis of `features`.
        target_names: one name for each entry of the last axis of `targets`.
        source: what `load` was given.
        sample_weight: shape (rows,), or None.
        categories: for each column of `features` that holds categories, its place: their texts.
        kinds: of each feature column of a table: "number", "boolean" or "text".
        class_names: texts of the classes if the target is text or booleans, else None.
        classes: how many classes the target has if it is one column of texts or booleans, or of
            whole numbers from 0 on, each of which occurs; else None.
        missing: whether missing numbers among the features are NaN.
        missing_cells: how many there are.
        dropped: rows left out since a cell was missing.
        key: SHA-256 of everything that these arrays were made of.

    Numbers of a CSV or Parquet file are float64 unless asked for otherwise, in the file's own
    units, so that a normaliser sees all the digits. Array files keep their dtypes, so that images
    stay uint8 and class labels stay integers.
    """

    features: np.ndarray
    targets: np.ndarray
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    source: str
    sample_weight: np.ndarray | None = None
    categories: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    kinds: tuple[Kind, ...] | None = None
    class_names: tuple[str, ...] | None = None
    classes: int | None = None
    missing: bool = False
    missing_cells: int = 0
    dropped: int = 0
    key: str = ""


def open_prepared(record: dict[str, Any], source: str) -> Dataset:
    """Map converted data into memory."""

    def array(name: str) -> np.ndarray | None:
        path = record["arrays"].get(name)
        if path is None:
            return None
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise DataError(f"{path} has vanished meanwhile: start again.") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path}, of {source}, can't be mapped: {error}.") from error
        if name == "sample_weight":
            return found.reshape(-1)
        return found.reshape(-1, 1) if found.ndim == 1 else found

    class_names = record.get("class_names")
    x, y = array("x"), array("y")
    assert x is not None
    return Dataset(
        features=x,
        targets=np.zeros((len(x), 0)) if y is None else y,
        feature_names=tuple(record["x_names"]),
        target_names=tuple(record.get("y_names", ())),
        source=source,
        sample_weight=array("sample_weight"),
        categories={int(p): tuple(texts) for p, texts in record.get("categories", {}).items()},
        kinds=tuple(record["kinds"]) if "kinds" in record else None,
        class_names=None if class_names is None else tuple(class_names),
        classes=record["classes"],
        missing=record.get("missing", False),
        missing_cells=record.get("missing_cells", 0),
        dropped=record["dropped"],
        key=record["key"],
    )
