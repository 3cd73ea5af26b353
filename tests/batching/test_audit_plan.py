"""Which micro-batches are audited, and by whom: a pure function of a few integers."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_gd.batching.plan import Audit, Plan, block, require_part
from ddp_gd.errors import ConfigError

PLAN = Plan(rows=1000, batch_size=45, micro_batch_size=4, shuffle=True, seed=3)


def hosts(*counts: int) -> tuple[str, ...]:
    """So many workers on each host."""
    return tuple(f"host{number}" for number, count in enumerate(counts) for _ in range(count))


def owner(number: int, micro_batches: int, size: int) -> int:
    """The worker whose share a micro-batch is in."""
    return next(w for w in range(size) if number in range(*block(micro_batches, size, w)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 20])
def test_each_is_audited_by_another_worker(size: int) -> None:
    """All of them at 1, each once, by a worker that isn't its owner; in one process by itself."""
    audit = Audit(1.0, 3, ("here",) * size)
    pairs = audit.pairs(0, 5, 12)
    assert list(pairs) == list(range(12))
    for number, (by, auditor) in pairs.items():
        assert by == owner(number, 12, size)
        assert (auditor != by) == (size > 1)


def test_the_part_is_what_was_asked_for() -> None:
    """Of many micro-batches 5 % are drawn, others in each epoch, and all workers as often."""
    audit = Audit(0.05, 3, ("here",) * 4)
    drawn = [audit.pairs(epoch, step, 12) for epoch in range(5) for step in range(400)]
    assert sum(map(len, drawn)) / (2000 * 12) == pytest.approx(0.05, rel=0.1)
    by = np.bincount([auditor for pairs in drawn for _, auditor in pairs.values()])
    assert by.max() == by.min()
    assert [list(p) for p in drawn[:400]] != [list(p) for p in drawn[400:800]]


@pytest.mark.parametrize(
    ("counts", "apart"),
    [((2, 2), 4), ((4, 4), 8), ((2, 2, 2), 6), ((1, 1, 1, 1), 4), ((3, 1), 2), ((4,), 0)],
)
def test_the_other_worker_is_on_another_host(counts: tuple[int, ...], apart: int) -> None:
    """Where each host has as many workers, all are audited from another host."""
    places = hosts(*counts)
    audit = Audit(1.0, 0, places)
    for step in range(20):
        pairs = audit.pairs(0, step, len(places))
        assert sum(places[a] != places[b] for a, b in pairs.values()) == apart


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_workers_agree_on_what_is_computed_again(size: int) -> None:
    """What the workers compute once more are the pairs; each owner knows which of its are."""
    audit = Audit(0.4, 3, ("here",) * size)
    steps = range(3, 9)
    count = PLAN.micro_batches(3)
    for rank in range(size):
        again = audit.again(PLAN, 2, steps, rank)
        at = 0
        for row, step in enumerate(steps):
            pairs = audit.pairs(2, step, count)
            mine = [number for number, (_, auditor) in pairs.items() if auditor == rank]
            begin, end = again.offsets[row : row + 2]
            assert again.numbers[begin:end].tolist() == mine
            for number in mine:
                first, stop = again.row_offsets[at : at + 2]
                positions = again.positions[first:stop] - step * PLAN.batch_size
                assert positions.tolist() == list(range(4 * number, min(4 * number + 4, 45)))
                at += 1
            first, stop = block(count, size, rank)
            watched = [number for number in range(first, stop) if again.places[row, number - first]]
            assert watched == [n for n, (by, _) in pairs.items() if by == rank]


@pytest.mark.parametrize("part", [-0.1, 1.01, "0.1", True, None, float("nan")])
def test_no_part_is_refused(part: object) -> None:
    """The value is quoted."""
    with pytest.raises(ConfigError, match=f"audit={part!r} must be"):
        require_part(part)
