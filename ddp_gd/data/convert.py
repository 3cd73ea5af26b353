"""From files to arrays that are mapped into memory: checked, converted once, kept in a cache.

Everything that comes out is native-endian, has its rows first and is finite, except that missing
numbers are NaN where that was asked for. Nothing is dropped, filled in or guessed unasked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_gd.data import npy_files
from ddp_gd.data.cache import Cache, hash_file, identity, read_record, remove_abandoned
from ddp_gd.data.request import KERAS, Origin, Request, find
from ddp_gd.data.table import Table, open_table
from ddp_gd.errors import DataError
from ddp_gd.files import ArrayWriter
from ddp_gd.settings import cache_folder, cache_limit

# What is read in less than a second isn't kept.
CACHED_FROM_BYTES = 8 * 2**20
_FORMAT = 1  # of the cache's entries
_TEMPORARY = "ddp_gd-data-"
# Targets that are whole numbers from 0 on, each of them there, and no more than these: classes.
_MOST_CLASSES = 1000


# From files to files


@dataclass
class Prepared:
    """Converted data on this host: a folder, what is known of it, and whether it is to be kept."""

    folder: Path
    record: dict[str, Any]
    kept: bool

    def remove(self) -> None:
        """Remove the folder, if it was for once only; who has its files mapped keeps them."""
        if not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def prepare(request: Request, use_cache: bool = True) -> Iterator[float | Prepared]:
    """Convert what isn't converted yet.

    Yields:
        How much is done, from 0 to 1, several times a second; at last what came of it.

    Raises:
        DataError: naming what can't be used.
    """
    source = find(request)
    size = sum(path.stat().st_size for path in source.paths)
    cache = Cache(cache_folder(), cache_limit())
    use_cache = use_cache and (size >= CACHED_FROM_BYTES or source.kind == "keras")
    if not use_cache:
        remove_abandoned(Path(tempfile.gettempdir()), _TEMPORARY)
    before = [identity(path) for path in source.paths]
    contents = []
    done = 0
    for path in source.paths:
        for read in cache.digest(path) if use_cache else hash_file(path):
            if isinstance(read, str):
                contents.append(read)
            else:
                yield 0.2 * (done + read) / max(size, 1)
        done += path.stat().st_size
    key = _key(source, request, contents)
    # Equal files may lie elsewhere than those that an entry was made of.
    paths = _npy_paths(source, request) if source.kind == "npy" else {}
    mapped = {"mapped": {name: str(path.absolute()) for name, path in paths.items()}}
    if use_cache and (entry := cache.find(key)) is not None:
        yield Prepared(entry, read_record(entry) | mapped, kept=True)
        return
    folder = cache.begin() if use_cache else Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        record: dict[str, Any] = {}
        for part in _convert(source, request, folder, record):
            yield 0.2 + 0.8 * part
        if before != [identity(path) for path in source.paths]:
            raise DataError(f"{request.name} changed while it was read: start again")
        files = record.pop("files")
        record |= {"key": key, "held": sorted(files)}
        if use_cache:
            folder = cache.keep(folder, key, record, files)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            f"the converted data can't be written to {folder.parent} ({error.strerror}): make room "
            "there, or choose another folder (DDP_GD_CACHE; TMPDIR for --no-cache)"
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    yield Prepared(folder, record | mapped, kept=use_cache)


def _key(source: Origin, request: Request, contents: list[str]) -> str:
    what: list[Any] = [
        _FORMAT,
        request.targets_needed,
        source.kind,
        contents,
        dataclasses.asdict(source.wanted),
        request.dtype,
    ]
    if source.kind == "keras":
        what += [source.keras, importlib.metadata.version("keras")]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _convert(
    source: Origin, request: Request, folder: Path, record: dict[str, Any]
) -> Iterator[float]:
    """Write the arrays of a source, and what is known of them."""
    with contextlib.ExitStack() as files:
        if source.kind == "table":
            yield from _convert_table(source, request, folder, record, files)
        else:
            yield from _convert_arrays(source, request, folder, record, files)


def _convert_arrays(
    source: Origin,
    request: Request,
    folder: Path,
    record: dict[str, Any],
    files: contextlib.ExitStack,
) -> Iterator[float]:
    record |= {"files": {}, "dropped": 0}
    arrays: dict[str, Any]
    opened: dict[str, np.ndarray] = {}
    if source.kind == "npz":
        path = source.paths[0]
        arrays = {
            name: (shape, dtype, npy_files.npz_blocks(path, name))
            for name, (shape, dtype) in npy_files.npz_arrays(path, request.targets_needed).items()
        }
    else:
        if source.kind == "npy":
            found = _npy_paths(source, request).items()
            opened = {name: npy_files.open_npy(path) for name, path in found}
        else:
            opened = _keras_arrays(*source.keras)
        arrays = {
            name: (a.shape, a.dtype, npy_files.blocks_of(a, name, request.name))
            for name, a in opened.items()
        }
    # Arrays that can be mapped from where they are need no copy.
    copied = {name: source.kind != "npy" or not npy_files.is_plain(opened[name]) for name in arrays}
    needed = sum(
        math.prod(shape) * dtype.itemsize
        for name, (shape, dtype, _) in arrays.items()
        if copied[name]
    )
    _Room(folder, request.name).require(needed)  # known before anything is unpacked
    rows = arrays["x"][0][0]
    for name, (shape, *_) in arrays.items():
        if shape[0] != rows:
            raise DataError(f"{request.name}: x has {rows} rows, but {name} has {shape[0]}")
    weight_shape = arrays["sample_weight"][0] if "sample_weight" in arrays else ()
    if np.prod(weight_shape[1:]) != 1:
        raise DataError(f"{request.name}: sample_weight has shape {weight_shape}: give (rows,)")
    labels, weights = _Labels(), _Weights(request.name)
    done = 0
    for name, (shape, _, blocks) in arrays.items():
        writer = None
        for block in blocks:
            if name == "sample_weight":
                block = block.reshape(-1)
                weights.add(block)
            elif block.ndim == 1:
                block = block.reshape(-1, 1)
            if name == "y":
                labels.add(block)
            if writer is None and copied[name]:
                writer = ArrayWriter(folder / f"{name}.npy", block.dtype, block.shape[1:])
                files.enter_context(writer)
            if writer is not None:
                writer.append(block)
            done += len(block)
            yield done / (rows * len(arrays))
        if writer is not None:
            record["files"][f"{name}.npy"] = writer.close()
        width = shape[-1] if len(shape) > 1 else 1
        record[f"{name}_names"] = [name] if width == 1 else [f"{name}{i}" for i in range(width)]
    if "sample_weight" in arrays:
        weights.require_some()
    record["classes"] = labels.classes


def _npy_paths(source: Origin, request: Request) -> dict[str, Path]:
    """The files of an npy source by what they hold."""
    names = ["x", *(["y"] if request.targets_needed else []), "sample_weight"]
    return dict(zip(names, source.paths, strict=False))


class _Room:
    """How many bytes a conversion may take."""

    def __init__(self, folder: Path, name: str):
        self._name = name
        self._folder = folder.parent
        self._free, self._limit = shutil.disk_usage(folder).free, cache_limit()

    def require(self, needed: int) -> None:
        """Refuse to take more.

        Raises:
            DataError: there isn't so much, or it isn't allowed.
        """
        if needed <= min(self._free, self._limit):
            return
        room = f"{self._folder} has {self._free} free: make room there, or choose another folder"
        room += " (DDP_GD_CACHE; TMPDIR for --no-cache)"
        if self._limit < self._free:
            room = f"{self._limit} are allowed: raise DDP_GD_CACHE_BYTES"
        raise DataError(f"{self._name} takes at least {needed} bytes unpacked, and {room}")


def _convert_table(
    source: Origin,
    request: Request,
    folder: Path,
    record: dict[str, Any],
    files: contextlib.ExitStack,
) -> Iterator[float]:
    table = open_table(source.paths, source.wanted)
    dtype = request.dtype
    total = sum(path.stat().st_size for path in source.paths)
    targets = len(source.wanted.target)
    of_class = bool(targets) and table.kinds[table.names[table.features]] != "number"
    if dtype == "float16" and table.categories:
        dtype = "float32"  # the numbers of the categories must be exact
    writers = {"x": ArrayWriter(folder / "x.npy", dtype, (table.features,))}
    if targets:
        kind = "int64" if of_class else "float64"
        writers["y"] = ArrayWriter(folder / "y.npy", kind, (targets,))
    if table.wanted.sample_weight:
        writers["sample_weight"] = ArrayWriter(folder / "sample_weight.npy", "float64", ())
    for writer in writers.values():
        files.enter_context(writer)
    labels, weights = _Labels(), _Weights(f"{table.paths[0]}: {table.wanted.sample_weight!r}")
    classes: set[int] = set()
    room = _Room(folder, request.name)
    for block, position in table.blocks():
        room.require(sum(writer.size for writer in writers.values()) + block.nbytes)
        writers["x"].append(_as(block[:, : table.features], dtype, table))
        if targets:
            columns = block[:, table.features : table.features + targets]
            if of_class:
                classes.update(np.unique(columns).astype(int).tolist())
            else:
                labels.add(columns)
            writers["y"].append(columns)
        if table.wanted.sample_weight:
            weights.add(block[:, -1])
            writers["sample_weight"].append(block[:, -1])
        yield min(1.0, position / total)
    if writers["x"].rows == 0:
        raise DataError(f"{source.paths[0]}: every row has a missing cell, so none is left")
    if table.wanted.sample_weight:
        weights.require_some()
    record["files"] = {f"{name}.npy": writer.close() for name, writer in writers.items()}
    features = table.names[: table.features]
    record |= {
        "x_names": features,
        "y_names": list(table.wanted.target),
        "kinds": [table.kinds[name] for name in features],
        "categories": {
            str(place): list(table.categories[name])
            for place, name in enumerate(features)
            if name in table.categories
        },
        "class_names": list(table.categories[table.names[table.features]]) if of_class else None,
        "classes": (len(classes) if len(classes) > 1 else None) if of_class else labels.classes,
        "dropped": table.dropped,
        "missing": table.wanted.missing == "mean",
    }


def _as(block: np.ndarray, dtype: str, table: Table) -> np.ndarray:
    """The features in their dtype, which must not make infinity of a number."""
    with np.errstate(over="ignore"):
        cast = block.astype(dtype)
    if np.isinf(cast).any():
        raise DataError(
            f"{table.paths[0]}: {block[np.isinf(cast)][0]} is too large for dtype {dtype!r}: "
            "leave dtype at 'float64'"
        )
    return cast


class _Weights:
    """Looks whether weights of rows can be used."""

    def __init__(self, name: str):
        self._name = name
        self._total = 0.0

    def add(self, weights: np.ndarray) -> None:
        """Look at some of them."""
        if (weights < 0).any():
            raise DataError(
                f"{self._name}: the weight {weights.min()} is below 0: give weights of 0 or more"
            )
        self._total += float(weights.sum(dtype=np.float64))

    def require_some(self) -> None:
        """Refuse weights that leave nothing to train on."""
        if self._total == 0:
            raise DataError(f"{self._name}: all weights are 0, so there is nothing to train on")


class _Labels:
    """Looks whether targets are class numbers."""

    def __init__(self) -> None:
        self._seen: np.ndarray | None = np.zeros(0, bool)

    def add(self, block: np.ndarray) -> None:
        """Look at some rows of targets."""
        if self._seen is None or not len(block):
            return
        if block[0].size == 1:
            block = block.astype(np.float64)
            most = block.max()
        if block[0].size != 1 or block.min() < 0 or most >= _MOST_CLASSES or np.any(block % 1):
            self._seen = None
            return
        if most >= len(self._seen):
            self._seen = np.pad(self._seen, (0, int(most) + 1 - len(self._seen)))
        self._seen[np.unique(block).astype(np.int64)] = True

    @property
    def classes(self) -> int | None:
        """How many classes; None if the targets aren't such numbers."""
        if self._seen is None or len(self._seen) < 2 or not self._seen.all():
            return None
        return len(self._seen)


def _keras_arrays(name: str, part: str) -> dict[str, np.ndarray]:
    """One of `keras.datasets`, which Keras downloads if it isn't there, and checks by its hash."""
    import keras

    known = sorted(n for n in dir(keras.datasets) if not n.startswith("_"))
    if name not in known:
        raise DataError(f"{KERAS}{name} is not among keras.datasets: {', '.join(known)}")
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise DataError(f"{KERAS}{name} could not be had from Keras: {error}") from error
    x, y = train if part == "train" else test
    if x.dtype == object:
        raise DataError(
            f"{KERAS}{name} has rows of different lengths: make them equal with "
            "keras.utils.pad_sequences, and save them with numpy.savez(path, x=..., y=...)"
        )
    return {"x": x, "y": y}
