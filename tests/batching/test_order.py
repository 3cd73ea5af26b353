"""The order of rows: random, the same on every worker, and in O(1) memory for many rows."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from ddp_gd.batching import order
from ddp_gd.batching.order import MOST_DRAWN, Order
from ddp_gd.batching.plan import Plan
from ddp_gd.batching.split import RandomSplit, train_validation_split


def rows_in_order(plan: Plan, epoch: int) -> list[int]:
    """All row numbers of an epoch."""
    return Order(plan, epoch).rows(np.arange(plan.rows)).tolist()


@pytest.mark.parametrize("kind", [True, False, "batch"])
@pytest.mark.parametrize("most_drawn", [order.MOST_DRAWN, 0], ids=["drawn", "computed"])
def test_every_row_once_an_epoch(kind: object, most_drawn: int, monkeypatch) -> None:
    """Each order is a permutation, and a part of it is what the whole has there."""
    monkeypatch.setattr(order, "MOST_DRAWN", most_drawn)
    for rows, batch_size, epoch in itertools.product((1, 2, 7, 64, 5000), (1, 3, 64), (0, 3)):
        plan = Plan(rows, batch_size, shuffle=kind, seed=5)
        whole = rows_in_order(plan, epoch)
        assert sorted(whole) == list(range(rows))
        some = np.arange(rows)[rows // 3 :: 2]
        assert Order(plan, epoch).rows(some).tolist() == [whole[position] for position in some]


@pytest.mark.parametrize("most_drawn", [order.MOST_DRAWN, 0], ids=["drawn", "computed"])
def test_orders_depend_on_seed_and_epoch_only(most_drawn: int, monkeypatch) -> None:
    """The same seed and epoch give the same order, another seed or epoch another one."""
    monkeypatch.setattr(order, "MOST_DRAWN", most_drawn)
    for kind in (True, "batch"):
        plans = [Plan(50, 10, None, kind, seed) for seed in (1, 2, 2**62)]
        orders = {(p.seed, e): rows_in_order(p, e) for p in plans for e in (0, 1, 7)}
        assert len({tuple(rows) for rows in orders.values()}) == len(orders)
        for (seed, epoch), rows in orders.items():
            # Micro-batches change nothing, nor do the epochs before.
            assert rows_in_order(Plan(50, 10, 3, kind, seed), epoch) == rows


@pytest.mark.parametrize("kind", [True, False, "batch"])
def test_a_worker_may_have_no_row_of_a_step(kind: object) -> None:
    """The order of no rows has none."""
    assert Order(Plan(7, 2, shuffle=kind), 0).rows(np.arange(0)).tolist() == []


@pytest.mark.parametrize("kind", [1, 0, np.True_, np.False_], ids=repr)
def test_what_is_true_shuffles_and_what_is_false_does_not(kind: object) -> None:
    """As in Keras, which asks for no more than the truth of what it's given."""
    plan = Plan(64, 8, shuffle=kind, seed=5)
    assert rows_in_order(plan, 0) == rows_in_order(Plan(64, 8, shuffle=bool(kind), seed=5), 0)


def test_batch_shuffle_stays_inside_its_batch() -> None:
    """`shuffle="batch"` moves rows inside their global mini-batch only, each in another way."""
    rows = rows_in_order(Plan(23, 5, shuffle="batch", seed=1), 0)
    moves = [np.subtract(rows[first : first + 5], first).tolist() for first in range(0, 20, 5)]
    assert all(sorted(move) == list(range(5)) for move in moves)
    assert len({tuple(move) for move in moves}) > 1
    assert sorted(rows[20:]) == [20, 21, 22]


def test_few_rows_are_shuffled_uniformly() -> None:
    """Over many epochs, each of the 24 orders of 4 rows comes up about equally often."""
    plan = Plan(4, 2, shuffle=True)
    orders, counts = np.unique(
        [rows_in_order(plan, e) for e in range(2400)], axis=0, return_counts=True
    )
    assert len(orders) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 49.7  # chi-squared, 23 degrees of freedom, p = 0.001


