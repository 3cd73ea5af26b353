"""CSV and Parquet files, read in blocks of numbers; what can't be used is found and named.

Arrow reads. Where it stops at something, a slower second pass tells what and where it is.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from .errors import DataError

Kind = Literal["number", "boolean", "text"]

BLOCK_BYTES = 1 << 22  # a CSV row, the header too, must fit into one block
_FIRST_BYTES = 1 << 20  # of a CSV file, by which the kinds of its columns are told
_BLOCK_ROWS = 1 << 16  # of a Parquet file
MOST_CATEGORIES = 10_000  # of a column: one feature each
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BOOLEANS = ("false", "true")
# What stands for a missing number; in a column of text only an empty cell does: NA is a country.
_MISSING = ["", "NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None"]


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
                texts.update({text: number for number, text in enumerate(_BOOLEANS)})

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
            read = _csv_blocks if is_csv(path) else _parquet_blocks
            for columns, position in read(self, path):
                block = self._numbers(columns, path)
                yield block, before + position
            before += path.stat().st_size

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
            explain(self, path)
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
            explain(self, path)
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
                explain(self, path)
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
        header, _ = _read_header(paths[0])
        kinds: dict[str, Kind] = {}
    else:
        kinds = _parquet_kinds(paths[0])
        header = list(kinds)
    names, features = _choose(header, wanted, paths[0])
    for path in paths[1:]:
        other = _read_header(path)[0] if is_csv(path) else list(_parquet_kinds(path))
        if other != header:
            missing = [n for n in header if n not in other] or [n for n in other if n not in header]
            difference = f"{missing[0]!r} is in one only" if missing else "their order differs"
            raise DataError(
                f"{paths[0]} and {path} have different columns ({difference}): give files with the "
                "same columns in the same order"
            )
        if not is_csv(path) and (theirs := _parquet_kinds(path)) != kinds:
            name = next(n for n in header if theirs[n] != kinds[n])
            raise DataError(
                f"{paths[0]} and {path} differ in column {name!r}, which is {kinds[name]} in one "
                f"and {theirs[name]} in the other: write both alike"
            )
    if is_csv(paths[0]):
        kinds = _csv_kinds(paths[0], names)
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


# CSV


def _text_rows(path: Path) -> Generator[tuple[int, list[str]], None, None]:
    """Each row that is not blank, with the 1-based line of the file on which it ends."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    yield reader.line_num, [cell.strip(" \t") for cell in row]
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not UTF-8 text (it has a byte 0x{byte:02x}): save it as CSV in UTF-8"
        ) from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read_header(path: Path) -> tuple[list[str], int]:
    """The column names, and the line they stand on; there is a row below it."""
    with contextlib.closing(_text_rows(path)) as rows:
        line, header = next(rows, (0, []))
        filled = next(rows, None) is not None
    if not header:
        raise DataError(f"{path} is empty: it needs a header line and rows of numbers")
    if "" in header:
        raise DataError(
            f"{path}: column {header.index('') + 1} has no name: name it in the header, or "
            "remove it (a column of row numbers is not a feature)"
        )
    duplicates = sorted({name for name in header if header.count(name) > 1})
    if duplicates:
        raise DataError(
            f"{path} has more than one column called {', '.join(map(repr, duplicates))}: "
            "give each column its own name"
        )
    if not filled:
        raise DataError(f"{path} has a header but no rows: add at least one row of numbers")
    return header, line


def _open_csv(
    path: Path, types: dict[str, pa.DataType], block_bytes: int, missing: list[str]
) -> tuple[pa.csv.CSVStreamingReader, pa.NativeFile]:
    header, line = _read_header(path)
    file = pa.OSFile(str(path))
    reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(
            column_names=header, skip_rows=line, block_size=block_bytes
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=missing,
            strings_can_be_null=False,
        ),
        # Arrow's own allocators keep gigabytes of address space for later.
        memory_pool=pa.system_memory_pool(),
    )
    return reader, file


def _csv_kinds(path: Path, names: list[str]) -> dict[str, Kind]:
    """What the columns hold, by the first rows; the others must hold the same."""
    try:
        reader, _ = _open_csv(path, dict.fromkeys(names, pa.string()), _FIRST_BYTES, [])
        first = reader.read_next_batch()
    except (pa.ArrowInvalid, StopIteration, OSError) as error:
        _explain_csv(path, dict.fromkeys(names, "text"), [], strict=False)
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    return {name: _csv_kind(column) for name, column in zip(names, first.columns, strict=True)}


def _csv_kind(column: pa.Array) -> Kind:
    values = {value.strip(" \t") for value in pc.unique(column).to_pylist()}.difference(_MISSING)
    if not values or not all(value.isprintable() for value in values):
        return "number"  # which those that aren't printable are not: that will be said
    if any(_NUMBER.fullmatch(value) or _is_float(value) for value in values):
        return "number"
    return "boolean" if {value.lower() for value in values} <= set(_BOOLEANS) else "text"


def _is_float(text: str) -> bool:
    """Tell whether the text is written like a number, infinity and decimal commas included."""
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _csv_blocks(table: Table, path: Path) -> Iterator[tuple[list[pa.Array], int]]:
    types = {
        name: pa.float64() if table.kinds[name] == "number" else pa.string() for name in table.names
    }
    missing = [] if table.wanted.missing == "error" else _MISSING
    try:
        reader, file = _open_csv(path, types, BLOCK_BYTES, missing)
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            if len(batch):
                yield batch.columns, file.tell()
    except (pa.ArrowInvalid, OSError) as error:
        explain(table, path)
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    except MemoryError as error:
        raise DataError(f"{path} cannot be read in the memory there is: {error}") from error


