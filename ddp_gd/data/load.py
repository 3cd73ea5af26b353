"""`load`: files to arrays, converted once on each host."""

import dataclasses
import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.data.convert import prepare
from ddp_gd.data.dataset import Dataset, open_prepared
from ddp_gd.data.request import Request
from ddp_gd.job import runtime

_TURN = 0.5  # seconds of work between two looks at the other workers
# A column of texts is remarked on where there are more than so many, each in fewer rows than these.
_FEW_TEXTS, _ROWS_OF_A_TEXT = 20, 4
_SHOW_AFTER = 2.0  # seconds before a progress bar appears


def load(
    source: str | Path | Sequence[str | Path],
    target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    sample_weight: str | None = None,
    categorical: Sequence[str] = (),
    missing: Literal["error", "drop", "mean"] = "error",
    dtype: str = "float64",
    cache: bool = True,
    exclude: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
) -> Dataset:
    """Read a data set, of any size, into arrays that are mapped into memory.

    All workers call it, with the same arguments. One worker of each host reads and converts, in
    bounded memory, while the others wait; all of a host share the pages of what comes out. It is
    kept in a cache (`DDP_GD_CACHE`, at most `DDP_GD_CACHE_BYTES`), found by the files' content and
    these options, so that the next start is quick.

    Args:
        source: one of

            - a `.csv` file: UTF-8, commas, a header line. Columns hold numbers, true and false, or
              texts, which are then categories; blank lines are skipped, spaces around cells
              ignored;
            - a `.parquet` file;
            - several such files with the same columns, or a folder of them, in the order of names;
            - a `.npz` file with the arrays `x`, `y` and perhaps `sample_weight`, rows first;
            - a `.npy` file of features; `target` and `sample_weight` then name such files, too;
            - a folder with a folder of images for each class: PNG, JPEG, GIF (the first picture),
              BMP. They become uint8, shape (rows, height, width, 3), in the order of classes and
              names;
            - `"diabetes"`, built in: 442 rows, 10 features, target `progression`;
            - `"keras:mnist"` and the other arrays of `keras.datasets`; `"keras:mnist/test"` for
              their second part. Keras downloads them.
        target: the column to predict, or several.
        features: columns to use; None for all others.
        sample_weight: column of each row's weight.
        categorical: columns to take as categories although they hold numbers.
        missing: `"error"`, `"drop"` rows with a missing cell, or `"mean"`, which leaves NaN for
            missing numbers of features, to be filled with the mean of the training rows. An empty
            cell among texts is then a category of its own.
        dtype: of a table's features: `"float64"`, `"float32"`, `"float16"`.
        image_size: height and width to which images are resized (bilinear); None takes those of
            the first one.
        cache: False converts into a temporary folder, which is removed at once.
        exclude: columns that are no features, in place of naming all that are.

    Returns:
        The data set; the same on every worker.

    Raises:
        DataError: the source is unknown, cannot be read, or holds something that can't be used. The
            message names the file, the place and the value.
        MismatchError: another worker was given other data.
    """
    request = Request(
        source=(source,) if isinstance(source, (str, Path)) else tuple(source),
        target=(target,) if isinstance(target, str) else tuple(target or ()),
        features=None if features is None else tuple(features),
        sample_weight=sample_weight,
        categorical=tuple(categorical),
        missing=missing,
        dtype=dtype,
        exclude=tuple(exclude),
        image_size=image_size,
    )
    return fetch(request, cache)


@runtime.collective
def fetch(request: Request, cache: bool = True) -> Dataset:
    """Do what `load` does."""
    communicator = runtime.communicator()
    if communicator.size > 1:
        asked = json.dumps(dataclasses.asdict(request), default=str)
        agree.require_same_facts(communicator, {"ddp_gd.load": asked})
    record: dict[str, Any] | None = None
    temporary: Path | None = None

    def work() -> Iterator[float]:
        nonlocal record, temporary
        record, temporary = yield from prepare(request, cache)

    once_per_host(communicator, work, f"converting {request.name}")
    try:
        dataset = _open_on_all(communicator, request.name, record)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)  # what is mapped stays until it is closed
    if communicator.rank == 0:
        sys.stderr.writelines(f"ddp_gd: {line}\n" for line in _remarks(request, dataset))
    return dataset


def _remarks(request: Request, dataset: Dataset) -> Iterator[str]:
    """What was done to the data that the user may not expect."""
    rows = len(dataset.features)
    if dataset.dropped:
        yield f"{request.name}: {dataset.dropped} rows with missing cells left out, {rows} kept"
    if dataset.missing_cells:
        yield (
            f"{request.name}: {dataset.missing_cells} missing cells are filled with the mean of "
            "their column's training rows"
        )
    for place, texts in dataset.categories.items():
        name = dataset.feature_names[place]
        if request.targets_needed and len(texts) > max(_FEW_TEXTS, rows / _ROWS_OF_A_TEXT):
            yield (
                f"warning: column {name!r} holds {len(texts)} different texts in {rows} rows, and "
                "each becomes a feature of its own. If it names rows (a date, an id) rather than "
                f"describing them, leave it out: exclude {name!r}."
            )


def _open_on_all(communicator: Communicator, name: str, record: dict[str, Any] | None) -> Dataset:
    """Open on every worker what one worker of its host prepared."""
    if communicator.size > 1:
        here = [socket.gethostname(), boot_id()]
        everyone = agree.gather_json(communicator, [here, record])
        record = next(record for where, record in everyone if record and where == here)
    assert record is not None
    dataset = open_prepared(record, name)
    if communicator.size > 1:
        # All have it open now.
        agree.require_same_facts(communicator, {"data (SHA-256)": dataset.key})
    return dataset


def once_per_host(
    communicator: Communicator, work: Callable[[], Iterator[float]], title: str
) -> None:
    """Let one worker of each host do something long, while the others wait. Collective.

    It is done a little at each step of `work`, which yields how much is done, from 0 to 1. Rank 0
    shows that with a title, if it takes long.
    """
    mine = work() if communicator.local_rank == 0 else iter(())
    done, at_work = 0.0, True
    began = time.monotonic()
    shown = False
    while True:
        until = time.monotonic() + _TURN
        while at_work and time.monotonic() < until:
            state = next(mine, None)
            at_work = state is not None
            done = 1.0 if state is None else state
        left = int(at_work)
        if communicator.size > 1:
            left = int(communicator.allreduce_sum([tf.constant(left)])[0])
        late = time.monotonic() > began + _SHOW_AFTER
        if communicator.rank == 0 and late and sys.stderr.isatty():
            bar = "=" * int(30 * done)
            sys.stderr.write(f"\r{title} [{bar:<30}] {done:4.0%} ")
        elif communicator.rank == 0 and late and not shown:
            sys.stderr.write(f"{title} ...")  # a file of many lines helps nobody
        shown = shown or late
        sys.stderr.flush()
        if not left:
            break
    if shown and communicator.rank == 0:
        sys.stderr.write("\n")


def boot_id() -> str:
    """What tells this host's kernel from others with the same name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
