"""Tables in CSV or Parquet files, read in blocks of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddp_gd.data import csv_files, parquet_files
from ddp_gd.data.csv_files import BOOLEANS, Kind
from ddp_gd.errors import DataError

MOST_CATEGORIES = 10_000  # of a column: one feature each


@dataclass(frozen=True)
class Wanted:
    """What is to be read of a table.

    Attributes:
        features: columns, in this order; None for all but the others named here.
        target: columns to predict; none where there is nothing to predict yet.
        sample_weight: column of each row's weight, or None.
        categorical: columns to take as categories although they hold numbers.
        missing: `"error"`, `"drop"` rows with a missing cell, or `"mean"`: missing numbers among
            the features become NaN, for their training mean to be put there.
        kinds: of some columns, where they are known already.
        remedy: what to do about missing cells, for the message.
    """

    features: tuple[str, ...] | None = None
    target: tuple[str, ...] = ()
    sample_weight: str | None = None
    categorical: tuple[str, ...] = ()
    missing: Literal["error", "drop", "mean"] = "error"
    kinds: tuple[tuple[str, Kind], ...] = ()
    remedy: str = "Fill in, or give missing='drop' or missing='mean'"


@dataclass
class Table:
    """The wanted columns of one or several files with the same columns.

    Attributes:
        paths: the files, in order.
        wanted: as given.
        names: the columns that are read: features, then targets, then the weight.
        features: how many of these are features.
        kinds: of each column that is read.
        categories: texts of each column that isn't numbers, in the order of their appearance, with
            their numbers; complete when all blocks have been read.
        dropped: rows left out so far, since a cell was missing.
    """

    paths: Sequence[Path]
    wanted: Wanted
    names: list[str]
    features: int
    kinds: dict[str, Kind]
    categories: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: int = 0

    def __post_init__(self) -> None:
        self.categories = {n: {} for n in self.names if self.kinds[n] != "number"}
        for name, texts in self.categories.items():
            if self.kinds[name] == "boolean":
                texts.update({text: number for number, text in enumerate(BOOLEANS)})

    def blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """Read everything once.

        Yields:
            Some rows, float64, shape (rows, columns as in `names`), with the numbers of texts in
            place of them; and how many bytes of the files have been read, about.

        Raises:
            DataError: naming the file, the place and the value.
        """
        before = 0
        for path in self.paths:
            kinds = {name: self.kinds[name] for name in self.names}
            read = (
                csv_files.blocks(path, kinds, self._may_miss, self.wanted.remedy)
                if is_csv(path)
                else parquet_files.blocks(path, kinds)
            )
            for columns, position in read:
                block = self._numbers(columns, path)
                yield block, before + position
            before += path.stat().st_size

    @property
    def _may_miss(self) -> bool:
        return self.wanted.missing != "error"

    def _explain(self, path: Path) -> None:
        """Raise the DataError that says what is wrong with a file, if a second pass finds it."""
        if is_csv(path):
            kinds = {name: self.kinds[name] for name in self.names}
            csv_files.explain(path, kinds, self._may_miss, self.wanted.remedy)
        else:
            parquet_files.explain(path, self.names, self.wanted.remedy)

    def _numbers(self, columns: list[pa.Array], path: Path) -> np.ndarray:
        """One block; shape (rows, columns)."""
        columns = [
            column if self.kinds[name] == "number" else self._texts(name, column)
            for name, column in zip(self.names, columns, strict=True)
        ]
        missing = np.stack([self._missing(column) for column in columns], axis=1)
        if missing.any():
            columns = self._without_missing(columns, missing, path)
        block = np.empty((len(columns[0]), len(self.names)))
        for index, (name, column) in enumerate(zip(self.names, columns, strict=True)):
            if self.kinds[name] == "number":
                block[:, index] = column.to_numpy(zero_copy_only=False)
            else:
                block[:, index] = self._category_numbers(name, column, path)
        if np.isinf(block).any():
            self._explain(path)
            raise DataError(f"{path} has cells that are not finite: replace or remove them.")
        return block

    def _texts(self, name: str, column: pa.Array) -> pa.Array:
        """The texts of a column of categories; a missing one is ""."""
        texts = pc.fill_null(pc.utf8_trim_whitespace(column), "")
        if self.kinds[name] == "boolean":
            if self._may_miss:
                words = pc.is_in(texts, value_set=pa.array(csv_files.MISSING))
                texts = pc.if_else(words, "", texts)
            texts = pc.utf8_lower(texts)
        return texts

    @staticmethod
    def _missing(column: pa.Array) -> np.ndarray:
        """Where a cell is missing."""
        if pa.types.is_floating(column.type):
            return np.isnan(column.to_numpy(zero_copy_only=False))
        return pc.equal(column, "").to_numpy(zero_copy_only=False)

    def _without_missing(
        self, columns: list[pa.Array], missing: np.ndarray, path: Path
    ) -> list[pa.Array]:
        """The rows that are kept; see `Wanted.missing`."""
        if self.wanted.missing == "error":
            self._explain(path)
            raise DataError(f"{path} has missing cells. {self.wanted.remedy}.")
        if self.wanted.missing == "drop":
            kept = ~missing.any(axis=1)
            self.dropped += int((~kept).sum())
            return [column.filter(pa.array(kept)) for column in columns]
        needed = missing[:, self.features :].any(axis=0)
        if needed.any():
            name = self.names[self.features + int(needed.argmax())]
            raise DataError(
                f"{path}: column {name!r} has missing cells, and a target or a weight can't be "
                "filled in: give missing='drop', which leaves such rows out."
            )
        return columns

    def _category_numbers(self, name: str, texts: pa.Array, path: Path) -> np.ndarray:
        """Numbers of a column's texts."""
        coded = texts.dictionary_encode()
        known = self.categories[name]
        found = coded.dictionary.to_pylist()
        if self.kinds[name] == "boolean" and (wrong := {*found} - {*BOOLEANS, ""}):
            self._explain(path)
            raise DataError(f"{path}: column {name!r} has {min(wrong)!r} among true and false.")
        numbers = np.array([known.setdefault(text, len(known)) for text in found], np.float64)
        if len(known) > MOST_CATEGORIES:
            raise DataError(
                f"{path}: column {name!r} holds more than {MOST_CATEGORIES} different texts: it "
                "identifies rows rather than describing them. Leave it out by naming the features "
                "you want."
            )
        return numbers[coded.indices.to_numpy(zero_copy_only=False)]


