"""Files written whole or not at all, and on the disk when they are done."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ddp_gd.errors import ConfigError

PARTIAL = ".partial"  # ends the name of a file that is being written


class ArrayWriter:
    """A `.npy` file that rows are appended to.

    Args:
        path: a new file.
        dtype: of the values.
        row_shape: of one row.
    """

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
        """Return when everything is on the disk: where the values begin, and the SHA-256 of them
        and of what stands before them."""
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder that stays where the machine stops, with those above it."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync_folder(folder.parent)


def write(folder: int, name: str, content: bytes) -> None:
    """Write a new file in the open folder: afterwards it is whole, on the disk, or not there."""
    partial = name + PARTIAL
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(partial, flags, mode=0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            left_to_write = memoryview(content)
            while left_to_write:
                left_to_write = left_to_write[file.write(left_to_write) :]
            os.fsync(descriptor)
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise
    os.fsync(folder)


def require_new_file(option: str, name: str) -> None:
    """Refuse a file to write that exists already, or can't be made.

    Raises:
        ConfigError: quoting the option.
    """
    path = Path(name)
    folder = path.absolute().parent
    if path.exists():
        raise ConfigError(f"{option} {name} exists already; give a new file, so nothing is lost.")
    if not folder.is_dir():
        raise ConfigError(f"{option} {name}: there is no folder {folder}; make it.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {name} can't be written: the folder is read-only for you.")
