"""Files written whole or not at all; training/test_checkpoint.py lets each system call fail."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ddp_gd import files
from ddp_gd.errors import ConfigError


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays until the new content is whole; nothing else is left."""
    path = tmp_path / "file.json"
    files.write(path, b"old")
    files.write_json(path, {"new": 1})
    assert path.read_bytes() == b'{"new": 1}'

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        files.write(path, b"never there")
    assert path.read_bytes() == b'{"new": 1}'
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """An error while it is written leaves nothing; a file made meanwhile is not overwritten."""
    path = tmp_path / "rows.npy"

    def half() -> None:
        with files.new_file(path) as partial:
            partial.write_text("half")
            raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"):
        half()
    assert list(tmp_path.iterdir()) == []
    with files.new_file(path) as partial, files.ArrayWriter(partial, "f4", (2,)) as writer:
        writer.append(np.ones((3, 2)))
        writer.close()
    np.testing.assert_array_equal(np.load(path), np.ones((3, 2), "f4"), strict=True)
    with pytest.raises(FileExistsError, match="made by another"), files.new_file(path) as partial:
        partial.write_text("mine")
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(np.load(path), 1)


def test_a_file_to_write_is_new(tmp_path: Path) -> None:
    """One that exists, or whose folder doesn't, is refused by the name of its argument."""
    files.require_new_file("out", str(tmp_path / "new.csv"))
    with pytest.raises(ConfigError, match=r"^out='.*' exists already"):
        files.require_new_file("out", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no folder"):
        files.require_new_file("out", str(tmp_path / "nowhere" / "new.csv"))
