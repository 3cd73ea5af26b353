"""Checkpoint files: whole or absent, verified when read, nothing in them is ever unpickled.

A file is written under another name, flushed to the disk, and renamed; its name ends with the
SHA-256 of its content, so that a flipped bit or a missing piece shows. The format is safetensors:
a JSON header and plain numbers.
"""

import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ddp_gd import files
from ddp_gd.errors import CheckpointError

_NAME = re.compile(r"step-([0-9]{12})-([0-9a-f]{32})\.safetensors")
_DAMAGED = ".damaged"
_BROKEN = (
    safetensors.SafetensorError,
    KeyError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class Folder:
    """The checkpoints of one training, on one worker's disk.

    Args:
        path: of the folder.

    Raises:
        CheckpointError: what is there can't be used.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(
                f"{self.path} is not a folder, so it can't hold checkpoints; give another one."
            )

    def names(self) -> list[str]:
        """The files, newest first; what was left half written is not among them."""
        if not self.path.exists():
            return []
        return sorted(filter(_NAME.fullmatch, os.listdir(self.path)), reverse=True)

    def write(self, step: int, arrays: Mapping[str, np.ndarray], header: str, keep: int) -> Path:
        """Write a checkpoint, and remove all but the `keep` newest once it is safely there.

        Args:
            step: updates made so far; files are ordered by it.
            arrays: by name.
            header: any text.
            keep: how many to keep, this one included.

        Raises:
            CheckpointError: the disk is full, say. The checkpoints before are untouched.
        """
        content = safetensors_numpy.save(dict(arrays), metadata={"ddp_gd": header})
        digest = hashlib.sha256(content).hexdigest()[:32]
        name = f"step-{step:012d}-{digest}.safetensors"
        try:
            files.make_folder(self.path)
            for other in self.names():
                if other[:17] > name[:17]:  # damaged, since an older one was taken
                    (self.path / other).rename(self.path / (other + _DAMAGED))
            for left in os.listdir(self.path):  # by a process that was killed while it wrote
                if left.endswith(files.PARTIAL) and _NAME.match(left):
                    (self.path / left).unlink()
            files.write(self.path / name, content)
            for old in self.names()[keep:]:
                if old != name:
                    (self.path / old).unlink()
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {self.path / name} ({len(content):,} bytes) can't be written: "
                f"{error.strerror}. The ones before it are untouched; make room, or give another "
                "folder, and go on from the last one."
            ) from error
        return self.path / name

    def newest(self) -> bytes | None:
        """The content of the newest checkpoint that is whole; None if there never was one.

        Damaged ones are named on stderr, and the one before is taken.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        names = self.names()
        for name in names:
            problem = "its content is not what was written (its SHA-256 is not the one in its name)"
            try:
                content = self._read(name)
                if hashlib.sha256(content).hexdigest().startswith(name[18:50]):
                    return content
            except OSError as error:
                problem = f"it can't be read: {error.strerror}"
            except MemoryError:
                problem = "it does not fit into memory"
            sys.stderr.write(
                f"ddp_gd: the checkpoint {self.path / name} is damaged: {problem}. "
                "Looking for the one before it.\n"
            )
        if names:
            raise CheckpointError(
                f"None of the {len(names)} checkpoints in {self.path} is whole. Nothing was "
                "trained. Restore one from a backup, or give an empty folder to begin again."
            )
        return None

    def _read(self, name: str) -> bytes:
        # No link: what is read must lie in this folder.
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "not a file")
            return file.read()


def parse(content: bytes) -> tuple[dict[str, np.ndarray], str]:
    """Arrays and header of a checkpoint's content.

    Raises:
        CheckpointError: it is not one of ours.
    """
    try:
        arrays = safetensors_numpy.load(content)
        size = int.from_bytes(content[:8], "little")  # the format: this many bytes of JSON follow
        return arrays, json.loads(content[8 : 8 + size])["__metadata__"]["ddp_gd"]
    except _BROKEN as error:
        raise CheckpointError(
            f"The checkpoint was not written by ddp_gd ({type(error).__name__}: {error})."
        ) from error
