"""Tables in CSV or Parquet files, read in blocks of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import csvfiles, parquetfiles
from .csvfiles import BOOLEANS, Kind
from .errors import DataError

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
    """

    features: tuple[str, ...] | None = None
    target: tuple[str, ...] = ()
    sample_weight: str | None = None
    categorical: tuple[str, ...] = ()
    missing: Literal["error", "drop", "mean"] = "error"
    kinds: tuple[tuple[str, Kind], ...] = ()


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
                csvfiles.blocks(path, kinds, self._may_miss)
                if is_csv(path)
                else parquetfiles.blocks(path, kinds)
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
            csvfiles.explain(path, {n: self.kinds[n] for n in self.names}, self._may_miss)
        else:
            parquetfiles.explain(path, self.names)

    def _numbers(self, columns: list[pa.Array], path: Path) -> np.ndarray:
        """One block; shape (rows, columns)."""
        block = np.empty((len(columns[0]), len(self.names)))
        for index, (name, column) in enumerate(zip(self.names, columns, strict=True)):
            if self.kinds[name] == "number":
                block[:, index] = column.to_numpy(zero_copy_only=False)
            else:
                filled = self.wanted.missing == "mean" and index < self.features
                block[:, index] = self._category_numbers(name, column, path, filled)
        kept = ~np.isnan(block).any(axis=1)
        if kept.all():
            self._require_finite(block, path)
            return block
        if self.wanted.missing == "error":
            self._explain(path)
            raise DataError(f"{path} has missing cells: fill them in, or give missing='drop'")
        if self.wanted.missing == "drop":
            self.dropped += len(block) - int(kept.sum())
            block = block[kept]
        elif (missing := np.isnan(block[:, self.features :]).any(axis=0)).any():
            name = self.names[self.features + int(missing.argmax())]
            raise DataError(
                f"{path}: column {name!r} has missing cells, and a target or a weight can't be "
                "filled in: give missing='drop', which leaves such rows out"
            )
        self._require_finite(block[~np.isnan(block).any(axis=1)], path)
        return block

    def _require_finite(self, block: np.ndarray, path: Path) -> None:
        if not np.isfinite(block).all():
            self._explain(path)
            raise DataError(f"{path} has cells that are not finite: replace or remove them")

    def _category_numbers(
        self, name: str, column: pa.Array, path: Path, filled: bool
    ) -> np.ndarray:
        """Numbers of a column's texts; where there is none NaN, or that of the text ""."""
        texts = pc.utf8_trim_whitespace(column)
        if self.kinds[name] == "boolean":
            texts = pc.utf8_lower(texts)
        coded = texts.dictionary_encode()
        known = self.categories[name]
        numbers = np.empty(len(coded.dictionary) + 1)
        numbers[-1] = np.nan  # a null's
        for place, text in enumerate(coded.dictionary.to_pylist()):
            if text == "":
                numbers[place] = np.nan
            elif text in known:
                numbers[place] = known[text]
            elif self.kinds[name] == "boolean":
                self._explain(path)
                raise DataError(f"{path}: column {name!r} has {text!r} among true and false")
            else:
                numbers[place] = known.setdefault(text, len(known))
        if len(known) > MOST_CATEGORIES:
            raise DataError(
                f"{path}: column {name!r} holds more than {MOST_CATEGORIES} different texts: it "
                "identifies rows rather than describing them. Leave it out by naming the features "
                "you want"
            )
        if filled and (coded.null_count or "" in coded.dictionary.to_pylist()):
            numbers[np.isnan(numbers)] = known.setdefault("", len(known))
        indices = coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
        return numbers[indices]


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
        header, _ = csvfiles.read_header(paths[0])
        kinds: dict[str, Kind] = {}
    else:
        kinds = parquetfiles.kinds_of(paths[0])
        header = list(kinds)
    names, features = _choose(header, wanted, paths[0])
    for path in paths[1:]:
        other = csvfiles.read_header(path)[0] if is_csv(path) else list(parquetfiles.kinds_of(path))
        if other != header:
            missing = [n for n in header if n not in other] or [n for n in other if n not in header]
            difference = f"{missing[0]!r} is in one only" if missing else "their order differs"
            raise DataError(
                f"{paths[0]} and {path} have different columns ({difference}): give files with the "
                "same columns in the same order"
            )
        if not is_csv(path) and (theirs := parquetfiles.kinds_of(path)) != kinds:
            name = next(n for n in header if theirs[n] != kinds[n])
            raise DataError(
                f"{paths[0]} and {path} differ in column {name!r}, which is {kinds[name]} in one "
                f"and {theirs[name]} in the other: write both alike"
            )
    if is_csv(paths[0]):
        kinds = csvfiles.kinds_of(paths[0], names)
    kinds = {n: "text" if n in wanted.categorical else kinds[n] for n in names} | dict(wanted.kinds)
    if wanted.sample_weight and kinds[wanted.sample_weight] != "number":
        raise DataError(f"{paths[0]}: the weights in {wanted.sample_weight!r} are not numbers")
    if len(wanted.target) > 1 and any(kinds[n] != "number" for n in wanted.target):
        named = next(n for n in wanted.target if kinds[n] != "number")
        raise DataError(
            f"{paths[0]}: of several targets, {named!r} is text: classes can be predicted for one "
            "target only"
        )
    return Table(paths, wanted, names, features, kinds)


def _choose(header: list[str], wanted: Wanted, path: Path) -> tuple[list[str], int]:
    """The columns to read, and how many of them are features."""
    columns = ", ".join(map(repr, header[:30])) + (", ..." if len(header) > 30 else "")
    others = [*wanted.target, *([wanted.sample_weight] if wanted.sample_weight else [])]
    for name in [*others, *wanted.categorical, *(wanted.features or ())]:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}; its columns are {columns}")
    features = [n for n in header if n not in others]
    if wanted.features is not None:
        features = list(wanted.features)
    chosen = [*features, *others]
    twice = sorted({n for n in chosen if chosen.count(n) > 1})
    if twice:
        raise DataError(
            f"column {twice[0]!r} of {path} was given two parts to play: a column is a feature, a "
            "target or a weight, once"
        )
    stray = [n for n in wanted.categorical if n not in chosen]
    if stray:
        raise DataError(
            f"column {stray[0]!r} is named as categorical, but not as a feature: name it there, too"
        )
    if not features:
        raise DataError(
            f"{path} has only its target column {columns}: add at least one feature column"
        )
    return chosen, len(features)
