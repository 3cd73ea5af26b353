"""Tables in CSV or Parquet files, read in blocks of numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddp_gd.data import csv_files, parquet_files
from ddp_gd.data.csv_files import BOOLEANS, Kind
from ddp_gd.data.request import Request
from ddp_gd.errors import DataError

MOST_CATEGORIES = 10_000  # of a column: one feature each


@dataclass
class Table:
    """The wanted columns of one or several files with the same columns.

    Attributes:
        paths: the files, in order.
        request: for them.
        kinds: of the columns that are read: features, then targets, then the weight.
        features: how many of these are features.
        categories: texts of each column that isn't numbers, in the order of their appearance, with
            their numbers; complete when all blocks have been read.
        dropped: rows left out so far, since a cell was missing.
        missing: numbers of features that were missing so far, and are NaN.
    """

    paths: Sequence[Path]
    request: Request
    kinds: dict[str, Kind]
    features: int
    categories: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        self.names = list(self.kinds)
        for name, kind in self.kinds.items():
            if kind != "number":
                known = BOOLEANS if kind == "boolean" else ()
                self.categories[name] = {text: number for number, text in enumerate(known)}

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
            read = _reader(path).blocks(path, self.kinds, self._may_miss, self.request.remedy)
            for columns, position in read:
                yield self._numbers(columns, path), before + position
            before += path.stat().st_size

    @property
    def _may_miss(self) -> bool:
        return self.request.missing != "error"

    def _explain(self, path: Path) -> None:
        """Raise the DataError that says what is wrong with a file, if a second pass finds it."""
        _reader(path).explain(path, self.kinds, self._may_miss, self.request.remedy)

    def _numbers(self, columns: list[pa.Array], path: Path) -> np.ndarray:
        """One block; shape (rows, columns)."""
        columns = [
            column if kind == "number" else self._texts(kind, column)
            for kind, column in zip(self.kinds.values(), columns, strict=True)
        ]
        missing = np.stack([_missing(column) for column in columns], axis=1)
        if missing.any():
            columns = self._without_missing(columns, missing, path)
        block = np.empty((len(columns[0]), len(self.names)))
        for index, (name, column) in enumerate(zip(self.names, columns, strict=True)):
            if name in self.categories:
                block[:, index] = self._category_numbers(name, column, path)
            else:
                block[:, index] = column.to_numpy(zero_copy_only=False)
        if np.isinf(block).any():
            self._explain(path)
            raise DataError(f"{path} has cells that are not finite: replace or remove them.")
        return block

    def _texts(self, kind: Kind, column: pa.Array) -> pa.Array:
        """The texts of a column of categories; a missing one is ""."""
        texts = pc.fill_null(pc.utf8_trim_whitespace(column), "")
        if kind == "boolean":
            if self._may_miss:
                words = pc.is_in(texts, value_set=pa.array(csv_files.MISSING))
                texts = pc.if_else(words, "", texts)
            texts = pc.utf8_lower(texts)
        return texts

    def _without_missing(
        self, columns: list[pa.Array], missing: np.ndarray, path: Path
    ) -> list[pa.Array]:
        """The rows that are kept; see `Request.missing`."""
        if self.request.missing == "error":
            self._explain(path)
            raise DataError(f"{path} has missing cells. {self.request.remedy}.")
        if self.request.missing == "drop":
            kept = ~missing.any(axis=1)
            self.dropped += int((~kept).sum())
            return [column.filter(pa.array(kept)) for column in columns]
        numbers = [self.kinds[name] == "number" for name in self.names[: self.features]]
        self.missing += int(missing[:, : self.features][:, numbers].sum())
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


def _missing(column: pa.Array) -> np.ndarray:
    """Where a cell is missing."""
    if pa.types.is_floating(column.type):
        return np.isnan(column.to_numpy(zero_copy_only=False))
    return pc.equal(column, "").to_numpy(zero_copy_only=False)


def names_of(path: Path) -> list[str]:
    """The columns of a file, each with a name of its own; it has rows, too.

    Raises:
        DataError: it is otherwise, or the file can't be read.
    """
    header: list[str] = _reader(path).names_of(path)
    if "" in header:
        raise DataError(
            f"{path}: column {header.index('') + 1} has no name: name it in the header, or "
            "remove it (a column of row numbers is not a feature)."
        )
    duplicates = sorted(name for name, count in Counter(header).items() if count > 1)
    if duplicates:
        raise DataError(
            f"{path} has more than one column called {', '.join(map(repr, duplicates))}: "
            "give each column its own name."
        )
    return header


def _reader(path: Path) -> ModuleType:
    return csv_files if path.suffix.lower() == ".csv" else parquet_files


def open_table(paths: Sequence[Path], request: Request) -> Table:
    """Look at the columns of files of one kind, and at what is wanted of them.

    Raises:
        DataError: a file can't be read, the files have different columns, or a wanted column is not
            there.
    """
    header = names_of(paths[0])
    names, features = _choose(header, request, paths[0])
    for path in paths[1:]:
        other = names_of(path)
        if other != header:
            missing = [n for n in header if n not in other] or [n for n in other if n not in header]
            difference = f"{missing[0]!r} is in one only" if missing else "their order differs"
            raise DataError(
                f"{paths[0]} and {path} have different columns ({difference}): give files with the "
                "same columns in the same order."
            )
    kinds: dict[str, Kind] = _reader(paths[0]).kinds_of(paths, names)
    for name in request.categorical:
        kinds[name] = "text"
    kinds |= dict(request.kinds)
    if request.sample_weight and kinds[request.sample_weight] != "number":
        raise DataError(f"{paths[0]}: the weights in {request.sample_weight!r} are not numbers.")
    for name in request.target:
        if len(request.target) > 1 and kinds[name] != "number":
            raise DataError(
                f"{paths[0]}: of several targets, {name!r} is text: classes can be predicted for "
                "one target only."
            )
    return Table(paths, request, kinds, features)


def _choose(header: list[str], request: Request, path: Path) -> tuple[list[str], int]:
    """The columns to read, and how many of them are features."""
    columns = ", ".join(map(repr, header[:30])) + (", ..." if len(header) > 30 else "")
    others = [*request.target, *([request.sample_weight] if request.sample_weight else [])]
    for name in [*others, *request.categorical, *request.exclude, *(request.features or ())]:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}; its columns are {columns}.")
    features = request.features
    if features is not None and request.exclude:
        raise DataError(
            f"exclude={list(request.exclude)} and features={list(features)} say one thing twice: "
            "name the columns that you want, or those that you don't."
        )
    if features is None:
        features = tuple(n for n in header if n not in (*others, *request.exclude))
    chosen = [*features, *others]
    for name, count in sorted(Counter(chosen).items()):
        if count > 1:
            raise DataError(
                f"Column {name!r} of {path} was given two parts to play: a column is a feature, a "
                "target or a weight, once."
            )
    for name in request.categorical:
        if name not in chosen:
            raise DataError(
                f"Column {name!r} is named as categorical, but not as a feature: name it there too."
            )
    if not features:
        raise DataError(
            f"{path} has only its target column {columns}: add at least one feature column."
        )
    return chosen, len(features)
