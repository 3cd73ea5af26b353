"""Parquet files, read in blocks of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ddp_gd.data.csv_files import Kind
from ddp_gd.errors import DataError

_BLOCK_ROWS = 1 << 14
_LONGEST_TEXT = 10_000  # bytes: a short file may repeat one in each of its rows


def kinds_of(path: Path) -> dict[str, Kind]:
    """What each column holds, by the file's schema; a kind of another name can't be used."""
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} has no rows: add at least one.")
        names = file.schema_arrow.names
        if "" in names or len(set(names)) < len(names):
            counts = Counter(names)
            name = next(n for n in names if n == "" or counts[n] > 1)
            raise DataError(
                f"{path} has more than one column called {name!r}, or columns without a name: give "
                "each column its own name."
            )
        return {column.name: _kind(column.type) for column in file.schema_arrow}
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {_short(error)}.") from error


def _kind(kind: pa.DataType) -> Kind:
    types = pa.types
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    if types.is_boolean(kind):
        return "boolean"
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return str(kind)  # type: ignore[return-value]


def blocks(path: Path, kinds: dict[str, Kind]) -> Iterator[tuple[list[pa.Array], int]]:
    """Read columns; yields some rows of each, and about how many bytes have been read."""
    try:
        texts = [n for n, kind in kinds.items() if kind == "text"]
        file = pq.ParquetFile(path, read_dictionary=texts)  # each of them once
        total = file.metadata.num_rows
        size = path.stat().st_size
        done = 0
        for batch in file.iter_batches(_BLOCK_ROWS, columns=list(kinds)):
            done += len(batch)
            columns = [_column(path, n, kind, batch.column(n)) for n, kind in kinds.items()]
            if len(batch):
                yield columns, size * done // total
    except DataError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {_short(error)}.") from error


def _column(path: Path, name: str, kind: Kind, column: pa.Array) -> pa.Array:
    if kind not in ("number", "boolean", "text"):
        raise DataError(
            f"{path}: column {name!r} is of type {kind}: write it as numbers or text, or leave it "
            "out by naming the features you want."
        )
    try:
        if pa.types.is_dictionary(column.type):
            if kind == "text":
                _require_short(path, name, column.dictionary)
            column = column.dictionary_decode()
        if kind != "number" and pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return pc.cast(column, pa.float64() if kind == "number" else pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: column {name!r} does not fit into float64 ({_short(error)}): numbers beyond "
            "2**53 lose digits. Leave it out, or name it as categorical."
        ) from error


def _require_short(path: Path, name: str, texts: pa.Array) -> None:
    if not pa.types.is_string(texts.type) and not pa.types.is_large_string(texts.type):
        return
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest > _LONGEST_TEXT:
        raise DataError(
            f"{path}: column {name!r} has a text of {longest} bytes: a category has at most "
            f"{_LONGEST_TEXT}. Leave it out by naming the features you want."
        )


def explain(path: Path, names: Sequence[str], remedy: str) -> None:
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
            elif _kind(column.type) == "text":
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
            f"{path}: {count} missing or not finite; the first, {first}. Replace it, or remove "
            f"the row or column. Missing ones: {remedy}."
        )


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
