"""The folder that `--out` names: chosen before anything is computed, made for the results."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ddp_gd.errors import ConfigError

LAST_WRITTEN = "report.html"
# What a training writes into its folder before that.
_WRITTEN = ("tensorboard", "history.csv", "times.csv", "config.json", "loss.png", "model.keras")


def choose(out: str | None, resume: bool = False) -> Path:
    """Choose the folder for the results; `make` makes it when there are some.

    Args:
        out: what was asked for.
        resume: whether it may hold what the same training left there before it was interrupted.

    Raises:
        ConfigError: it holds something else already, or could not be made.
    """
    if out is None:
        stamp = Path(time.strftime("runs/%Y%m%d-%H%M%S"))
        return next(folder for folder in numbered(stamp) if not folder.exists())
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder that is new or empty.")
    if folder.exists() and not _is_free(folder, resume):
        raise ConfigError(f"--out {out} is not empty; give a new folder, so nothing is lost.")
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"--out {out} can't be written: {existing} is read-only for this user.")
    return folder


def _is_free(folder: Path, resume: bool) -> bool:
    """Tell whether a folder holds only what this run's workers print (launch/cpu_mpi.sh).

    With `resume` it may hold parts of results that were never finished, too.
    """
    known = {"logs", *_WRITTEN} if resume else {"logs"}
    return all(entry.name in known and not entry.is_symlink() for entry in folder.iterdir())


def make(chosen: Path, resume: bool = False) -> Path:
    """Make the folder, or the next free one: another run may have taken it in the meantime."""
    for folder in numbered(chosen):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        if folder.is_dir() and _is_free(folder, resume):
            return folder
    raise AssertionError("there is always another number")


def numbered(path: Path) -> Iterator[Path]:
    """Give the path, and then the same with -2, -3, ... before its suffix."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what to do where the results can't be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The results can't be written to {folder} ({error}): make room there, or give "
            "another --out."
        ) from error
