"""All that a training needs to go on: taken at the end of a step, restored on every worker."""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import CheckpointError, ConfigError, MismatchError
from ddp_gd.job import bitwise
from ddp_gd.steps.keras_private import global_seed
from ddp_gd.training import replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.saving.checkpoint import Checkpoint
from ddp_gd.training.saving.checkpoint_files import Folder, parse

_FORMAT = 3
# What a header of another shape leads to.
_ODD = (
    AttributeError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
_DIFFERENCES = 8  # so many are named
_SEED = "global seed"  # the array's name
_BYTES_PER_BROADCAST = 2**30
# A training may be continued to another length.
_MAY_DIFFER = ("epochs", "initial_epoch", "check_every", "audit", "terminate_on_nan")


class Position(NamedTuple):
    """How far a training is: so many steps of this epoch, counted from 0, are made.

    `updates` are those of all epochs.
    """

    epoch: int
    step: int
    updates: int

    def __str__(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        position: where to go on.
        seed: of the order of rows.
        stopped: whether a callback ended the training there.
        facts: what the training was given, see `identity.require_same`.
        bits: what its bits depend on.
        logs: the last ones.
        history: Keras's `History.history` so far, and its `epoch`.
        callbacks: class name and changed attributes of each callback.
        arrays: values of the variables, and of callbacks' arrays, by name.
        mark: tells what was read there, see `Source.mark`.
    """

    position: Position
    seed: int
    stopped: bool
    facts: Mapping[str, str]
    bits: Mapping[str, str]
    logs: dict[str, Any]
    history: Mapping[str, Any]
    callbacks: list[tuple[str, dict[str, Any]]]
    arrays: dict[str, np.ndarray]
    mark: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Refuse to go on with another training.

        Raises:
            MismatchError: what differs, and both values.
        """
        if differences := _differences(_comparable(self.facts), _comparable(facts)):
            raise MismatchError(
                f"The checkpoint is of another training. {differences}. Train on the same data "
                "with the same model and settings (only the number of workers and of epochs may "
                "differ), or begin again in an empty folder."
            )

    def warn_of_other_bits(self, communicator: Communicator) -> None:
        """Say on rank 0 where the training was begun on something that gives other bits."""
        if communicator.rank > 0:
            return
        # Threads come and go with the number of workers.
        saved, mine = ({**f, "intra-op threads": ""} for f in (self.bits, bitwise.facts()))
        if differences := _differences(saved, mine):
            warnings.warn(
                f"The training goes on elsewhere than it began, equal to rounding only: "
                f"{differences}. (With bitwise=True this would be an error.)",
                stacklevel=4,
            )

    def restore(self, model: keras.Model, hooks: Hooks) -> None:
        """Make model, optimizer, metrics, History and callbacks what they were.

        Raises:
            CheckpointError: it doesn't hold what they need; nothing has been changed.
        """
        variables = _variables(model, with_seed=_SEED in self.arrays)
        dtypes = {
            name: np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype)
            for name, variable in variables.items()
        }
        for name, variable in variables.items():
            value = self.arrays.get(name)
            needed = f"{_stored(dtypes[name])}{list(variable.shape)}"
            held = None if value is None else f"{value.dtype}{list(value.shape)}"
            if held != needed:
                raise CheckpointError(
                    f"The checkpoint holds {held} as {name!r}, but {variable.path} needs {needed}. "
                    "Restore it from a backup, or begin again in an empty folder."
                )
        for name, variable in variables.items():
            variable.assign(self.arrays[name].view(dtypes[name]))
        model.history.history = {name: list(v) for name, v in self.history["logs"].items()}
        model.history.epoch = list(self.history["epoch"])
        hooks.restore(self.callbacks)


def load(communicator: Communicator, checkpoint: Checkpoint | None) -> Snapshot | None:
    """Rank 0's newest checkpoint, on every worker; None if this training has not begun. Collective.

    Raises:
        ConfigError: the folder holds a training, and `resume` was not asked for.
        CheckpointError: nothing in it can be used.
    """
    if communicator.size > 1:  # what follows is for all workers or for none
        agree.require_same_facts(communicator, {"checkpoint": repr(checkpoint)})
    if checkpoint is None:
        return None
    content = b""
    if communicator.rank == 0:
        folder = Folder(checkpoint.directory)
        if folder.names() and not checkpoint.resume:
            raise ConfigError(
                f"{folder.path} holds the checkpoints of a training: {folder.names()[0]} and "
                f"{len(folder.names()) - 1} more. Go on from there with resume=True, or give an "
                "empty folder."
            )
        content = folder.newest() or b""
    length = agree.from_rank_0(communicator, len(content))
    if length == 0:
        return None
    pieces = []
    for start in range(0, length, _BYTES_PER_BROADCAST):
        size = min(_BYTES_PER_BROADCAST, length - start)
        piece = np.frombuffer(content[start : start + size] or bytes(size), np.uint8)
        pieces.append(communicator.broadcast([tf.constant(piece)])[0].numpy().tobytes())
    return read(b"".join(pieces))


def read(content: bytes) -> Snapshot:
    """The snapshot in a checkpoint's content, all of which is checked.

    Raises:
        CheckpointError: it is none, or of another version.
    """
    arrays, text = parse(content)
    try:
        header = json.loads(text)
        if header["format"] != _FORMAT:
            raise CheckpointError(
                f"The checkpoint has format {header['format']!r:.40}, and this version of ddp_gd "
                f"reads {_FORMAT}. Go on with the version that wrote it."
            )
        epoch, step, updates = header["position"]
        return Snapshot(
            position=Position(_count(epoch), _count(step), _count(updates)),
            seed=_count(header["seed"]),
            stopped=_a(bool, header["stopped"]),
            facts={name: _a(str, fact) for name, fact in header["facts"].items()},
            bits={name: _a(str, fact) for name, fact in header["bits"].items()},
            logs={name: _decoded(value) for name, value in header["logs"].items()},
            history={
                "logs": {
                    name: [_decoded(value) for value in _a(list, values)]
                    for name, values in header["history"]["logs"].items()
                },
                "epoch": [_count(number) for number in header["history"]["epoch"]],
            },
            callbacks=[
                (_a(str, name), _state(number, state, arrays))
                for number, (name, state) in enumerate(header["callbacks"])
            ],
            arrays=arrays,
            mark={name: _a(str, value) for name, value in header["mark"].items()},
        )
    except _ODD as error:
        raise CheckpointError(
            "The checkpoint's header is not one that ddp_gd wrote "
            f"({type(error).__name__}: {error!s:.200}). Restore it from a backup, or begin "
            "again in an empty folder."
        ) from error


def _variables(model: keras.Model, with_seed: bool) -> dict[str, Any]:
    """What is saved, by the name of its array; Keras's global seed is made if there is none."""
    numbered = enumerate([*replicas.variables(model), *model.metrics_variables])
    named = {f"variable/{number}": variable for number, variable in numbered}
    return named | ({_SEED: global_seed(make=True)} if with_seed else {})


def _comparable(facts: Mapping[str, str]) -> dict[str, str]:
    """Without what Keras numbers through: the second model of a process is named otherwise."""
    comparable = {n: re.sub(r"_\d+\b", "", f) for n, f in facts.items() if n not in _MAY_DIFFER}
    for name in comparable:
        if "variables[" in name:
            comparable[name] = re.sub(r"^\S*/", "", comparable[name])
    comparable["model"] = comparable["model"].split()[0]
    return comparable


def _differences(saved: Mapping[str, str], mine: Mapping[str, str]) -> str:
    """The first of them, in words."""
    names = [name for name in {**saved, **mine} if mine.get(name) != saved.get(name)]
    texts = []
    for name in names[:_DIFFERENCES]:
        layer = re.match(r"layer \d+(?= )", name)
        shown = name.replace(layer[0], f"{layer[0]} ({mine.get(layer[0])})") if layer else name
        values = f"the checkpoint has {saved.get(name)!r}, this training {mine.get(name)!r}"
        texts.append(f"{shown}: {values}")
    if len(names) > len(texts):
        texts.append(f"and {len(names) - len(texts)} more")
    return "; ".join(texts)


def _encoded(value: Any) -> Any:
    """As JSON, which keeps every bit of a float; a number may be a tensor or a variable."""
    if hasattr(value, "__array__"):
        value = np.asarray(value)
        if value.ndim:
            return {"values": value.tolist(), "dtype": value.dtype.name}
        return value.item()
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict) and "values" in value:
        dtype = np.dtype(_a(str, value["dtype"]))
        if dtype.kind not in "biufcV" or dtype.itemsize > 16:
            raise ValueError(f"an array of {value['dtype']!r:.40}")
        return np.array(value["values"], dtype)
    return value


def _stored(dtype: np.dtype) -> np.dtype:
    """bfloat16 and the like, which NumPy itself does not know, travel as numbers as wide."""
    return dtype if dtype.kind in "biufc" else np.dtype(f"u{dtype.itemsize}")


def _state(number: int, state: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The attributes of callback `number`."""
    attributes = {}
    for attribute, value in state.items():
        if isinstance(value, dict) and "arrays" in value:
            count = _count(value["arrays"])
            attributes[attribute] = [
                arrays[f"callback/{number}/{attribute}/{i}"] for i in range(count)
            ]
        else:
            attributes[attribute] = _decoded(value)
    return attributes


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} in the place of {kind.__name__}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise TypeError(f"{value!r:.40} in the place of a whole number")
    return value
