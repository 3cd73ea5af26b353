"""What `fit` and `evaluate` were given, as the source of their steps."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import numpy as np

from ddp_gd.batching.array_source import ArraySource
from ddp_gd.batching.arrays import Arrays
from ddp_gd.batching.batches import Feed, from_json, kind_of, name_of, to_json
from ddp_gd.batching.feeds import Numbered, Stream
from ddp_gd.batching.plan import Plan, bitwise_micro_batch_size, plan_of
from ddp_gd.batching.rows import NumberedRows
from ddp_gd.batching.source import Source
from ddp_gd.batching.split import train_validation_split
from ddp_gd.batching.stream_source import Pattern, StreamSource
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError, DataError
from ddp_gd.job import runtime

BATCH_SIZE = 32  # Keras's default, and ours
Data = tuple[Any, Any, Any]


def is_dataset(x: Any) -> bool:
    """Tell whether `x` gives global mini-batches."""
    return kind_of(x) in ("items", "stream")


def split(
    x: Any, y: Any, sample_weight: Any, validation_split: float, validation_data: Any
) -> tuple[Data, Data | None]:
    """Training and validation data, each `(x, y, sample_weight)`; None without validation."""
    if validation_data is not None:
        if is_dataset(validation_data):
            return (x, y, sample_weight), (validation_data, None, None)
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise DataError(
                f"validation_data is {type(validation_data).__name__!r}; expected (x, y), "
                "(x, y, sample_weight), a keras.utils.PyDataset, a tf.data.Dataset, or a generator."
            )
        return (x, y, sample_weight), (*validation_data, None)[:3]
    if not validation_split:
        return (x, y, sample_weight), None
    if is_dataset(x):
        raise ConfigError(
            f"validation_split={validation_split} can't be cut off a {name_of(x)}: give a second "
            "one as validation_data."
        )
    arrays = rows_of(x, y, sample_weight)
    train, _ = train_validation_split(arrays.rows, validation_split)
    return arrays.split(train.stop)


def rows_of(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
) -> Arrays | NumberedRows:
    """Rows with numbers: arrays, or what gives one row after the other."""
    make = NumberedRows if kind_of(x) == "rows" else Arrays
    return make(x, y, sample_weight, class_weight)


def for_training(
    communicator: Communicator,
    data: Data,
    class_weight: Mapping[int, float] | None,
    batch_size: int | str | None,
    micro_batch_size: int | None,
    shuffle: bool | Literal["batch"],
    seed: int | None,
    steps: int | None = None,
    read: str = "rank 0",
) -> Source:
    """The steps of an epoch of training on `(x, y, sample_weight)`; the rest as `fit` has it."""
    require_same_kind(communicator, "x", data[0], read)
    seed = agree.shared_seed(communicator, seed) if shuffle else 0
    if not is_dataset(data[0]):
        arrays = rows_of(*data, class_weight)
        bitwise = runtime.is_bitwise()
        batch_size = batch_size_of(batch_size, arrays.rows, steps)
        plan = plan_of(arrays.rows, batch_size, micro_batch_size, shuffle, seed, bitwise=bitwise)
        return ArraySource(arrays, plan, communicator, steps)
    refuse_beside_items(*data, batch_size)
    if shuffle not in (True, False):
        raise ConfigError(
            f"shuffle={shuffle!r} must be True or False where x is a {name_of(data[0])}: its items "
            "are whole mini-batches. Shuffle rows where the items are made."
        )
    return _stream_source(
        communicator, data[0], class_weight, micro_batch_size, shuffle, seed, steps, read, True
    )


def for_evaluation(
    communicator: Communicator,
    data: Data,
    batch_size: int | None,
    micro_batch_size: int | None = None,
    steps: int | None = None,
    read: str = "rank 0",
) -> Source:
    """The steps of an evaluation of `(x, y, sample_weight)`; the rest as `evaluate` has it."""
    require_same_kind(communicator, "the data to evaluate", data[0], read)
    if not is_dataset(data[0]):
        arrays = rows_of(*data)
        plan = Plan(arrays.rows, batch_size_of(batch_size, arrays.rows, steps), micro_batch_size)
        pieces = _micro_batch_size(plan.micro_batch_size, plan.step_rows(0))
        plan = dataclasses.replace(plan, micro_batch_size=pieces)
        return ArraySource(arrays, plan, communicator, steps)
    refuse_beside_items(*data, batch_size)
    return _stream_source(
        communicator, data[0], None, micro_batch_size, False, 0, steps, read, False
    )


def for_validation(
    communicator: Communicator,
    data: Data,
    batch_size: int | None,
    micro_batch_size: int | None,
    training: Source,
    steps: int | None = None,
    read: str = "rank 0",
) -> Source:
    """The steps of a validation; the rest as `fit` has it, and the source of its training."""
    if is_dataset(data[0]):
        if batch_size is not None:
            raise ConfigError(
                f"validation_batch_size={batch_size!r} was given, and validation_data is a "
                f"{name_of(data[0])}, whose items are the mini-batches as they are. Leave it out."
            )
    elif not batch_size and isinstance(training, ArraySource):
        # A validation batch is as large as a training batch: it may need the pieces, too.
        batch_size = training.plan.batch_size
    return for_evaluation(communicator, data, batch_size, micro_batch_size, steps, read)


def refuse_beside_items(x: Any, y: Any, sample_weight: Any, batch_size: Any) -> None:
    """Refuse what the items of a data set have in them already."""
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ConfigError(
                f"{name} is {type(value).__name__!r}, and x is a {name_of(x)}, whose items are "
                f"(x, y) or (x, y, sample_weight): put it in there, and leave {name} out."
            )
    if batch_size is not None:
        raise ConfigError(
            f"batch_size={batch_size!r} was given, and x is a {name_of(x)}, whose items are the "
            "global mini-batches as they are. Give its items so many rows, and leave it out."
        )


def steps_of(model: keras.Model, name: str, steps: Any) -> int | None:
    """How many steps an epoch has where `steps` were asked for, None for all that there are.

    As in Keras, they end with a whole execution of `compile(steps_per_execution=...)`, and are no
    more than `keras.config.set_max_steps_per_epoch` allows.

    Args:
        model: compiled.
        name: of the argument, for messages.
        steps: its value.

    Raises:
        ConfigError: it is no number of steps.
    """
    if steps is not None and (
        isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1
    ):
        raise ConfigError(f"{name}={steps!r} must be a whole number, 1 or more, or None.")
    most = keras.config.max_steps_per_epoch()
    if most and (not steps or most < steps):
        warnings.warn(f"Limiting {name} to {most}", stacklevel=2)
        steps = most
    at_once = int(model.steps_per_execution)
    return steps and -(-int(steps) // at_once) * at_once


def batch_size_of(batch_size: Any, rows: int, steps: int | None) -> Any:
    """The one that was given; else Keras's, which takes all rows in so many steps."""
    if batch_size is not None:
        return batch_size
    return -(-rows // steps) if steps else BATCH_SIZE


def open_feed(
    communicator: Communicator, make: Callable[[], Feed], pattern: Pattern
) -> tuple[Feed | None, dict[str, Any]]:
    """The data set, on the workers that read it, and what rank 0 says of it. Collective.

    Raises:
        BaseException: what it raised, on the workers that can't read it; on the others DataError,
            or the same error of this package.
    """
    feed, told = None, {}
    problem: BaseException | None = None
    if pattern != "one" or communicator.rank == 0:
        try:
            feed = make()
            told = {
                "kind": feed.kind,
                "count": feed.count,
                "rows": feed.rows,
                "signature": to_json(feed.signature),
            }
        except (Exception, SystemExit) as error:
            problem = error
    agree.raise_together(communicator, problem)
    if pattern == "one" and communicator.size > 1:
        told = agree.gather_json(communicator, told)[0]
    return feed, told


def _stream_source(
    communicator: Communicator,
    x: Any,
    class_weight: Mapping[int, float] | None,
    micro_batch_size: int | None,
    shuffle: bool,
    seed: int,
    steps: int | None,
    read: str,
    lives_on: bool,
) -> Source:
    pattern = pattern_of(x, read)
    if kind_of(x) == "stream":
        seed = 0

    def make() -> Feed:
        if kind_of(x) == "items":
            return Numbered(x, class_weight, steps is None, shuffle, seed)
        return Stream(x, class_weight, steps is None)

    # A size that can't be used is refused before anything is read.
    Plan(1, 1, micro_batch_size, seed=seed)
    feed, told = open_feed(communicator, make, pattern)
    return StreamSource(
        feed,
        told,
        from_json(told["signature"]),
        told["rows"],
        pattern,
        _micro_batch_size(micro_batch_size, told["rows"]),
        seed,
        steps,
        communicator,
        lives_on,
    )


def pattern_of(x: Any, read: str) -> Pattern:
    """Who reads the mini-batches of a data set.

    Raises:
        ConfigError: `read` is nothing that is known.
    """
    if read not in ("rank 0", "every worker"):
        raise ConfigError(f"read={read!r} must be 'rank 0' or 'every worker'.")
    if read == "every worker":
        return "all"
    return "deal" if kind_of(x) == "items" else "one"


def require_same_kind(communicator: Communicator, name: str, x: Any, read: str) -> None:
    """Refuse that some workers were given arrays and others a data set. Collective."""
    pattern_of(x, read)
    if communicator.size > 1:
        kind = kind_of(x)
        what = "arrays" if kind == "arrays" else name_of(x)
        agree.require_same_facts(communicator, {name: what, "read": read})


def _micro_batch_size(micro_batch_size: int | None, batch_size: int) -> int | None:
    """In bitwise mode every batch has micro-batches."""
    if micro_batch_size is None and runtime.is_bitwise():
        return bitwise_micro_batch_size(batch_size)
    return micro_batch_size
