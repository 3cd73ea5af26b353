"""The cache of converted data: found by content, whole or not there, within its limit."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import ddp_gd
from ddp_gd.data import cache, convert
from ddp_gd.errors import ConfigError, DataError


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, in which small files are kept, too."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DDP_GD_CACHE", str(folder))
    monkeypatch.setattr(convert, "CACHED_FROM_BYTES", 0)
    return folder


def entries(folder: Path) -> list[Path]:
    """What is kept."""
    return [record.parent for record in sorted(folder.glob("*/data.json"))]


def table(folder: Path, rows: int = 100, name: str = "t.csv", seed: int = 0) -> Path:
    """A CSV file of numbers that was not changed lately."""
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    path = folder / name
    path.write_text("a,b,y\n" + "".join(",".join(map(repr, r)) + "\n" for r in values.tolist()))
    os.utime(path, (1e9, 1e9))
    return path


def test_a_second_start_reads_what_the_first_converted(tmp_path, kept, monkeypatch):
    """With equal content and options nothing is converted again, under another name neither."""
    path = table(tmp_path)
    first = ddp_gd.load(path, "y")
    copied = tmp_path / "copy.csv"
    shutil.copy(path, copied)
    converted = []
    monkeypatch.setattr(convert, "convert", lambda *a: converted.append(a) or iter(()))
    for source in (path, copied):
        again = ddp_gd.load(source, "y")
        np.testing.assert_array_equal(again.features, first.features)
        assert again.key == first.key
    assert converted == []
    assert len(entries(kept)) == 1


@pytest.mark.parametrize("change", ["content", "target", "dtype"])
def test_other_content_or_options_are_converted_anew(tmp_path, kept, change):
    """A file that changed, also in place and with its old time, is never mistaken for the old."""
    path = table(tmp_path)
    before = ddp_gd.load(path, "y")
    options = {"target": "y"}
    if change == "content":
        status = path.stat()
        path.write_text(path.read_text().replace("1", "2", 1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "target":
        options["target"] = "a"
    else:
        options["dtype"] = "float32"
    after = ddp_gd.load(path, **options)
    assert after.key != before.key
    assert not np.array_equal(after.features, before.features)
    assert len(entries(kept)) == 2


def test_the_key_is_of_the_content(tmp_path):
    """The same arrays have the same key wherever they lie; other targets have another one."""
    keys = []
    for folder, scale in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.ones((3, 2)))
        np.save(tmp_path / folder / "y.npy", np.arange(3.0) * scale)
        target = str(tmp_path / folder / "y.npy")
        keys.append(ddp_gd.load(tmp_path / folder / "x.npy", target).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    "damage", ["flipped byte", "header", "truncated", "missing", "record", "changed record"]
)
def test_a_damaged_entry_is_named_and_made_again(tmp_path, kept, damage, capsys):
    """A changed byte, a missing file, a broken record: found before anything is read from it."""
    path = table(tmp_path)
    expected = np.array(ddp_gd.load(path, "y").features)
    file = entries(kept)[0] / "x.npy"
    content = bytearray(file.read_bytes())
    if damage == "flipped byte":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "header":
        content[content.index(b"100")] = ord("0")
        file.write_bytes(content)
    elif damage == "changed record":
        record = file.parent / "data.json"
        record.write_text(record.read_text().replace('"a"', '"c"'))
    elif damage == "truncated":
        file.write_bytes(content[:-8])
    elif damage == "missing":
        file.unlink()
    else:
        (file.parent / "data.json").write_text('{"files": [1')
    np.testing.assert_array_equal(ddp_gd.load(path, "y").features, expected)
    assert "are damaged" in capsys.readouterr().out


def test_a_file_that_changes_meanwhile_is_not_kept(tmp_path, kept, monkeypatch):
    """Replaced between its hash and its conversion, a file ends in an error, not in the cache."""
    path = table(tmp_path)
    other = table(tmp_path, name="other.csv", seed=1)
    unchanged = convert.convert

    def late(*arguments):
        shutil.copy2(other, path)
        return unchanged(*arguments)

    monkeypatch.setattr(convert, "convert", late)
    with pytest.raises(DataError, match=r"t\.csv changed while it was read"):
        ddp_gd.load(path, "y")
    assert entries(kept) == []


def test_a_copied_cache_is_read_once_more_and_used(tmp_path, kept, capsys):
    """Files that are others than those that were written, but the same, are found whole."""
    path = table(tmp_path)
    ddp_gd.load(path, "y")
    entry = entries(kept)[0]
    shutil.copytree(entry, tmp_path / "elsewhere")
    shutil.rmtree(entry)
    shutil.copytree(tmp_path / "elsewhere", entry)
    ddp_gd.load(path, "y")
    assert capsys.readouterr().out == ""


def test_the_limit_holds(tmp_path, kept, monkeypatch):
    """Entries that were not used for longest go; one that is larger than the limit is refused."""
    monkeypatch.setenv("DDP_GD_CACHE_BYTES", "9000")  # an entry takes about 3,700
    paths = [table(tmp_path, name=f"{i}.csv", seed=i) for i in range(3)]
    ddp_gd.load(paths[0], "y")
    ddp_gd.load(paths[1], "y")
    time.sleep(0.05)
    ddp_gd.load(paths[0], "y")
    ddp_gd.load(paths[2], "y")
    sources = {json.loads((e / "data.json").read_text())["record"]["key"] for e in entries(kept)}
    assert sources == {ddp_gd.load(paths[0], "y").key, ddp_gd.load(paths[2], "y").key}
    with pytest.raises(
        DataError, match=r"24000 bytes unpacked, and 9000 are allowed: raise DDP_GD_CACHE"
    ):
        ddp_gd.load(table(tmp_path, rows=1000), "y")
    monkeypatch.setenv("DDP_GD_CACHE_BYTES", "much")
    with pytest.raises(ConfigError, match="DDP_GD_CACHE_BYTES='much'"):
        ddp_gd.load(paths[0], "y")


def test_without_a_cache_nothing_is_left(tmp_path, kept, monkeypatch):
    """`cache=False` leaves neither an entry nor a temporary folder, and the data are the same."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(convert.tempfile, "tempdir", str(temporary))
    path = table(tmp_path)
    dataset = ddp_gd.load(path, "y", cache=False)
    assert not kept.exists()
    assert list(temporary.iterdir()) == []
    np.testing.assert_array_equal(dataset.features, ddp_gd.load(path, "y").features)


