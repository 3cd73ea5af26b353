"""Checkpoint files: whole or absent, and every damage seen."""

from __future__ import annotations

import errno
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddp_gd.errors import (
    CheckpointError,
    ConfigError,
    LaunchError,
    MismatchError,
    ReplicaError,
    exit_status,
)
from ddp_gd.training.saving.checkpoint import Checkpoint
from ddp_gd.training.saving.checkpoint_files import Folder, parse

HERE = Path(__file__).parents[1]
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "flag": np.array([True, False]),
}


def written(folder: Path, steps: range, keep: int = 3) -> list[Path]:
    """Checkpoints of these steps, as they lie in the folder, newest first."""
    for step in steps:
        Folder(folder).write(step, ARRAYS, f"header {step}", keep)
    return [folder / name for name in Folder(folder).names()]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Arrays and header come back, from a file that its owner alone may read."""
    (path,) = written(tmp_path / "new" / "folder", range(5, 6))
    content = Folder(path.parent).newest()
    assert content == path.read_bytes()
    arrays, header = parse(content)
    assert header == "header 5"
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_newest_are_kept(tmp_path: Path) -> None:
    """Older ones go, and what a killed process left half written."""
    (tmp_path / f"step-000000000000-{'0' * 32}.safetensors.partial").write_bytes(b"half")
    users = ["notes.txt", "download.partial"]
    for name in users:
        (tmp_path / name).write_text("the user's")
    paths = written(tmp_path, range(1, 6), keep=2)
    assert [path.name[:17] for path in paths] == ["step-000000000005", "step-000000000004"]
    assert sorted(os.listdir(tmp_path)) == sorted([*users, *(path.name for path in paths)])
    assert Folder(tmp_path / "missing").newest() is None
    assert Folder(tmp_path / "missing").names() == []


def test_new_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names, too, before a checkpoint is said to be there."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    written(tmp_path / "new" / "folder", range(1))
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "new")} < set(synced)


def test_the_new_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is flushed after the file is renamed, before older ones go."""
    written(tmp_path, range(1, 2))
    done = []
    rename, fsync, unlink = os.rename, os.fsync, os.unlink
    folder = tmp_path.stat().st_ino
    monkeypatch.setattr(os, "rename", lambda *a, **k: (rename(*a, **k), done.append("rename")))
    monkeypatch.setattr(os, "unlink", lambda *a, **k: (unlink(*a, **k), done.append("unlink")))
    monkeypatch.setattr(
        os, "fsync", lambda f: (fsync(f), done.append(os.fstat(f).st_ino == folder))
    )
    written(tmp_path, range(2, 3), keep=1)
    assert done == [False, "rename", True, "unlink"]


def test_damaged_ones_are_out_of_the_way(tmp_path: Path) -> None:
    """They neither look like progress nor count among those that are kept."""
    *damaged, whole = written(tmp_path, range(1, 4))
    for path in damaged:
        path.write_bytes(b"")
    assert Folder(tmp_path).newest() == whole.read_bytes()
    new = Folder(tmp_path).write(2, ARRAYS, "header 2, once more", 3)
    assert Folder(tmp_path).newest() == new.read_bytes()
    assert [path.name for path in tmp_path.glob("step-000000000003-*")] == [
        f"{damaged[0].name}.damaged"
    ]


