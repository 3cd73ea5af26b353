"""Small collectives: what any worker says, what rank 0 says, and that all were given the same."""

import json
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd import errors
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError, DataError, DdpGdError, MismatchError

_DIFFERENCES = 8  # so many are named
_CHARACTERS = 4000  # of a traceback


def shared_seed(communicator: Communicator, seed: int | None) -> int:
    """Return the seed that was given, or one that rank 0 draws from NumPy's global generator."""
    if seed is not None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1.")
        return int(seed)
    # Every worker draws, so that the generators stay in step with each other.
    drawn = tf.constant(np.random.randint(2**31), tf.int64)
    return int(communicator.broadcast([drawn])[0])


def any_worker(communicator: Communicator, flag: bool) -> bool:
    """Tell whether `flag` is true on any worker."""
    if communicator.size == 1:
        return flag
    return bool(communicator.allreduce_sum([tf.constant(int(flag))])[0])


def from_rank_0(communicator: Communicator, number: int) -> int:
    """Return rank 0's number, on every worker."""
    return int(communicator.broadcast([tf.constant(number, tf.int64)])[0])


def gather_json(communicator: Communicator, value: Any) -> list[Any]:
    """Return every worker's value, in the order of ranks. Collective; anything JSON can hold."""
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = communicator.allgather(np.array([len(mine)], np.int64)).numpy()
    everyone = communicator.allgather(mine).numpy().tobytes()
    ends = np.cumsum(lengths)
    return [json.loads(everyone[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def raise_together(communicator: Communicator, error: BaseException | None) -> None:
    """Raise this worker's error, or that there is one on another worker. Collective.

    Whoever catches an error finds all workers at the same place, and none waits for another one.

    Raises:
        BaseException: `error`.
        DataError: on workers without one, where another one has one; with its class, if that is
            one of this package's.
    """
    if communicator.size > 1:
        told = None
        if error is not None:
            known = isinstance(error, DdpGdError)
            text = str(error) if known else "".join(traceback.format_exception(error))
            told = [type(error).__name__ if known else "", text[-_CHARACTERS:]]
        for rank, found in enumerate(gather_json(communicator, told)):
            if error is None and found is not None:
                name, text = found
                kind = getattr(errors, name, DataError) if name else DataError
                raise kind(text if name else f"Rank {rank} could not go on:\n{text}")
    if error is not None:
        raise error


def require_same_facts(communicator: Communicator, facts: Mapping[str, str]) -> None:
    """Stop every worker where one was given something other than rank 0. Collective.

    Args:
        communicator: the workers that have to agree.
        facts: what must be the same on all of them, by name.

    Raises:
        MismatchError: on every worker, with one text: who differs, in what, and both values.
    """
    everyone = gather_json(communicator, dict(facts))
    differences = []
    for key in sorted({key for theirs in everyone for key in theirs}):
        expected = everyone[0].get(key)
        others: dict[str | None, list[int]] = {}
        for number, theirs in enumerate(everyone):
            if theirs.get(key) != expected:
                others.setdefault(theirs.get(key), []).append(number)
        for value, ranks in others.items():
            who = f"rank{'s' * (len(ranks) > 1)} {_shorten(', '.join(map(str, ranks)))}"
            differences.append(f"{key}: rank 0 has {_quote(expected)}, {who} {_quote(value)}")
    if differences:
        if len(differences) > _DIFFERENCES:
            differences[_DIFFERENCES:] = [f"and {len(differences) - _DIFFERENCES} more"]
        raise MismatchError(
            f"the workers were not given the same. {'; '.join(differences)}. "
            "Start every worker with the same program, arguments, data and versions."
        )


def _quote(value: str | None) -> str:
    return "nothing" if value is None else _shorten(repr(value))


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
