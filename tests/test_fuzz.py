"""1,000 broken inputs for each reader: the documented errors, in bounded memory, or a result."""

from __future__ import annotations

import copy
import io
import json
import os
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

import ddp_gd
from ddp_gd.comm import open_communicator
from ddp_gd.data import csv_files, dataset, npy_files, table
from ddp_gd.errors import CheckpointError, DataError
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.saving import snapshot
from ddp_gd.training.saving.checkpoint_files import Folder, parse

INPUTS = 1000
# What breaks parsers: numbers at the limits, separators, quotes, other encodings, other formats.
TOKENS = [
    *(b"\xff\xff\xff\xff", b"\0" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0", b"\xef\xbb\xbf"),
    *(b",", b'"', b"\n", b"\r", b"\n\n", b";", b"nan", b"-inf", b"1e999", b"9" * 400, b"--1"),
    *(b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY\x09", b"'|O'", b"'<V8'", b"(99999999999,)"),
    *(b"'shape': (-1,)", b"../../x", b"{}", b"[[[[", b'"dtype":"F64"', b"\x80\x04\x95", b"\xfe"),
]


def mutants(whole: bytes, seed: int) -> Iterator[bytes]:
    """Versions of a file with bytes changed, cut out, doubled, put in; and pure noise."""
    r = np.random.default_rng(seed)
    for number in range(INPUTS):
        content = bytearray(whole if number % 20 else r.bytes(int(r.integers(200))))
        for _ in range(int(r.integers(1, 6))):
            start = int(r.integers(len(content) + 1))
            stop = min(len(content), start + int(r.integers(1, 40)))
            match r.integers(6):
                case 0:
                    content[start:stop] = b""
                case 1:
                    content[start:stop] = content[start:stop] * 3
                case 2:
                    content[start:stop] = r.bytes(stop - start)
                case 3:
                    content[start:start] = TOKENS[r.integers(len(TOKENS))]
                case 4:
                    token = TOKENS[r.integers(len(TOKENS))]
                    content[start : start + len(token)] = token
                case 5:
                    del content[start:]
        yield bytes(content)


def csv() -> bytes:
    """A table."""
    rows = [f"{i},{i * 0.5:.3f},{-i}e-3" for i in range(20)]
    return "\n".join(["a,b,target", *rows, ""]).encode()


def mixed_csv() -> bytes:
    """A table with texts and booleans."""
    rows = [f"{i},{['Bern', 'Köln', ''][i % 3]},{i % 2 == 0},{i / 3}" for i in range(20)]
    return "\n".join(["a,town,ok,target", *rows, ""]).encode()


def parquet() -> bytes:
    """The same, in pages of several encodings."""
    file = io.BytesIO()
    towns = pa.array(["Bern", "Köln", None, "Genf"] * 10)
    columns = {
        "a": pa.array(np.arange(40) / 7),
        "n": pa.array(np.arange(40), pa.int16()),
        "town": towns,
        "ok": pa.array([True, False] * 20),
        "target": pa.array(np.arange(40.0)),
    }
    pq.write_table(pa.table(columns), file, row_group_size=15, compression="zstd")
    return file.getvalue()


def npy() -> bytes:
    """An array."""
    file = io.BytesIO()
    np.save(file, np.arange(60, dtype=np.float32).reshape(20, 3))
    return file.getvalue()


def npz(save: Callable = np.savez) -> bytes:
    """Arrays."""
    file = io.BytesIO()
    save(file, x=np.arange(60, dtype=np.float32).reshape(20, 3), y=np.arange(20))
    return file.getvalue()


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """1 GiB more than the process has: whoever believes a header that says more fails."""
    ddp_gd.load("diabetes")  # what TensorFlow and Arrow take once is not meant
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def usable(dataset: dataset.Dataset) -> bool:
    """Tell whether all numbers are finite."""
    return np.isfinite(dataset.features).all() and np.isfinite(dataset.targets).all()


@pytest.mark.parametrize(
    ("name", "whole", "target"),
    [
        ("table.csv", csv(), "target"),
        ("arrays.npz", npz(), None),
        ("packed.npz", npz(np.savez_compressed), None),
        ("mixed.csv", mixed_csv(), "target"),
        ("table.parquet", parquet(), "target"),
        ("array.npy", npy(), "targets.npy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data(name: str, whole: bytes, target: str | None, tmp_path: Path) -> None:
    """A DataError that names the file, or finite numbers."""
    np.save(tmp_path / "targets.npy", np.arange(20))
    if target == "targets.npy":
        target = str(tmp_path / target)
    path = tmp_path / name
    path.write_bytes(whole)
    options = {"missing": "drop"} if name.startswith(("mixed", "table.p")) else {}
    assert usable(ddp_gd.load(str(path), target, **options))
    refused = unnamed = too_large = 0
    for content in mutants(whole, seed=len(whole)):
        path.write_bytes(content)
        try:
            assert usable(ddp_gd.load(str(path), target, **options))
        except DataError as error:
            too_large += isinstance(error.__cause__, MemoryError)  # it believed a number
            refused += name in str(error)
            unnamed += name not in str(error)
    assert refused > INPUTS / 4
    assert not unnamed
    assert not too_large


def test_checkpoints(tmp_path: Path) -> None:
    """A CheckpointError, or arrays and a header; and that although a SHA-256 is checked before."""
    path = Folder(tmp_path).write(1, {"a": np.arange(50.0), "b": np.zeros((2, 3), "i4")}, "{}", 1)
    whole = path.read_bytes()
    refused = too_large = 0
    for content in mutants(whole, seed=1):
        try:
            arrays, header = parse(content)
            assert isinstance(header, str)
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
        except CheckpointError as error:
            too_large += isinstance(error.__cause__, MemoryError)
            refused += 1
    assert refused > INPUTS / 4
    assert not too_large


ODD = [
    *(None, True, -1, 2**70, 1e999, 0.5, "", "epoch", [], [[]], [0, 0], {}, {"arrays": 10**12}),
    *({"arrays": -1}, {"arrays": "x"}, {"values": []}, {"values": ["a"], "dtype": "S2000000000"}),
    *({"values": [1, [2]], "dtype": "f4"}, {"values": [], "dtype": "O"}, {"values": 1, "dtype": 1}),
    *({"values": [1e300], "dtype": "i4"}, {"values": [0], "dtype": "V2000000000"}),
]


def odd_headers(whole: str) -> Iterator[str]:
    """Versions of a header with one or more values left out or replaced by others."""
    r = np.random.default_rng(2)
    for _ in range(INPUTS):
        header = {"": json.loads(whole)}
        for _ in range(int(r.integers(1, 4))):
            place, key = header, ""
            while isinstance(place[key], (dict, list)) and place[key] and r.random() < 0.8:
                place = place[key]
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = keys[int(r.integers(len(keys)))]
            if place is not header and r.random() < 0.3:
                del place[key]
            else:
                place[key] = copy.deepcopy(ODD[int(r.integers(len(ODD)))])
        yield json.dumps(header[""])


def test_whole_checkpoints(tmp_path: Path) -> None:
    """With the right checksum, too: a CheckpointError, and nothing changed, or a training."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    x, y = np.arange(24.0).reshape(8, 3), np.eye(2)[np.arange(8) % 2]
    stopping = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    ddp_gd.fit(model, x, y, 4, 2, 0, [stopping], checkpoint=ddp_gd.Checkpoint(tmp_path))
    content = Folder(tmp_path).newest()
    arrays, whole = parse(content)
    communicator = open_communicator("single")
    hooks = Hooks(communicator, model, [stopping], 0, 2, 2, "train")
    snapshot.read(content).restore(model, hooks)

    def load(arrays: dict, header: str) -> bool:
        before = [v.numpy().tolist() for v in [*model.weights, *model.optimizer.variables]]
        try:
            content = save(arrays, metadata={"ddp_gd": header})
            snapshot.read(content).restore(model, hooks)
        except CheckpointError:
            after = [v.numpy().tolist() for v in [*model.weights, *model.optimizer.variables]]
            assert after == before
            return False
        return True

    texts = (text.decode("utf-8", "replace") for text in mutants(whole.encode(), seed=3))
    headers = [*odd_headers(whole), *texts]
    refused = sum(not load(arrays, header) for header in [*headers, "[" * 10**5])
    assert INPUTS / 2 < refused < len(headers)
    for name in arrays:
        for other in (None, arrays[name][None], arrays[name].astype("f8"), np.zeros(0, "f4")):
            changed = {n: a for n, a in arrays.items() if n != name}
            changed |= {} if other is None else {name: other}
            assert not load(changed, whole) or name.startswith("callback/")
    # A file that no memory holds: the one before it is taken.
    huge = tmp_path / f"step-{9:012d}-{'0' * 32}.safetensors"
    huge.touch()
    os.truncate(huge, 2**33)
    assert Folder(tmp_path).newest() == content


@pytest.mark.parametrize(
    ("begin", "line"),
    [(b"", 1), (b"a,b\n1,", 2), (b"a,b\n" + b'1,"\n",' * 10**6, 2)],
    ids=["heading", "cell", "quoted"],
)
def test_a_row_without_end(begin: bytes, line: int, tmp_path: Path) -> None:
    """No more of it is read than a row may have."""
    path = tmp_path / "endless.csv"
    path.write_bytes(begin)
    os.truncate(path, 2**32)
    with pytest.raises(DataError, match=rf"endless\.csv: the row that begins on line {line} has"):
        csv_files.names_of(path)


def test_a_row_that_is_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 GB in one row are not read; what doesn't fit into memory is told, too."""
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1, 2**32)}
    np.lib.format.write_array_header_1_0(header, shape)
    npy = tmp_path / "x.npy"
    npy.write_bytes(header.getvalue())
    os.truncate(npy, 2**32 + len(header.getvalue()))
    with pytest.raises(
        DataError, match=r"x\.npy of shape .* has rows of 4294967296 bytes: at most"
    ):
        npy_files.open_npy(npy)
    path = tmp_path / "wide.npz"
    path.write_bytes(npz())
    monkeypatch.setattr(npy_files, "MOST_AT_ONCE", 8)
    with pytest.raises(DataError, match=r"wide\.npz: 'x' of shape \(20, 3\) has rows of 12 bytes"):
        ddp_gd.load(str(path))
    monkeypatch.undo()
    fortran = np.asfortranarray(np.ones((20, 3)))
    np.savez(path, x=fortran, y=np.arange(20))
    monkeypatch.setattr(npy_files, "MOST_AT_ONCE", 479)
    with pytest.raises(DataError, match=r"wide\.npz: 'x' has 480 bytes in Fortran's order"):
        ddp_gd.load(str(path))
    monkeypatch.undo()
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: bytearray(2**40))
    with pytest.raises(DataError, match=r"wide\.npz .* memory"):
        ddp_gd.load(str(path))


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that unpacks to more than allowed is refused before any of it is."""
    monkeypatch.setenv("DDP_GD_CACHE_BYTES", str(10**9))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**31, 1)}
    )
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x.npy", "y.npy"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(header.getvalue())
                for _ in range(2**5):
                    member.write(bytes(2**26))
    with pytest.raises(
        DataError, match=r"bomb\.npz takes at least 4294967296 bytes unpacked, and 1000000000 are"
    ):
        ddp_gd.load(str(path))
    # The directory at the end of the file claims sizes that the file can't hold.
    whole = bytearray(npz())
    place = whole.rindex(b"PK\x01\x02")
    struct.pack_into("<II", whole, place + 20, 2**31, 2**31)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"bomb\.npz"):
        ddp_gd.load(str(path))


def test_a_table_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of Parquet that hold millions of rows, or a long text in each of many."""
    path = tmp_path / "bomb.parquet"
    ones = pa.array(np.ones(10**6))
    pq.write_table(pa.table({"a": ones, "y": ones}), path)
    assert path.stat().st_size < 10**5
    monkeypatch.setenv("DDP_GD_CACHE_BYTES", str(10**6))
    with pytest.raises(DataError, match=r"bomb\.parquet takes at least \d{7} bytes unpacked, and"):
        ddp_gd.load(str(path), "y")
    monkeypatch.undo()
    once = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**5, "i4")), ["x" * 30_000])
    pq.write_table(pa.table({"a": once, "y": ones[: 10**5]}), path, store_schema=False)
    assert path.stat().st_size < 10**5
    with pytest.raises(DataError, match=r"column 'a' has a text of 30000 bytes: a category has at"):
        ddp_gd.load(str(path), "y")


def test_a_header_of_many_columns(tmp_path: Path) -> None:
    """Is read in time that grows with it, and not with its square."""
    path = tmp_path / "wide.csv"
    path.write_text(",".join(["a"] * 10**6) + "\n1\n")
    with pytest.raises(DataError, match=r"wide\.csv has more than one column called 'a'"):
        table.names_of(path)