def is_csv(path: Path) -> bool:
    """Tell a CSV file from a Parquet file by its name."""
    return path.suffix.lower() == ".csv"


def open_table(paths: Sequence[Path], wanted: Wanted) -> Table:
    """Look at the columns of files, and at what is wanted of them.

    Raises:
        DataError: a file can't be read, the files have different columns, or a wanted column is not
            there.
    """
    if is_csv(paths[0]):
        header, _ = csv_files.read_header(paths[0])
        kinds: dict[str, Kind] = {}
    else:
        kinds = parquet_files.kinds_of(paths[0])
        header = list(kinds)
    names, features = _choose(header, wanted, paths[0])
    for path in paths[1:]:
        other = (
            csv_files.read_header(path)[0] if is_csv(path) else list(parquet_files.kinds_of(path))
        )
        if other != header:
            missing = [n for n in header if n not in other] or [n for n in other if n not in header]
            difference = f"{missing[0]!r} is in one only" if missing else "their order differs"
            raise DataError(
                f"{paths[0]} and {path} have different columns ({difference}): give files with the "
                "same columns in the same order."
            )
        if not is_csv(path) and (theirs := parquet_files.kinds_of(path)) != kinds:
            name = next(n for n in header if theirs[n] != kinds[n])
            raise DataError(
                f"{paths[0]} and {path} differ in column {name!r}, which is {kinds[name]} in one "
                f"and {theirs[name]} in the other: write both alike."
            )
    if is_csv(paths[0]):
        kinds = csv_files.kinds_of(paths[0], names)
    kinds = {n: "text" if n in wanted.categorical else kinds[n] for n in names} | dict(wanted.kinds)
    if wanted.sample_weight and kinds[wanted.sample_weight] != "number":
        raise DataError(f"{paths[0]}: the weights in {wanted.sample_weight!r} are not numbers.")
    if len(wanted.target) > 1 and any(kinds[n] != "number" for n in wanted.target):
        named = next(n for n in wanted.target if kinds[n] != "number")
        raise DataError(
            f"{paths[0]}: of several targets, {named!r} is text: classes can be predicted for one "
            "target only."
        )
    return Table(paths, wanted, names, features, kinds)


def _choose(header: list[str], wanted: Wanted, path: Path) -> tuple[list[str], int]:
    """The columns to read, and how many of them are features."""
    columns = ", ".join(map(repr, header[:30])) + (", ..." if len(header) > 30 else "")
    others = [*wanted.target, *([wanted.sample_weight] if wanted.sample_weight else [])]
    for name in [*others, *wanted.categorical, *(wanted.features or ())]:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}; its columns are {columns}.")
    features = [n for n in header if n not in others]
    if wanted.features is not None:
        features = list(wanted.features)
    chosen = [*features, *others]
    twice = sorted(name for name, count in Counter(chosen).items() if count > 1)
    if twice:
        raise DataError(
            f"Column {twice[0]!r} of {path} was given two parts to play: a column is a feature, a "
            "target or a weight, once."
        )
    stray = [n for n in wanted.categorical if n not in chosen]
    if stray:
        raise DataError(
            f"Column {stray[0]!r} is named as categorical, but not as a feature: name it there too."
        )
    if not features:
        raise DataError(
            f"{path} has only its target column {columns}: add at least one feature column."
        )
    return chosen, len(features)
