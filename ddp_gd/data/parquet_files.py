"""Parquet files, read in blocks of rows."""

import contextlib
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


def names_of(path: Path) -> list[str]:
    """The columns; there is a row below them."""
    with _explained(path):
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} has no rows: add at least one.")
        names: list[str] = file.schema_arrow.names
        return names


def kinds_of(paths: Sequence[Path], names: Sequence[str]) -> dict[str, Kind]:
    """What columns hold, by the files' schemas; a kind of another name can't be used."""
    kinds: dict[str, Kind] = {}
    for path in paths:
        with _explained(path):
            found = {column.name: _kind(column.type) for column in pq.read_schema(path)}
        kinds = kinds or found
        if different := [name for name in kinds if found[name] != kinds[name]]:
            name = different[0]
            raise DataError(
                f"{paths[0]} and {path} differ in column {name!r}, which is {kinds[name]} in one "
                f"and {found[name]} in the other: write both alike."
            )
    return {name: kinds[name] for name in names}


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


def blocks(
    path: Path, kinds: dict[str, Kind], may_miss: bool, remedy: str
) -> Iterator[tuple[list[pa.Array], int]]:
    """Read columns; yields some rows of each, and about how many bytes have been read."""
    with _explained(path):
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


def explain(path: Path, kinds: dict[str, Kind], may_miss: bool, remedy: str) -> None:
    """Raise the DataError that says which cells are missing or not finite."""
    bad = 0
    first = ""
    row = 0
    for batch in pq.ParquetFile(path).iter_batches(_BLOCK_ROWS, columns=list(kinds)):
        for name in kinds:
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


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {_short(error)}.") from error


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
