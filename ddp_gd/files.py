"""Files written whole or not at all, and on the disk when they are done."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddp_gd.errors import ConfigError

PARTIAL = ".partial"  # ends the names of files that are being written


class ArrayWriter:
    """A new `.npy` file that rows of one dtype and shape are appended to."""

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...]):
        self.rows = 0
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._digest = hashlib.sha256()
        self._file = path.open("xb")
        self._write_header()
        self._offset = self._file.tell()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, block: np.ndarray) -> None:
        """Add rows, shape (rows, *row_shape); they are cast to the file's dtype."""
        block = np.ascontiguousarray(block, self._dtype)
        content = block.reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._digest.update(content)
        self.rows += len(block)

    @property
    def size(self) -> int:
        """Bytes of all values so far."""
        return self.rows * self._dtype.itemsize * math.prod(self._row_shape)

    def close(self) -> dict[str, Any]:
        """Bring everything to the disk.

        Returns:
            Where the values begin, and the SHA-256 of them and then of what stands before them.
        """
        self._file.seek(0)
        header = self._write_header()  # as long: NumPy leaves room for the number of rows
        assert len(header) == self._offset
        self._digest.update(header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"sha256": self._digest.hexdigest(), "offset": self._offset}

    def _write_header(self) -> bytes:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.rows, *self._row_shape),
            },
        )
        self._file.write(header.getvalue())
        return header.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file: afterwards it is whole and on the disk, or what was there before is."""
    descriptor, partial = tempfile.mkstemp(PARTIAL, f"{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write` does."""
    write(path, json.dumps(content).encode())


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give another path to write a file at; when all went well it is moved to its own.

    Raises:
        FileExistsError: another program has made the file meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.absolute().parent) as name:
        partial = Path(name) / path.name
        yield partial
        sync(partial)
        if path.exists():
            raise FileExistsError(f"{path} was made by another program meanwhile")
        partial.rename(path)
    sync(path.absolute().parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; their names are on the disk, too."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Return when a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_new_file(argument: str, path: str) -> None:
    """Refuse a file to write that exists already, or can't be made.

    Raises:
        ConfigError: it quotes the argument.
    """
    folder = Path(path).absolute().parent
    given = f"{argument}={path!r}"
    if Path(path).exists():
        raise ConfigError(f"{given} exists already; give a new file, so nothing is lost.")
    if not folder.is_dir():
        raise ConfigError(f"{given}: there is no folder {folder}; make it.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{given} can't be written: the folder is read-only for you.")