def _explain_csv(path: Path, kinds: dict[str, Kind], missing: list[str], strict: bool) -> None:
    """Raise the DataError that says what is wrong below the header, if this finds it."""
    with contextlib.closing(_text_rows(path)) as rows:
        _explain_rows(path, rows, kinds, missing, strict)


def _explain_rows(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    kinds: dict[str, Kind],
    missing: list[str],
    strict: bool,
) -> None:
    header, header_line = _read_header(path)
    bad = 0
    first = ""
    data_row = 0
    empty = 0
    for line, row in rows:
        if line <= header_line:
            continue
        data_row += 1
        if len(row) != len(header):
            raise DataError(
                f"{path}: data row {data_row} (line {line}) has {len(row)} cells where the "
                f"header has {len(header)} columns: check its commas and quotes"
            )
        for name, cell in zip(header, row, strict=True):
            if name not in kinds or not strict or cell in missing:
                continue
            if kinds[name] == "number":
                right = bool(_NUMBER.fullmatch(cell)) and math.isfinite(float(cell))
            elif kinds[name] == "boolean":
                right = cell.lower() in _BOOLEANS
            else:
                right = cell != ""
            if right:
                continue
            bad += 1
            empty += cell in _MISSING
            if bad == 1:
                shown = repr(cell if len(cell) <= 40 else cell[:40] + "...") if cell else "empty"
                first = f"column {name!r}, data row {data_row} (line {line}), is {shown}"
                blamed = name
                kind = "not a finite number" if kinds[name] == "number" else f"not {kinds[name]}"
    if bad:
        plural = kind.replace("not a finite number", "not finite numbers")
        count = f"1 cell is {kind}: " if bad == 1 else f"{bad} cells are {plural}; the first, "
        remedy = "Replace it, or remove the row or column"
        if empty == bad:
            remedy = "Fill in, or --missing drop|mean"
        elif not _is_float(shown.strip("'")):
            remedy += f"; or --categorical {blamed}" if len(blamed) < 20 else "; or --categorical"
        raise DataError(f"{path}: {count}{first}. {remedy}")


# Parquet


def _parquet_kinds(path: Path) -> dict[str, Kind]:
    """What each column holds, by the file's schema; a kind of another name can't be used."""
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} has no rows: add at least one")
        return {column.name: _parquet_kind(column.type) for column in file.schema_arrow}
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {_short(error)}") from error


def _parquet_kind(kind: pa.DataType) -> Kind:
    types = pa.types
    if types.is_dictionary(kind):
        return _parquet_kind(kind.value_type)
    if types.is_boolean(kind):
        return "boolean"
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return str(kind)  # type: ignore[return-value]


def _parquet_blocks(table: Table, path: Path) -> Iterator[tuple[list[pa.Array], int]]:
    try:
        file = pq.ParquetFile(path)
        total = file.metadata.num_rows
        size = path.stat().st_size
        done = 0
        for batch in file.iter_batches(_BLOCK_ROWS, columns=table.names):
            done += len(batch)
            columns = [
                _parquet_column(table, name, batch.column(name), path) for name in table.names
            ]
            if len(batch):
                yield columns, size * done // total
    except DataError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {_short(error)}") from error


def _parquet_column(table: Table, name: str, column: pa.Array, path: Path) -> pa.Array:
    kind = table.kinds[name]
    if kind not in ("number", "boolean", "text"):
        raise DataError(
            f"{path}: column {name!r} is of type {kind}: write it as numbers or text, or leave it "
            "out by naming the features you want"
        )
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return pc.cast(column, pa.float64() if kind == "number" else pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: column {name!r} does not fit into float64 ({_short(error)}): numbers beyond "
            "2**53 lose digits. Leave it out, or name it as categorical"
        ) from error


def _explain_parquet(path: Path, names: list[str]) -> None:
    """Raise the DataError that says which cells are missing or not finite."""
    bad = 0
    first = ""
    row = 0
    for batch in pq.ParquetFile(path).iter_batches(_BLOCK_ROWS, columns=names):
        for name in names:
            column = batch.column(name)
            wrong = column.is_null().to_numpy(zero_copy_only=False)
            if pa.types.is_floating(column.type):
                wrong |= ~np.isfinite(column.to_numpy(zero_copy_only=False))
            elif _parquet_kind(column.type) == "text":
                wrong |= np.array([text == "" for text in column.to_pylist()])
            if wrong.any() and not first:
                value = column[int(wrong.argmax())].as_py()
                shown = "missing" if value is None else repr(value)
                first = f"column {name!r}, row {row + int(wrong.argmax()) + 1}, is {shown}"
            bad += int(wrong.sum())
        row += len(batch)
    if bad:
        count = "1 cell is" if bad == 1 else f"{bad} cells are"
        raise DataError(
            f"{path}: {count} missing or not finite; the first, {first}. Replace it, or, for "
            "missing ones, --missing drop|mean"
        )


def explain(table: Table, path: Path) -> None:
    """Raise the DataError that says what is wrong with a file, if a second pass finds it."""
    if is_csv(path):
        missing = [] if table.wanted.missing == "error" else _MISSING
        _explain_csv(path, {n: table.kinds[n] for n in table.names}, missing, strict=True)
    else:
        _explain_parquet(path, table.names)


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
