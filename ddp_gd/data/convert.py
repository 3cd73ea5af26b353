"""From files to arrays that are mapped into memory: checked, converted once, kept in a cache.

Everything that comes out is native-endian, has its rows first and is finite, except that missing
numbers are NaN where that was asked for. Nothing is dropped, filled in or guessed unasked.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ddp_gd.data import npy_files
from ddp_gd.data.cache import Cache, hash_file, identity, remove_abandoned
from ddp_gd.data.image_files import read_images
from ddp_gd.data.origin import Origin, find
from ddp_gd.data.request import KERAS, Request
from ddp_gd.data.table import Table, open_table
from ddp_gd.errors import DataError
from ddp_gd.files import ArrayWriter
from ddp_gd.settings import cache_folder, cache_limit

# What is read in less than a second isn't kept.
CACHED_FROM_BYTES = 8 * 2**20
_FORMAT = 2  # of the cache's entries
_TEMPORARY = "ddp_gd-data-"
# Targets that are whole numbers from 0 on, each of them there, and no more than these: classes.
_MOST_CLASSES = 1000

Result = TypeVar("Result")
# What is known of the data; and what `ArrayWriter.close` returned of each file, by name.
Converted = tuple[dict[str, Any], dict[str, dict[str, Any]]]


def prepare(
    request: Request, use_cache: bool = True
) -> Generator[float, None, tuple[dict[str, Any], Path | None]]:
    """Convert what isn't converted yet.

    Yields:
        How much is done, from 0 to 1, several times a second.

    Returns:
        What `open_prepared` needs, and a folder to remove afterwards, if the data are not kept.

    Raises:
        DataError: naming what can't be used.
    """
    source = find(request)
    size = max(1, sum(path.stat().st_size for path in source.paths))
    cache = Cache(cache_folder(), cache_limit())
    kept = size >= CACHED_FROM_BYTES or source.kind in ("keras", "images")
    use_cache = use_cache and kept
    if not use_cache:
        remove_abandoned(Path(tempfile.gettempdir()), _TEMPORARY)
    before = [identity(path) for path in source.paths]
    contents: list[str] = []
    done = 0.0
    if use_cache and source.kind == "images":
        contents.append((yield from _progress(cache.digest_all(source.paths), 0.0, 0.2 / size)))
        done = 0.2
    for path in source.paths if not contents else ():
        reading = cache.digest(path) if use_cache else hash_file(path)
        contents.append((yield from _progress(reading, done, 0.2 / size)))
        done += 0.2 * path.stat().st_size / size
    key = _key(source, contents)
    if use_cache and (found := cache.find(key)) is not None:
        return _with_arrays(source, *found), None
    folder = cache.begin() if use_cache else Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        record, files = yield from _progress(convert(source, folder), 0.2, 0.8)
        if before != [identity(path) for path in source.paths]:
            raise DataError(f"{request.name} changed while it was read: start again.")
        record |= {"key": key, "held": sorted(files)}
        if use_cache:
            folder = cache.keep(folder, key, record, files)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            f"The converted data can't be written to {folder.parent} ({error.strerror}): make room "
            "there, or choose another folder (DDP_GD_CACHE, or TMPDIR with cache=False)."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _with_arrays(source, folder, record), None if use_cache else folder


def _with_arrays(source: Origin, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A record with where the arrays lie."""
    # Equal files may lie elsewhere than those that an entry was made of.
    arrays = {name: str(path.absolute()) for name, path in source.arrays.items()}
    arrays |= {Path(name).stem: str(folder / name) for name in record["held"]}
    return record | {"arrays": arrays}


def _progress(
    work: Generator[float, None, Result], done: float, scale: float
) -> Generator[float, None, Result]:
    """Do a part of the work, and yield how much of all is done."""
    while True:
        try:
            part = next(work)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield done + scale * part


def _key(source: Origin, contents: list[str]) -> str:
    """Hash all that the converted data depend on: contents, but no names of files."""
    what: list[Any] = [_FORMAT, source.kind, source.request.targets_needed, contents]
    if source.kind == "table":
        what.append(dataclasses.asdict(dataclasses.replace(source.request, source=())))
    if source.images is not None:
        what += [source.request.image_size, source.images.names, source.images.classes]
    if source.kind == "keras":
        what += [source.keras, importlib.metadata.version("keras")]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def convert(source: Origin, folder: Path) -> Generator[float, None, Converted]:
    """Write the arrays of a source into a folder; yields how much is done, from 0 to 1."""
    how = {"table": _convert_table, "images": _convert_images}.get(source.kind, _convert_arrays)
    return (yield from how(source, folder))