@pytest.mark.parametrize("rows", [order.MOST_DRAWN + 7, 10**12])
def test_many_rows_are_shuffled_without_a_pattern(rows: int) -> None:
    """Rows come from everywhere, neighbours go anywhere, another epoch is another order."""
    plan, count = Plan(rows, 256, shuffle=True, seed=3), 40_000
    for first in (0, rows // 2):
        positions = np.arange(first, first + count)
        found = Order(plan, 0).rows(positions)
        assert len(np.unique(found)) == count
        counts = np.histogram(found, bins=20, range=(0, rows))[0]
        assert ((counts - count / 20) ** 2 / (count / 20)).sum() < 43.8  # 19 degrees, p = 0.001
        near = 4 / np.sqrt(count)  # 4 standard deviations of a correlation of independent numbers
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < near
        distances = np.abs(np.diff(found))
        assert abs(np.corrcoef(distances[:-2], distances[2:])[0, 1]) < near
        assert abs(np.corrcoef(found, Order(plan, 1).rows(positions))[0, 1]) < near


def test_memory_does_not_grow_with_the_rows() -> None:
    """The rows of any step are found at once, at 10**12 rows as at 10**7."""
    peaks = []
    for rows in (10**7, 10**12):
        plan = Plan(rows, 256, shuffle=True, seed=1)
        tracemalloc.start()
        for step in (0, plan.steps // 2, plan.steps - 1):
            shares = plan.shares(step, step + 1, 1, 3)
            found = Order(plan, 2).rows(shares.positions)
            assert len(found) == plan.share(step, 1, 3).stop - plan.share(step, 1, 3).start
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 10**6


@pytest.mark.parametrize(
    ("rows", "fraction"),
    [(10, 0.3), (442, 0.1), (100_000, 0.0), (MOST_DRAWN + 12_345, 0.1), (3 * 2**20, 0.999)],
)
def test_split_takes_every_row_once(rows, fraction):
    """Training and validation rows together are all rows, as many of each as in Keras."""
    split = RandomSplit(rows, fraction, seed=5)
    assert split.training == train_validation_split(rows, fraction)[0].stop
    both = [
        split.training_rows(np.arange(split.training)),
        split.validation_rows(np.arange(split.validation)),
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(both)), np.arange(rows))


def test_split_of_many_rows_needs_no_memory():
    """At 10^12 rows any training row is found at once, and a twentieth of each region is held."""
    split = RandomSplit(10**12, 0.05, seed=5)
    positions = np.linspace(0, split.training - 1, 10_000).astype(np.int64)
    found = split.training_rows(positions)
    assert len(np.unique(found)) == len(found)
    np.testing.assert_allclose(found / 10**12, positions / split.training, atol=1e-6)
    held = split.validation_rows(np.arange(10_000) + 10**9)
    assert not np.isin(held, split.training_rows(np.arange(19 * 10**9, 19 * 10**9 + 200_000))).any()


@pytest.mark.parametrize("rows", [12, MOST_DRAWN + 2**16])
def test_split_is_random_and_depends_on_the_seed(rows):
    """Each row is held back about as often as another, and neighbours independently."""
    held = np.zeros((400 if rows == 12 else 100, 12))
    for seed in range(len(held)):
        split = RandomSplit(rows, 0.25, seed)
        # Of many rows, the first group has all that the first twelve may be drawn to.
        numbers = split.validation_rows(np.arange(min(split.validation, 2**14)))
        held[seed] = np.isin(np.arange(12), numbers)
    # Standard deviations: of the mean of n draws 0.43 / sqrt(n), of a correlation 1 / sqrt(n).
    of_one = len(held) ** -0.5
    assert abs(held.mean(axis=0) - 0.25).max() < 4.6 * 0.43 * of_one
    correlation = np.corrcoef(held.T) - np.eye(12)
    assert abs(correlation).max() < 5 * of_one