def test_every_flipped_bit_and_missing_piece_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whatever happens to the newest file, the one before is taken, and the damage named."""
    newest, before = written(tmp_path, range(1, 3))
    whole = newest.read_bytes()
    damaged = []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    damaged += [whole[:length] for length in range(0, len(whole), 16)] + [whole + b"\0"]
    for content in damaged:
        newest.write_bytes(content)
        assert Folder(tmp_path).newest() == before.read_bytes()
        assert f"{newest} is damaged" in capsys.readouterr().err
    before.write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 2 checkpoints in") as caught:
        Folder(tmp_path).newest()
    assert exit_status(caught.value) == 2


def test_damage_to_a_larger_file_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """5,000 bits flipped, one at a time, and every length that is a multiple of 4 KB."""
    r = np.random.default_rng(0)
    folder = Folder(tmp_path)
    path = folder.write(1, {"weights": r.normal(size=(100, 100))}, "header", 3)
    whole = bytearray(path.read_bytes())
    with path.open("r+b", buffering=0) as file:
        for place in r.integers(len(whole), size=5000):
            os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << r.integers(8)]), place)
            with pytest.raises(CheckpointError):
                folder.newest()
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert folder.newest() == whole
    for length in range(0, len(whole), 4096):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            folder.newest()
    assert capsys.readouterr().err.count("is damaged") == 5000 + -(-len(whole) // 4096)


@pytest.fixture(scope="module")
def tamper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that tampers with system calls."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("it is written for Linux on x86-64")
    program = tmp_path_factory.mktemp("tamper") / "tamper"
    source = HERE / "faults" / "tamper.cpp"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


@pytest.mark.parametrize("action", ["kill", "enospc", "eio", "short"])
def test_no_system_call_of_a_save_is_a_wrong_moment(
    action: str, tamper: Path, tmp_path: Path
) -> None:
    """Killed before any one of them, or if any write fails: what loads is whole, old or new."""
    program = [sys.executable, str(HERE / "programs" / "saves.py")]
    subprocess.run([*program, tmp_path / "old", "1"], check=True)
    number, hit, newest = 0, True, []
    while hit:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "old", folder)
        command = [tamper, action, str(number), *program, folder, "2"]
        job = subprocess.run(command, capture_output=True, text=True, check=True)
        told = re.search(r"hit ([01]) status (\d+)", job.stdout)
        assert told, job.stdout + job.stderr
        hit, status = told[1] == "1", int(told[2])
        content = Folder(folder).newest()
        assert content is not None
        arrays, header = parse(content)
        step = int(arrays["step"])
        assert header == f"header {step}"
        assert np.all(arrays["weights"] == step)
        newest.append(step)
        if not hit or action == "short":
            assert (status, step) == (0, 2), job.stderr
        elif action != "kill":
            assert status == 1
            assert "CheckpointError" in job.stderr
        # Whatever was left there, the next save is as good as ever.
        Folder(folder).write(3, ARRAYS, "header 3", 1)
        assert [name[:17] for name in os.listdir(folder)] == ["step-000000000003"]
    assert number > {"kill": 15, "short": 1}.get(action, 3)
    assert set(newest) == ({2} if action == "short" else {1, 2})


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_the_old_ones(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at any point of a save is told, and what was there before is what is read after."""
    folder = tmp_path / "checkpoints"
    if failing != "mkdir":
        (path,) = written(folder, range(1, 2))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr("builtins.open", fail)
    elif failing == "mkdir":
        monkeypatch.setattr(Path, "mkdir", fail)
    elif failing == "open":
        real = os.open
        monkeypatch.setattr(
            os, "open", lambda *a, **k: fail() if a[1] & os.O_CREAT else real(*a, **k)
        )
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(
        CheckpointError, match=r"step-000000000002-.*No space left on device"
    ) as caught:
        Folder(folder).write(2, ARRAYS, "header", 3)
    monkeypatch.undo()
    assert exit_status(caught.value) == 1  # it may be written when the job is started again
    if failing != "mkdir":
        assert os.listdir(folder) == [path.name]
        assert Folder(folder).newest() == path.read_bytes()


def test_what_may_be_all_right_when_started_again() -> None:
    """A flipped bit may; another checkpoint's training stays another one."""
    assert exit_status(ReplicaError()) == exit_status(LaunchError()) == 1
    assert exit_status(CheckpointError()) == exit_status(MismatchError()) == 2


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """Neither to read another's file nor to overwrite it."""
    (path,) = written(tmp_path / "theirs", range(1, 2))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
        Folder(tmp_path / "ours").newest()
    os.mkfifo(tmp_path / "ours" / path.name.replace("1-", "2-"))
    with pytest.raises(CheckpointError, match="None of the 2 checkpoints"):
        Folder(tmp_path / "ours").newest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        pickle.dumps({"step": 1}),
    ],
)
def test_other_contents_are_refused(content: bytes) -> None:
    """Nothing is unpickled, and no huge length believed."""
    with pytest.raises(CheckpointError, match="not written by ddp_gd"):
        parse(content)


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"every_steps": 0}, "every_steps=0"),
        ({"every_steps": 1.5}, "every_steps=1.5"),
        ({"every_seconds": -1}, "every_seconds=-1"),
        ({"every_seconds": float("nan")}, "every_seconds=nan"),
        ({"every_seconds": "often"}, "every_seconds='often'"),
        ({"keep": 0}, "keep=0"),
        ({"keep": None}, "keep=None"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict, quoted: str) -> None:
    """The value is quoted."""
    with pytest.raises(ConfigError, match=quoted):
        Checkpoint("folder", **arguments)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Before anything is trained."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not a folder"):
        Folder(tmp_path / "file")
