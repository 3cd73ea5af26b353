"""Converted data, kept on disk: found by content, whole or not there, no larger than a limit.

An entry is a folder named by a hash of what went in: the content of the source files and the
options of the conversion. It is made under another name, and renamed when everything is on the
disk.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ddp_gd.errors import DataError
from ddp_gd.files import sync, write_json

_RECORD = "data.json"
_SEEN = "seen.json"
_PARTIAL = ".partial-"
_ABANDONED = 24 * 3600.0  # seconds after which what a killed conversion left is removed
_RACY = 2 * 10**9  # nanoseconds: a file changed so lately may change again within a clock tick
_READ_BYTES = 1 << 22


class Cache:
    """A folder of converted data, made when it is needed, for this user only.

    Beyond the limit, in bytes, the entries that were not used for longest make room for new ones.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder = folder
        self.limit = limit

    def digest(self, path: Path) -> Generator[int, None, str]:
        """Hash a file as `hash_file` does, or remember the hash if it has not changed since."""
        before = identity(path)
        note = self.folder / "files" / hashlib.sha256(str(path.absolute()).encode()).hexdigest()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(note.read_text())
            if noted["identity"] == before:
                return str(noted["sha256"])
        digest = yield from hash_file(path)
        if identity(path) != before:
            raise DataError(f"{path} changed while it was read: start again when it is complete.")
        if time.time_ns() - max(before[2:4]) > _RACY:
            with contextlib.suppress(OSError):
                self._make()
                write_json(note, {"identity": before, "sha256": digest})
        return digest

    def digest_all(self, paths: Sequence[Path]) -> Generator[int, None, str]:
        """Hash many files in their order, or remember the hash if none has changed since."""
        before = [identity(path) for path in paths]
        names = json.dumps([str(path.absolute()) for path in paths])
        state = hashlib.sha256(json.dumps(before).encode()).hexdigest()
        note = self.folder / "files" / hashlib.sha256(names.encode()).hexdigest()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(note.read_text())
            if noted["identity"] == state:
                return str(noted["sha256"])
        digest, done = hashlib.sha256(), 0
        for path, found in zip(paths, before, strict=True):
            reading = hash_file(path)
            while True:
                try:
                    yield done + next(reading)
                except StopIteration as end:
                    digest.update(end.value.encode())
                    break
            done += found[4]
        if [identity(path) for path in paths] != before:
            raise DataError(
                f"{paths[0].parent} changed while it was read: start again when it is complete."
            )
        newest = max(max(found[2:4]) for found in before)
        if time.time_ns() - newest > _RACY:
            with contextlib.suppress(OSError):
                self._make()
                write_json(note, {"identity": state, "sha256": digest.hexdigest()})
        return digest.hexdigest()

    def find(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """Folder and record of an entry that is there and whole; a damaged one is removed."""
        entry = self.folder / key
        try:
            record = _read_record(entry)
            files = record["files"]
            identities = {name: identity(entry / name) for name in files}
            seen = {}
            with contextlib.suppress(OSError, ValueError):
                seen = json.loads((entry / _SEEN).read_text())
            if identities != seen:  # someone wrote to them, or copied them: read them all
                for name, expected in files.items():
                    if _values_sha256(entry / name, expected["offset"]) != expected["sha256"]:
                        raise ValueError(f"{name} has another checksum")
                write_json(entry / _SEEN, identities)
            os.utime(entry / _RECORD)
        except FileNotFoundError:
            if not entry.exists():
                return None
            problem: object = "a file is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = error
        else:
            return entry, record
        print(f"ddp_gd: the cached data in {entry} are damaged ({problem}); converting again.")
        shutil.rmtree(entry, ignore_errors=True)
        return None

    def begin(self) -> Path:
        """Make a new folder to convert into.

        Raises:
            DataError: it can't be made.
        """
        try:
            self._make()
            remove_abandoned(self.folder, _PARTIAL)
            return Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
        except OSError as error:
            raise DataError(
                f"The cache for converted data, {self.folder}, can't be written "
                f"({error.strerror}): set DDP_GD_CACHE to a folder that can, or do without "
                "(cache=False)."
            ) from error

    def keep(
        self, folder: Path, key: str, record: dict[str, Any], files: dict[str, dict[str, Any]]
    ) -> Path:
        """Make a finished conversion in a folder from `begin` an entry, and return its folder.

        `files` is what `ArrayWriter.close` returned of each file, by name.
        """
        record = record | {"files": files}
        write_json(folder / _RECORD, {"record": record, "sha256": _sha256(record)})
        write_json(folder / _SEEN, {name: identity(folder / name) for name in files})
        sync(folder)
        entry = self.folder / key
        try:
            folder.rename(entry)
        except OSError:  # another process has made it in the meantime
            shutil.rmtree(folder, ignore_errors=True)
        sync(self.folder)
        self._make_room(entry)
        return entry

    def _make(self) -> None:
        for folder in (self.folder, self.folder / "files"):  # the mode isn't that of parents
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _make_room(self, kept: Path) -> None:
        """Remove the entries that were not used for longest until the limit holds."""
        entries = []
        for record in self.folder.glob(f"*/{_RECORD}"):
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in record.parent.iterdir())
                entries.append((record.stat().st_mtime, size, record.parent))
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self.limit:
                break
            if entry != kept and not entry.name.startswith(_PARTIAL):
                # Processes that have its files mapped keep them.
                shutil.rmtree(entry, ignore_errors=True)
                total -= size


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what was begun more than a day ago, and never finished: its process was killed."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def _read_record(entry: Path) -> dict[str, Any]:
    written = json.loads((entry / _RECORD).read_text())
    if written["sha256"] != _sha256(written["record"]):
        raise ValueError(f"{_RECORD} has another checksum")
    record: dict[str, Any] = written["record"]
    return record


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> Generator[int, None, str]:
    """Return the SHA-256 of a file, hexadecimal; yields how many bytes have been read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
                yield file.tell()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _values_sha256(path: Path, offset: int) -> str:
    """Hash what `ArrayWriter` hashed: the values, and then what stands before them."""
    with path.open("rb") as file:
        file.seek(offset)
        digest = hashlib.file_digest(file, "sha256")
        file.seek(0)
        digest.update(file.read(offset))
        return digest.hexdigest()


def identity(path: Path) -> list[int]:
    """What changes whenever a file's content does."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size]
