"""Audits: arranged before a training, and what is said and left when one finds a difference."""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ddp_gd import files
from ddp_gd.batching.array_source import ArraySource
from ddp_gd.batching.plan import Audit
from ddp_gd.batching.source import Source
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import AuditError, ConfigError
from ddp_gd.job import runtime
from ddp_gd.steps import keras_private
from ddp_gd.steps.audit import Found
from ddp_gd.steps.step import Steps

# In the folder of checkpoints: the hosts that computed wrong, one a line, for who starts the job
# again. `launch/cpu_mpi.sh` reads it.
NAMED = "audit-named-hosts"

Line = tuple[int, ...]  # of `Checks`


class Difference(NamedTuple):
    """A micro-batch that two workers computed, and got different results."""

    which: int  # place in `SharedStep.audited`
    number: int
    owner: int
    auditor: int
    of_owner: Line
    of_auditor: Line


def require_possible(part: float, model: keras.Model, source: Source) -> None:
    """Refuse an audit of what can't be computed twice.

    Raises:
        ConfigError: outside of bitwise mode; or the rows have no numbers; or a step is overridden.
    """
    if part and not runtime.is_bitwise():
        raise ConfigError(
            f"audit={part} compares results to the last bit, which are the same in bitwise mode "
            "alone: call ddp_gd.init(bitwise=True), or leave audit out."
        )
    if part and not isinstance(source, ArraySource):
        raise ConfigError(
            f"audit={part} needs rows that any worker can read by their numbers, and here x gives "
            "whole mini-batches, each worker getting its share of them. Give arrays (memory-mapped "
            "ones for data larger than memory) or a data set of rows, or leave audit out."
        )
    if part and (name := keras_private.overrides(model, training=True)):
        raise ConfigError(
            f"audit={part} is for Keras's own step, and {type(model).__name__} overrides {name}(). "
            "Leave audit out."
        )


def arrange(communicator: Communicator, source: Source, part: float) -> None:
    """Let that part of all micro-batches be audited. Collective, where there is a part."""
    if part:
        assert isinstance(source, ArraySource)
        hosts = agree.gather_json(communicator, socket.gethostname())
        source.audit = Audit(part, source.seed, tuple(hosts))


def error(
    communicator: Communicator,
    source: Source,
    steps: Steps,
    found: Found,
    step: int,
    batch_rows: int,
    epoch: str,
) -> AuditError:
    """Find out who computed wrong. Collective.

    Args:
        communicator: the workers.
        source: of the rows.
        steps: have computed them; no update was made.
        found: what the last of them left.
        step: that one, counted from 0.
        batch_rows: its rows.
        epoch: in words.
    """
    assert isinstance(source, ArraySource)
    assert source.audit is not None
    of_all = "" if source.steps is None else f" of {source.steps}"
    where = f"step {step + 1}{of_all} of {epoch}"
    difference = _first_difference(communicator, source, found, step)
    if difference is None:
        return AuditError(
            f"In {where} the sum of all checksums of an audit was not 0, and every checksum is "
            "what it should be: a worker added wrong, or what was sent arrived as something else. "
            "No update was made. Go on from the last checkpoint."
        )
    rows = source.micro_batch(step, difference.number)
    line = steps.compute_again(difference.which, rows, difference.number, batch_rows, found)
    again = {rank: _line(row) for rank, row in enumerate(communicator.allgather(line).numpy())}
    pairs = zip(difference.of_owner[1:], difference.of_auditor[1:], strict=True)
    column = next(place for place, (one, other) in enumerate(pairs) if one != other)
    name = steps.audited_names[difference.which][column]
    hosts = source.audit.hosts
    wrong, text = verdict(difference, again, hosts, f"micro-batch {difference.number} of {where}")
    advice = (
        "A faulty core or memory is the likely reason: leave that host out, and go on from the "
        "last checkpoint, or an earlier one if the fault may be older."
    )
    if column == 0:
        advice = (
            "The rows themselves were read otherwise: a data set has to give the same row each "
            "time it is asked for, so seed what is drawn at random in it by the row's number. Else "
            "a disk or memory is faulty."
        )
    text = f"{text}; the first that differs is {name}. No update was made of it. {advice}"
    return AuditError(text, wrong, tuple(dict.fromkeys(hosts[rank] for rank in wrong)))


