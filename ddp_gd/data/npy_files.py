"""`.npy` and `.npz` files: headers are checked before any value is read, values block by block."""

import contextlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ddp_gd.batching.views import Reader
from ddp_gd.errors import DataError

_BLOCK_BYTES = 1 << 22
_MOST_HEADER = 1 << 16
MOST_AT_ONCE = 1 << 30  # a row, and an array in Fortran's order, is read as a whole
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # an encrypted member, or a compression that Python does not have
    ValueError,
    SyntaxError,  # of a header, which is a Python literal
    tokenize.TokenError,
    MemoryError,  # also of a directory at its end that claims to be huge
)


class Header(NamedTuple):
    """What stands before an array's values."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def npz_headers(path: Path, with_targets: bool) -> dict[str, Header]:
    """Headers of the arrays `x`, `y` and perhaps `sample_weight` of a `.npz` file, or of `x` alone.

    Raises:
        DataError: the file is broken, or they can't be used; nothing but headers has been read.
    """
    with _explained(path), zipfile.ZipFile(path) as archive:
        names = ["x", "y"] if with_targets else ["x"]
        if with_targets and "sample_weight.npy" in archive.namelist():
            names.append("sample_weight")
        return {name: _check_member(archive, name, path) for name in names}


def npz_blocks(path: Path, name: str) -> Iterator[np.ndarray]:
    """Read one array of a `.npz` file: some rows at a time, finite, native-endian."""
    with _explained(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        header = _read_header(member)
        if header.fortran and len(header.shape) > 1:
            # Its rows lie scattered: only the whole of it can be put in order.
            member.seek(0)
            blocks = iter([np.lib.format.read_array(member, allow_pickle=False)])
        else:
            blocks = _row_blocks(member, header.shape, header.dtype)
        native = header.dtype.newbyteorder("=")
        yield from _finite((np.ascontiguousarray(b, native) for b in blocks), name, path)


def open_npy(path: Path) -> np.ndarray:
    """Map a `.npy` file into memory, after a look at its header.

    Raises:
        DataError: it is broken, or its dtype or shape can't be used.
    """
    with _explained(path):
        with path.open("rb") as file:
            header = _read_header(file)
            held = path.stat().st_size - file.tell()
        _check_array(str(path), header, held)
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory: read it where there is more.") from error
    except _BROKEN as error:
        kind = path.suffix.lower()
        how = "numpy.save" if kind == ".npy" else "numpy.savez(path, x=..., y=...)"
        raise DataError(
            f"{path} is not a whole {kind} file ({error}): write it again with {how}."
        ) from error


def is_plain(array: np.ndarray) -> bool:
    """Tell whether an array's rows lie one after the other, in this machine's byte order."""
    return bool(array.flags.c_contiguous and array.dtype.isnative)


def blocks_of(array: np.ndarray, name: str, source: str) -> Iterator[np.ndarray]:
    """An array's rows, some at a time, finite, native-endian."""
    rows = max(1, _BLOCK_BYTES * len(array) // max(array.nbytes, 1))
    starts = range(0, len(array), rows)
    native = array.dtype.newbyteorder("=")
    reader = Reader(array)
    blocks = (np.ascontiguousarray(reader.take(slice(s, s + rows)), native) for s in starts)
    yield from _finite(blocks, name, source)


def _finite(blocks: Iterator[np.ndarray], name: str, source: Path | str) -> Iterator[np.ndarray]:
    """Hand blocks of rows on; refuse values that are NaN or infinite."""
    first = 0
    for block in blocks:
        finite = np.isfinite(block)
        if not finite.all():
            where = [int(i) for i in np.unravel_index(np.argmin(finite), finite.shape)]
            value = block[tuple(where)]
            where[0] += first
            count = finite.size - np.count_nonzero(finite)
            count += sum(b.size - np.count_nonzero(np.isfinite(b)) for b in blocks)
            raise DataError(
                f"{source}: {count} of the values of {name!r} are not finite; the first is "
                f"{value} at {name}[{', '.join(map(str, where))}] (counted from 0). Replace them, "
                "or remove their rows."
            )
        first += len(block)
        yield block


def _row_blocks(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        content = member.read(count * row_bytes)
        yield np.frombuffer(content, dtype, count * math.prod(shape[1:])).reshape(count, *shape[1:])
    member.read(1)  # at its end the archive's checksum is compared


def _read_header(member: IO[bytes]) -> Header:
    if np.lib.format.read_magic(member) == (1, 0):
        return Header(*np.lib.format.read_array_header_1_0(member))
    start = member.tell()
    length = int.from_bytes(member.read(4), "little")
    if length > _MOST_HEADER:  # NumPy would make room for it first
        raise ValueError(f"its header claims to have {length} bytes")
    member.seek(start)
    return Header(*np.lib.format.read_array_header_2_0(member))


def _check_member(archive: zipfile.ZipFile, name: str, path: Path) -> Header:
    """Read the header of one array, and refuse what can't be used."""
    members = archive.namelist()
    if f"{name}.npy" not in members:
        held = ", ".join(repr(member.removesuffix(".npy")) for member in members) or "nothing"
        raise DataError(
            f"{path} has no array {name!r}; it holds {held}. "
            "Write it with numpy.savez(path, x=..., y=...)."
        )
    with archive.open(f"{name}.npy") as member:
        header = _read_header(member)
        held_bytes = archive.getinfo(f"{name}.npy").file_size - member.tell()
    _check_array(f"{path}: {name!r}", header, held_bytes)
    if header.fortran and len(header.shape) > 1 and held_bytes > MOST_AT_ONCE:
        raise DataError(
            f"{path}: {name!r} has {held_bytes} bytes in Fortran's order, its rows scattered: at "
            f"most {MOST_AT_ONCE} can be read so. Write it as numpy.ascontiguousarray(...)."
        )
    return header


def _check_array(what: str, header: Header, held: int) -> None:
    shape, _, dtype = header
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(
            f"{what} has dtype {dtype}: use booleans, integers or floats of at most 64 bits."
        )
    if not shape:
        raise DataError(f"{what} is a single number: it needs rows, shape (rows, ...).")
    if min(shape) < 1:
        kind = "rows" if shape[0] < 1 else "values in a row"
        raise DataError(f"{what} has no {kind} (shape {shape}): add some.")
    # An array that claims more than its file holds must not be allocated.
    declared = math.prod(shape) * dtype.itemsize
    if declared != held:
        raise DataError(
            f"{what} of shape {shape} needs {declared} bytes but the file holds {held}: the file "
            "is damaged, write it again."
        )
    if declared // shape[0] > MOST_AT_ONCE:
        raise DataError(
            f"{what} of shape {shape} has rows of {declared // shape[0]} bytes: at most "
            f"{MOST_AT_ONCE} can be read; the first dimension is the rows, check it."
        )
