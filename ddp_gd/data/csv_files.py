"""CSV files: Arrow reads; where it stops at something, a slower second pass tells what."""

import contextlib
import csv
import math
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ddp_gd.errors import DataError

Kind = Literal["number", "boolean", "text"]

BLOCK_BYTES = 1 << 22  # a CSV row, the header too, must fit into one block
FIRST_BYTES = 1 << 20  # by which the kinds of the columns are told
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
BOOLEANS = ("false", "true")
# What stands for a missing number; in a column of text only an empty cell does: NA is a country.
MISSING = ["", "NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None"]


def _text_rows(path: Path) -> Generator[tuple[int, list[str]], None, None]:
    """Each row that is not blank, with the 1-based line of the file on which it ends."""
    taken, ended = 0, 0  # characters of this row so far, and the line on which the last one ended

    def lines() -> Iterator[str]:
        nonlocal taken
        while line := file.readline(BLOCK_BYTES - taken + 1):
            taken += len(line)
            if taken > BLOCK_BYTES:
                raise DataError(
                    f"{path}: the row that begins on line {ended + 1} has more than "
                    f"{BLOCK_BYTES:,} characters: end every row with a line break, and close its "
                    "quotes."
                )
            yield line

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(lines())
            width = 0
            for row in reader:
                taken, ended = 0, reader.line_num
                if not row and width == 1:
                    row = [""]
                if row:
                    width = width or len(row)
                    yield reader.line_num, [cell.strip(" \t") for cell in row]
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not UTF-8 text (it has a byte 0x{byte:02x}): save it as CSV in UTF-8."
        ) from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def names_of(path: Path) -> list[str]:
    """The columns; there is a row below them."""
    return _read_header(path)[0]


def _read_header(path: Path) -> tuple[list[str], int]:
    """The column names, and the line they stand on; there is a row below it."""
    with contextlib.closing(_text_rows(path)) as rows:
        line, header = next(rows, (0, []))
        filled = next(rows, None) is not None
    if not header:
        raise DataError(f"{path} is empty: it needs a header line and rows of numbers.")
    if not filled:
        raise DataError(f"{path} has a header but no rows: add at least one row of numbers.")
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
        parse_options=pa.csv.ParseOptions(
            newlines_in_values=True,
            ignore_empty_lines=len(header) > 1,  # where there is one column, a cell is missing
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


def kinds_of(paths: Sequence[Path], names: Sequence[str]) -> dict[str, Kind]:
    """What columns hold, by the first rows of the first file; all others must hold the same."""
    path = paths[0]
    try:
        reader, _ = _open_csv(path, dict.fromkeys(names, pa.string()), FIRST_BYTES, [])
        first = reader.read_next_batch()
    except (pa.ArrowInvalid, StopIteration, OSError) as error:
        explain(path, {}, may_miss=False, remedy="")
        raise DataError(f"{path} cannot be read as a table: {error}.") from error
    return {name: _kind(column) for name, column in zip(names, first.columns, strict=True)}


def _kind(column: pa.Array) -> Kind:
    values = {value.strip(" \t") for value in pc.unique(column).to_pylist()}.difference(MISSING)
    if not values or any(_CONTROL.search(value) for value in values):
        return "number"  # which those are not: that will be said
    if any(_NUMBER.fullmatch(value) or _is_float(value) for value in values):
        return "number"
    return "boolean" if {value.lower() for value in values} <= set(BOOLEANS) else "text"


def _is_float(text: str) -> bool:
    """Tell whether it is written like a number: infinity, commas, thousands' marks included."""
    try:
        float(re.sub(r"[,' _\u00a0\u202f]", "", text))
    except ValueError:
        return False
    return True


def blocks(
    path: Path, kinds: dict[str, Kind], may_miss: bool, remedy: str
) -> Iterator[tuple[list[pa.Array], int]]:
    """Read columns; yields some rows of each, and how many bytes have been read."""
    types = {n: pa.float64() if kind == "number" else pa.string() for n, kind in kinds.items()}
    try:
        reader, file = _open_csv(path, types, BLOCK_BYTES, MISSING if may_miss else [])
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            if len(batch):
                yield batch.columns, file.tell()
    except (pa.ArrowInvalid, OSError) as error:
        explain(path, kinds, may_miss, remedy)
        raise DataError(f"{path} cannot be read as a table: {error}.") from error
    except MemoryError as error:
        raise DataError(f"{path} cannot be read in the memory there is: {error}.") from error


def explain(path: Path, kinds: dict[str, Kind], may_miss: bool, remedy: str) -> None:
    """Raise the DataError that says what is wrong with cells of some columns, if one is.

    The remedy is for missing cells, where they may not miss.
    """
    header, header_line = _read_header(path)
    missing = MISSING if may_miss else []
    bad = empty = 0
    textual = False
    data_row = 0
    with contextlib.closing(_text_rows(path)) as rows:
        for line, row in rows:
            if line <= header_line:
                continue
            data_row += 1
            if len(row) != len(header):
                raise DataError(
                    f"{path}: data row {data_row} (line {line}) has {len(row)} cells where the "
                    f"header has {len(header)} columns: check its commas and quotes."
                )
            for name, cell in zip(header, row, strict=True):
                if name not in kinds or cell in missing or _fits(cell, kinds[name]):
                    continue
                if not bad:
                    blamed, place = name, f"data row {data_row} (line {line})"
                    shown = repr(cell[:40] + "..." * (len(cell) > 40)) if cell else "empty"
                bad += 1
                empty += cell in MISSING
                textual = textual or (cell not in MISSING and not _is_float(cell))
    if not bad:
        return
    one, several = ("a finite number", "finite numbers")
    if kinds[blamed] != "number":
        one = several = kinds[blamed]
    count = f"1 cell is not {one}: " if bad == 1 else f"{bad} cells are not {several}; the first, "
    if empty < bad:
        remedy = "Replace it, or remove the row or column"
    if textual:
        listed = f"categorical={[blamed]!r}" if len(blamed) < 20 else "name it as categorical"
        remedy += f"; or {listed}"
    raise DataError(f"{path}: {count}column {blamed!r}, {place}, is {shown}. {remedy}.")


def _fits(cell: str, kind: Kind) -> bool:
    if kind == "number":
        return bool(_NUMBER.fullmatch(cell)) and math.isfinite(float(cell))
    return cell.lower() in BOOLEANS if kind == "boolean" else cell != ""