def verdict(
    difference: Difference, again: Mapping[int, Line], hosts: tuple[str, ...], what: str
) -> tuple[tuple[int, ...], str]:
    """Tell who computed wrong, and say so.

    Args:
        difference: what two of them got.
        again: what each worker got when all computed it once more.
        hosts: of each worker.
        what: the micro-batch, in words.

    Returns:
        Their ranks, none where it can't be told; the text.
    """
    owner, auditor = difference.owner, difference.auditor
    first = {owner: difference.of_owner, auditor: difference.of_auditor}

    def name(*ranks: int) -> str:
        return " and ".join(f"rank {rank} (on {hosts[rank]})" for rank in ranks)

    if len(again) == 1:
        return (0,), f"{name(0)} computed {what} twice, with different results"
    others = {rank: line for rank, line in again.items() if rank not in first}
    # Of two workers each speaks twice.
    results = [*first.values(), *(others or again).values()]
    right = _most(results)
    if not others and right not in first.values():
        right = None
    wrong = tuple(r for r, line in sorted({**first, **others}.items()) if line != right)
    if right is None:
        wrong = ()
        text = f"{name(owner, auditor)} computed {what} with different results"
    else:
        text = f"{name(*wrong)} computed {what} wrong"
    if others:
        right_ones = [str(r) for r, line in sorted({**first, **others}.items()) if line == right]
        if right is None:
            return wrong, f"{text}, and no majority of the workers tells which is right"
        verb = "rank" if len(right_ones) == 1 else "ranks"
        return wrong, f"{text}: {verb} {', '.join(right_ones)} got another result, and agree"
    told = [
        f"rank {rank} got {_compared(again[rank], first[rank], first[other], other)}"
        for rank, other in ((owner, auditor), (auditor, owner))
    ]
    beside = "" if right is None else f", or rank {next(r for r in first if r not in wrong)} did"
    return wrong, (
        f"{text}{beside}; of two workers it can't be told for certain. When both computed it once "
        f"more, {' and '.join(told)}"
    )


@contextlib.contextmanager
def left_in(folder: Path | None) -> Iterator[None]:
    """Leave the names of hosts that an audit found to compute wrong in the folder, if any."""
    try:
        yield
    except AuditError as found:
        if folder is not None and found.hosts:
            with contextlib.suppress(OSError):  # what matters is the error
                files.make_folder(folder)
                files.write(folder / NAMED, "".join(f"{host}\n" for host in found.hosts).encode())
        raise


def _first_difference(
    communicator: Communicator, source: ArraySource, found: Found, step: int
) -> Difference | None:
    """The first micro-batch whose owner and auditor got different results. Collective."""
    pairs = source.audited(step)
    for which, checks in enumerate(found.checks):
        own, again = (_by_worker(communicator, lines) for lines in checks)
        for number, (owner, auditor) in pairs.items():
            mine, theirs = own.get((owner, number)), again.get((auditor, number))
            if mine is not None and theirs is not None and mine != theirs:
                return Difference(which, number, owner, auditor, mine, theirs)
    return None


def _by_worker(communicator: Communicator, lines: Any) -> dict[tuple[int, int], Line]:
    """All workers' lines, by rank and micro-batch. Collective."""
    ranks = tf.fill([tf.shape(lines)[0], 1], tf.constant(communicator.rank, tf.int64))
    table = communicator.allgather(tf.concat([ranks, lines], 1)).numpy()
    return {(int(row[0]), int(row[1])): _line(row[1:]) for row in table}


def _line(row: np.ndarray) -> Line:
    return tuple(row.tolist())


def _most(results: list[Line]) -> Line | None:
    """The result that more have than any other, and not one alone; None if there is none."""
    counted = collections.Counter(results).most_common()
    most = [result for result, count in counted if count == counted[0][1]]
    return most[0] if len(most) == 1 and counted[0][1] > 1 else None


def _compared(now: Line, before: Line, others: Line, other: int) -> str:
    if now == before:
        return "the same as before"
    return f"what rank {other} had got" if now == others else "yet another result"
