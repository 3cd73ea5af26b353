"""Reads a data set into memory, or says in one message why it cannot.

Three kinds of source: a built-in name, a ``.csv`` file, and a ``.npz`` file. Everything that comes
out is finite, native-endian and has its rows first; nothing is dropped, filled in or guessed.
"""

import csv
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ddp_gd.errors import DataError

BUILT_IN = {"diabetes": "progression"}  # name -> target column of datasets/<name>.csv

_DATASETS = Path(__file__).with_name("datasets")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BLOCK_BYTES = 1 << 24  # a CSV row, the header too, must fit into one block
_BROKEN_NPZ = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # an encrypted member, or a compression that Python does not have
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Features and targets of the same rows, in memory.

    Attributes:
        features: shape (rows, columns), or (rows, ...) as a ``.npz`` file has them.
        targets: shape (rows, k), or (rows, ...) as a ``.npz`` file has them.
        feature_names: one name for each entry of the last axis of ``features``.
        target_names: one name for each entry of the last axis of ``targets``.
        source: what :func:`load` was given.

    A CSV file gives float64, in the file's own units, so that a normaliser sees all the digits. A
    ``.npz`` file keeps its dtypes, so that images stay uint8 and class labels stay integers.
    """

    features: np.ndarray
    targets: np.ndarray
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    source: str


def load(source: str, target: str | None = None) -> Dataset:
    """Read a data set.

    Args:
        source: one of

            - ``diabetes``, the built-in data: 442 rows, 10 features, target ``progression``
              (``datasets/README.md`` has the origin);
            - a ``.csv`` file: UTF-8, commas, one header line, nothing but finite numbers below it.
              Blank lines are skipped, spaces around names and numbers are ignored;
            - a ``.npz`` file with the arrays ``x`` and ``y``, rows first, of any numeric dtype. A
              1-d array of n rows becomes one column, shape (n, 1).
        target: the CSV column to predict; all the others are features. Not for ``.npz``.

    Raises:
        DataError: the source is unknown, cannot be read, or holds something that is not a finite
            number. The message names the file, the place and the value.
    """
    suffix = Path(source).suffix.lower()
    if source in BUILT_IN:
        path = _DATASETS / f"{source}.csv"
        return _load_csv(path, BUILT_IN[source] if target is None else target, source)
    if suffix not in (".csv", ".npz"):
        raise DataError(
            f"unknown data {source!r}: give a .csv file, a .npz file, or a built-in name "
            f"({', '.join(BUILT_IN)})"
        )
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{source} is a folder: give the file in it")
    if not path.is_file():
        raise DataError(f"{source} does not exist, or is not a regular file: check the path")
    if suffix == ".csv":
        return _load_csv(path, target, source)
    if target is not None:
        raise DataError(
            f"target {target!r} names a CSV column, but {source} holds its targets in the array "
            "'y': leave the target out"
        )
    return _load_npz(path, source)


# CSV: Arrow reads; if anything is wrong, a slow second pass over the text finds what and where.


def _load_csv(path: Path, target: str | None, source: str) -> Dataset:
    try:
        header, header_line = _read_header(path, source)
        target_column = _find_target(header, target, source)
        table = _read_numbers(path, header, header_line, source)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{source} is not UTF-8 text (it has a byte 0x{byte:02x}): save it as CSV in UTF-8"
        ) from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    return Dataset(
        features=np.delete(table, target_column, axis=1),
        targets=np.ascontiguousarray(table[:, [target_column]]),
        feature_names=tuple(header[:target_column] + header[target_column + 1 :]),
        target_names=(header[target_column],),
        source=source,
    )


def _text_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the 1-based line of the file on which it ends."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        for row in reader:
            if row:
                yield reader.line_num, [cell.strip(" \t") for cell in row]


def _read_header(path: Path, source: str) -> tuple[list[str], int]:
    """The column names, and the line they stand on; there is a row below it."""
    rows = _text_rows(path)
    line, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{source} is empty: it needs a header line and rows of numbers")
    if "" in header:
        raise DataError(
            f"{source}: column {header.index('') + 1} has no name: name it in the header, or "
            "remove it (a column of row numbers is not a feature)"
        )
    duplicates = sorted({name for name in header if header.count(name) > 1})
    if duplicates:
        raise DataError(
            f"{source} has more than one column called {', '.join(map(repr, duplicates))}: "
            "give each column its own name"
        )
    if next(rows, None) is None:
        raise DataError(f"{source} has a header but no rows: add at least one row of numbers")
    return header, line


def _find_target(header: list[str], target: str | None, source: str) -> int:
    columns = ", ".join(map(repr, header))
    if target is None:
        raise DataError(f"name the target column of {source}; its columns are {columns}")
    if target not in header:
        raise DataError(f"{source} has no column {target!r}; its columns are {columns}")
    if len(header) == 1:
        raise DataError(
            f"{source} has only its target column {columns}: add at least one feature column"
        )
    return header.index(target)


def _read_numbers(path: Path, header: list[str], header_line: int, source: str) -> np.ndarray:
    """All the cells below the header, float64, shape (rows, columns)."""
    try:
        columns = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(
                column_names=header, skip_rows=header_line, block_size=_BLOCK_BYTES
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.float64()),
                null_values=[],  # an empty cell is an error, not a null
            ),
        )
    except pa.ArrowInvalid as error:
        _explain_bad_cells(path, header, header_line, source)
        raise DataError(f"{source} cannot be read as a table of numbers: {error}") from error
    table = np.empty((columns.num_rows, len(header)))
    for index, column in enumerate(columns.columns):
        table[:, index] = column.to_numpy()
    if not np.isfinite(table).all():
        _explain_bad_cells(path, header, header_line, source)
        raise DataError(f"{source} has cells that are not finite: replace or remove them")
    return table


def _explain_bad_cells(path: Path, header: list[str], header_line: int, source: str) -> None:
    """Raise the DataError that says what is wrong below the header, if this finds it."""
    bad = 0
    first = ""
    data_row = 0
    for line, row in _text_rows(path):
        if line <= header_line:
            continue
        data_row += 1
        if len(row) != len(header):
            raise DataError(
                f"{source}: data row {data_row} (line {line}) has {len(row)} cells where the "
                f"header has {len(header)} columns: check its commas and quotes"
            )
        for name, cell in zip(header, row, strict=True):
            if _NUMBER.fullmatch(cell) and math.isfinite(float(cell)):
                continue
            bad += 1
            if bad == 1:
                shown = repr(cell if len(cell) <= 40 else cell[:40] + "...") if cell else "empty"
                first = f"column {name!r}, data row {data_row} (line {line}), is {shown}"
    if bad:
        count = (
            "1 cell is not a finite number: "
            if bad == 1
            else (f"{bad} cells are not finite numbers; the first, ")
        )
        raise DataError(f"{source}: {count}{first}. Replace it, or remove the row or column")


# npz: the headers of both arrays are checked before either is read.


def _load_npz(path: Path, source: str) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {name: _check_npy(archive, name, source) for name in ("x", "y")}
            rows = {name: shape[0] for name, shape in shapes.items()}
            if rows["x"] != rows["y"]:
                raise DataError(
                    f"{source}: 'x' has {rows['x']} rows but 'y' has {rows['y']}: "
                    "give every row its target"
                )
            arrays = {name: _read_npy(archive, name, source) for name in ("x", "y")}
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{source} does not fit into memory: {error}") from error
    except _BROKEN_NPZ as error:
        raise DataError(
            f"{source} is not a whole .npz file ({error}): write it again with "
            "numpy.savez(path, x=..., y=...)"
        ) from error
    return Dataset(
        features=arrays["x"],
        targets=arrays["y"],
        feature_names=_names("x", arrays["x"].shape[-1]),
        target_names=_names("y", arrays["y"].shape[-1]),
        source=source,
    )


def _names(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}{index}" for index in range(count))


def _check_npy(archive: zipfile.ZipFile, name: str, source: str) -> tuple[int, ...]:
    """The shape of one array, from its header alone, once it is known to be usable."""
    members = archive.namelist()
    if f"{name}.npy" not in members:
        held = ", ".join(repr(member.removesuffix(".npy")) for member in members) or "nothing"
        raise DataError(
            f"{source} has no array {name!r}; it holds {held}. "
            "Write it with numpy.savez(path, x=..., y=...)"
        )
    with archive.open(f"{name}.npy") as member:
        if np.lib.format.read_magic(member) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        header_bytes = member.tell()
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(
            f"{source}: {name!r} has dtype {dtype}: use booleans, integers or floats of at most "
            "64 bits"
        )
    if not shape:
        raise DataError(f"{source}: {name!r} is a single number: it needs rows, shape (rows, ...)")
    if min(shape) < 1:
        what = "rows" if shape[0] < 1 else "values in a row"
        raise DataError(f"{source}: {name!r} has no {what} (shape {shape}): add some")
    # An array that claims more than its file holds must not be allocated.
    declared = math.prod(shape) * dtype.itemsize
    held_bytes = archive.getinfo(f"{name}.npy").file_size - header_bytes
    if declared != held_bytes:
        raise DataError(
            f"{source}: {name!r} of shape {shape} needs {declared} bytes but the file holds "
            f"{held_bytes}: the file is damaged, write it again"
        )
    return shape


def _read_npy(archive: zipfile.ZipFile, name: str, source: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.unravel_index(np.argmin(finite), finite.shape))
        raise DataError(
            f"{source}: {finite.size - np.count_nonzero(finite)} of the values of {name!r} are "
            f"not finite; the first is {array[where]} at {name}[{', '.join(map(str, where))}] "
            "(counted from 0). Replace them, or remove their rows"
        )
    return array.reshape(-1, 1) if array.ndim == 1 else array