def test_a_failed_conversion_leaves_nothing(tmp_path, kept):
    """After an error the cache is as it was."""
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,2\nx,3\n")
    with pytest.raises(DataError):
        ddp_gd.load(path, "y")
    assert entries(kept) == []
    assert list(kept.glob(".partial*")) == []


def test_what_a_killed_conversion_left_is_removed(tmp_path, kept):
    """Folders that nobody finished are removed a day later."""
    old, new = kept / ".partial-old", kept / ".partial-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (1e9, 1e9))
    ddp_gd.load(table(tmp_path), "y")
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path, kept):
    """A cache whose folder can't be made says what to set."""
    kept.write_text("a file")
    with pytest.raises(DataError, match=r"set DDP_GD_CACHE to a folder that can, or .*cache=False"):
        ddp_gd.load(table(tmp_path), "y")


def test_the_cache_is_the_users_alone(tmp_path, kept):
    """Nobody else may look into it."""
    ddp_gd.load(table(tmp_path), "y")
    assert kept.stat().st_mode & 0o077 == 0


def test_the_identity_of_a_file_is_not_remembered_while_it_may_change(tmp_path):
    """A file written within the last seconds is read again: its time could stay the same."""
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,2\n")
    found = cache.Cache(tmp_path / "cache", 10**9)
    assert list(found.digest(path)) == [8]
    assert not (tmp_path / "cache").exists()


def test_arrays_of_keras(monkeypatch, kept):
    """`keras:mnist` is what Keras's own loader returns, images in uint8; asked for once."""
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    calls = []

    def load_data():
        calls.append(1)
        return (images[:15], labels[:15]), (images[15:], labels[15:])

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    for _ in range(2):
        dataset = ddp_gd.load("keras:mnist")
        np.testing.assert_array_equal(dataset.features, images[:15])
        assert dataset.features.dtype == np.uint8
        assert dataset.classes == 10
    assert len(calls) == 1
    assert len(ddp_gd.load("keras:mnist/test").features) == 5
    ragged = np.array([[1], [1, 2]], dtype=object)
    both = (ragged, labels[:2])
    monkeypatch.setattr(keras.datasets.imdb, "load_data", lambda: (both, both))
    with pytest.raises(DataError, match=r"rows of different lengths.*pad_sequences"):
        ddp_gd.load("keras:imdb")
    with pytest.raises(DataError, match=r"keras:nothing is not among keras.datasets.*mnist"):
        ddp_gd.load("keras:nothing")
    with pytest.raises(DataError, match="names a CSV column"):
        ddp_gd.load("keras:mnist", "y")
