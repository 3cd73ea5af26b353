"""The plan of an epoch: pure integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ddp_gd.batching.plan import Plan, Share, block
from ddp_gd.errors import ConfigError

CUTS = [
    Plan(rows, batch, micro)
    for rows, batch, micro in itertools.product((1, 2, 7, 13, 64), (1, 3, 8, 64), (None, 1, 3, 100))
    if batch <= rows
]
SIZES = (1, 2, 3, 4, 7)


@pytest.mark.parametrize(
    ("total", "parts", "blocks"),
    [
        (6, 3, [(0, 2), (2, 4), (4, 6)]),  # even
        (7, 3, [(0, 3), (3, 5), (5, 7)]),  # the first block is the larger one
        (8, 3, [(0, 3), (3, 6), (6, 8)]),  # the first two are
        (2, 4, [(0, 1), (1, 2), (2, 2), (2, 2)]),  # fewer items than blocks: the last are empty
        (0, 2, [(0, 0), (0, 0)]),  # nothing to cut
        (5, 1, [(0, 5)]),  # one block is everything
    ],
)
def test_block_table(total: int, parts: int, blocks: list[tuple[int, int]]) -> None:
    """Blocks are consecutive, cover everything, and differ by at most one item."""
    assert [block(total, parts, index) for index in range(parts)] == blocks


@pytest.mark.parametrize(
    ("plan", "step", "size", "shares"),
    [
        # 8 rows for 3 workers: the first two get an extra row; a share is one micro-batch.
        (Plan(8, 8), 0, 3, [Share(0, 3, 0), Share(3, 6, 1), Share(6, 8, 2)]),
        # The last step has 5 rows.
        (Plan(13, 8), 1, 2, [Share(0, 3, 0), Share(3, 5, 1)]),
        # Fewer rows than workers: the last share is empty.
        (Plan(2, 2), 0, 3, [Share(0, 1, 0), Share(1, 2, 1), Share(2, 2, 2)]),
        # Micro-batches of 3 rows are 0-3, 3-6, 6-8; the first worker gets two of them.
        (Plan(8, 8, 3), 0, 2, [Share(0, 6, 0), Share(6, 8, 2)]),
        # One micro-batch: the other worker's share is empty, and stands at the end.
        (Plan(8, 8, 100), 0, 2, [Share(0, 8, 0), Share(8, 8, 1)]),
        # Micro-batches of one row are cut like rows, but numbered.
        (Plan(5, 5, 1), 0, 2, [Share(0, 3, 0), Share(3, 5, 3)]),
    ],
)
def test_share_table(plan: Plan, step: int, size: int, shares: list[Share]) -> None:
    """A share is a block of consecutive micro-batches, or of rows where there are none."""
    assert [plan.share(step, rank, size) for rank in range(size)] == shares


@pytest.mark.parametrize("plan", CUTS, ids=str)
def test_every_position_is_computed_once_an_epoch(plan: Plan) -> None:
    """The shares of all workers hold every position exactly once an epoch, in the order."""
    for size in SIZES:
        positions: list[int] = []
        for step in range(plan.steps):
            begin = step * plan.batch_size
            for share in (plan.share(step, rank, size) for rank in range(size)):
                positions += range(begin + share.start, begin + share.stop)
            assert len(positions) == begin + plan.step_rows(step)
        assert positions == list(range(plan.rows))


@pytest.mark.parametrize("plan", CUTS, ids=str)
def test_shares_of_many_steps_equal_those_of_each(plan: Plan) -> None:
    """`shares` gives, for any run of steps, what `share` gives step by step."""
    for size in SIZES:
        for rank, first in itertools.product(range(size), range(plan.steps)):
            for stop in {first + 1, (first + 1 + plan.steps) // 2, plan.steps} - {first}:
                shares = plan.shares(first, stop, rank, size)
                for step in range(first, stop):
                    share = plan.share(step, rank, size)
                    begin, end = shares.offsets[step - first : step - first + 2]
                    begin_of_batch = step * plan.batch_size
                    expected = begin_of_batch + np.arange(share.start, share.stop)
                    np.testing.assert_array_equal(shares.positions[begin:end], expected)
                    assert shares.batch_rows[step - first] == plan.step_rows(step)
                    assert shares.starts[step - first] == share.start
                assert shares.offsets[-1] == len(shares.positions)
                assert shares.positions.dtype == np.int64


@pytest.mark.parametrize("plan", CUTS, ids=str)
def test_empty_shares_are_known_beforehand(plan: Plan) -> None:
    """`has_empty_shares` tells whether any worker's share of any step is empty."""
    for size in SIZES:
        shares = [plan.share(s, r, size) for s in range(plan.steps) for r in range(size)]
        assert plan.has_empty_shares(size) == any(s.start == s.stop for s in shares)


@pytest.mark.parametrize("plan", [p for p in CUTS if p.micro_batch_size], ids=str)
def test_micro_batches_do_not_depend_on_the_workers(plan: Plan) -> None:
    """Cut into micro-batches, a global mini-batch falls into the same pieces at any size."""

    def pieces(size: int) -> list[tuple[int, int, int]]:
        found = []
        for step, rank in itertools.product(range(plan.steps), range(size)):
            share = plan.share(step, rank, size)
            for number, start in enumerate(range(share.start, share.stop, plan.micro_batch_size)):
                stop = min(start + plan.micro_batch_size, share.stop)
                found.append((share.micro_batch + number, start, stop))
        return found

    assert all(pieces(size) == pieces(1) for size in SIZES)


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"rows": 0, "batch_size": 1}, "0 rows"),
        ({"rows": 5, "batch_size": 0}, "batch_size=0"),
        ({"rows": 5, "batch_size": -1}, "batch_size=-1"),
        ({"rows": 5, "batch_size": 2, "micro_batch_size": 0}, "micro_batch_size=0"),
        ({"rows": 5, "batch_size": 1.5}, "batch_size=1.5"),
        ({"rows": 5, "batch_size": True}, "batch_size=True"),
        ({"rows": 5, "batch_size": 2, "micro_batch_size": 2.0}, "micro_batch_size=2.0"),
        ({"rows": 5, "batch_size": 2, "shuffle": "rows"}, "shuffle='rows'"),
        ({"rows": 5, "batch_size": 2, "seed": -1}, "seed=-1"),
        ({"rows": 5, "batch_size": 2, "seed": 2**63}, f"seed={2**63}"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict, quoted: str) -> None:
    """What can't be planned is refused, with the value in the message."""
    with pytest.raises(ConfigError, match=quoted.replace("*", r"\*")):
        Plan(**arguments)