class _Array(NamedTuple):
    """An array of a source; one that can be mapped from where it lies isn't copied."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterator[np.ndarray]
    copied: bool


def _open_arrays(source: Origin) -> dict[str, _Array]:
    if source.kind == "npz":
        path = source.paths[0]
        return {
            name: _Array(header.shape, header.dtype, npy_files.npz_blocks(path, name), copied=True)
            for name, header in npy_files.npz_headers(path, source.request.targets_needed).items()
        }
    opened = {name: npy_files.open_npy(path) for name, path in source.arrays.items()}
    return {
        name: _Array(
            array.shape,
            array.dtype,
            npy_files.blocks_of(array, name, source.request.name),
            copied=name not in opened or not npy_files.is_plain(array),
        )
        for name, array in (opened or _keras_arrays(*source.keras)).items()
    }


def _convert_arrays(source: Origin, folder: Path) -> Generator[float, None, Converted]:
    request = source.request
    arrays = _open_arrays(source)
    rows = arrays["x"].shape[0]
    for name, array in arrays.items():
        if array.shape[0] != rows:
            raise DataError(
                f"{request.name}: x has {rows} rows, but {name} has {array.shape[0]}: give every "
                "row its own."
            )
    weights = arrays["sample_weight"].shape if "sample_weight" in arrays else ()
    if math.prod(weights[1:]) != 1:
        raise DataError(f"{request.name}: sample_weight has shape {weights}: give (rows,).")
    done = 0
    record: dict[str, Any] = {"dropped": 0}
    with _Output(folder, request.name, request.name, _MOST_CLASSES) as output:
        # Known before anything is unpacked.
        sizes = [math.prod(a.shape) * a.dtype.itemsize for a in arrays.values() if a.copied]
        output.require_room(sum(sizes))
        for name, array in arrays.items():
            for block in array.blocks:
                output.add(name, block, array.copied)
                done += len(block)
                yield done / (rows * len(arrays))
            width = array.shape[-1] if len(array.shape) > 1 else 1
            record[f"{name}_names"] = [name] if width == 1 else [f"{name}{i}" for i in range(width)]
        files = output.finish()
    return record | {"classes": output.classes}, files


def _convert_table(source: Origin, folder: Path) -> Generator[float, None, Converted]:
    request = source.request
    table = open_table(source.paths, request)
    features, targets = table.features, len(request.target)
    first_target = table.names[features] if targets else ""
    of_class = bool(targets) and table.kinds[first_target] != "number"
    # The numbers of the categories must be exact.
    dtype = "float32" if request.dtype == "float16" and table.categories else request.dtype
    total = sum(path.stat().st_size for path in source.paths)
    rows = 0
    weights = f"{table.paths[0]}: {request.sample_weight!r}"
    most = math.inf if of_class else _MOST_CLASSES
    with _Output(folder, request.name, weights, most) as output:
        for block, position in table.blocks():
            output.require_room(block.nbytes)
            rows += len(block)
            output.add("x", _as(block[:, :features], dtype, table))
            if targets:
                columns = block[:, features : features + targets]
                output.add("y", columns.astype(np.int64) if of_class else columns)
            if request.sample_weight:
                output.add("sample_weight", block[:, -1])
            yield min(1.0, position / total)
        if rows == 0:
            raise DataError(f"{table.paths[0]}: every row has a missing cell, so none is left.")
        files = output.finish()
    names = table.names[:features]
    record = {
        "x_names": names,
        "y_names": list(request.target),
        "kinds": [table.kinds[name] for name in names],
        "categories": {
            str(place): list(table.categories[name])
            for place, name in enumerate(names)
            if name in table.categories
        },
        "class_names": list(table.categories[first_target]) if of_class else None,
        "classes": output.classes,
        "dropped": table.dropped,
        "missing": request.missing == "mean",
        "missing_cells": table.missing,
    }
    return record, files


def _convert_images(source: Origin, folder: Path) -> Generator[float, None, Converted]:
    request, images = source.request, source.images
    assert images is not None
    assert request.image_size is not None
    height, width = request.image_size
    rows = 0
    with _Output(folder, request.name, request.name, math.inf) as output:
        output.require_room(len(images.paths) * height * width * 3)
        for block in read_images(images.paths, (height, width)):
            output.add("x", block)
            if request.targets_needed:
                numbers = images.classes[rows : rows + len(block)]
                output.add("y", np.array(numbers, np.int64))
            rows += len(block)
            yield rows / len(images.paths)
        files = output.finish()
    record = {
        "x_names": ["red", "green", "blue"],
        "y_names": ["class"] if request.targets_needed else [],
        "class_names": list(images.names) if request.targets_needed else None,
        "classes": output.classes,
        "dropped": 0,
    }
    return record, files


def _as(block: np.ndarray, dtype: str, table: Table) -> np.ndarray:
    """The features in their dtype, which must not make infinity of a number."""
    with np.errstate(over="ignore"):
        cast = block.astype(dtype)
    if np.isinf(cast).any():
        raise DataError(
            f"{table.paths[0]}: {block[np.isinf(cast)][0]} is too large for dtype {dtype!r}: "
            "leave dtype at 'float64'."
        )
    return cast


class _Output(contextlib.ExitStack):
    """The files of a conversion; targets and weights are looked at on their way."""

    def __init__(self, folder: Path, name: str, weights: str, most_classes: float):
        super().__init__()
        self._folder = folder
        self._free, self._limit = shutil.disk_usage(folder).free, cache_limit()
        self._name = name
        self._weights_name = weights
        self._most_classes = most_classes  # targets of more different whole numbers are amounts
        self._writers: dict[str, ArrayWriter] = {}
        self._weight: float | None = None  # of all rows
        self._seen: np.ndarray | None = np.zeros(0, bool)  # class numbers; None: amounts

    def require_room(self, more: int) -> None:
        """Refuse to write so many bytes more if there isn't room, or it isn't allowed."""
        needed = more + sum(writer.size for writer in self._writers.values())
        if needed <= min(self._free, self._limit):
            return
        remedy = f"{self._limit} are allowed: raise DDP_GD_CACHE_BYTES."
        if self._free <= self._limit:
            remedy = (
                f"{self._folder.parent} has {self._free} free: make room there, or choose another "
                "folder (DDP_GD_CACHE, or TMPDIR with cache=False)."
            )
        raise DataError(f"{self._name} takes at least {needed} bytes unpacked, and {remedy}.")

    def add(self, name: str, block: np.ndarray, copied: bool = True) -> None:
        """Look at some rows of an array, and write them."""
        block = block.reshape(-1, 1) if block.ndim == 1 else block
        if name == "y":
            self._see_classes(block)
        elif name == "sample_weight":
            block = block.reshape(-1)
            if (block < 0).any():
                raise DataError(
                    f"{self._weights_name}: the weight {block.min()} is below 0: give weights of 0 "
                    "or more."
                )
            self._weight = (self._weight or 0.0) + float(block.sum(dtype=np.float64))
        if copied:
            if name not in self._writers:
                writer = ArrayWriter(self._folder / f"{name}.npy", block.dtype, block.shape[1:])
                self._writers[name] = self.enter_context(writer)
            self._writers[name].append(block)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Return when the files are on the disk: what `ArrayWriter.close` returned, by name."""
        if self._weight == 0:
            raise DataError(
                f"{self._weights_name}: all weights are 0, so there is nothing to train on."
            )
        return {f"{name}.npy": writer.close() for name, writer in self._writers.items()}

    @property
    def classes(self) -> int | None:
        """How many classes the targets are; None if they are something else."""
        if self._seen is None or len(self._seen) < 2 or not self._seen.all():
            return None
        return len(self._seen)

    def _see_classes(self, block: np.ndarray) -> None:
        if self._seen is None or not len(block):
            return
        whole = block[0].size == 1 and block.min() >= 0 and not np.any(block % 1)
        if not whole or block.max() >= self._most_classes:
            self._seen = None
            return
        numbers = np.unique(block).astype(np.int64)
        if numbers[-1] >= len(self._seen):
            self._seen = np.pad(self._seen, (0, numbers[-1] + 1 - len(self._seen)))
        self._seen[numbers] = True


def _keras_arrays(name: str, part: str) -> dict[str, np.ndarray]:
    """One of `keras.datasets`, which Keras downloads if it isn't there, and checks by its hash."""
    import keras

    known = sorted(n for n in dir(keras.datasets) if not n.startswith("_"))
    if name not in known:
        raise DataError(f"{KERAS}{name} is not among keras.datasets: {', '.join(known)}.")
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise DataError(f"{KERAS}{name} could not be had from Keras: {error}.") from error
    x, y = train if part == "train" else test
    if x.dtype == object:
        raise DataError(
            f"{KERAS}{name} has rows of different lengths: make them equal with "
            "keras.utils.pad_sequences, and save them with numpy.savez(path, x=..., y=...)."
        )
    return {"x": x, "y": y}
