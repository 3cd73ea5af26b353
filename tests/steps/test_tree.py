"""The canonical tree's integers."""

import itertools

import pytest

from ddp_gd.batching.plan import block
from ddp_gd.steps import tree

SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64, 100]


@pytest.mark.parametrize(
    ("start", "stop", "leaves", "expected"),
    [
        (0, 8, 8, [(3, 0)]),  # all: the root
        (4, 8, 8, [(2, 1)]),  # an aligned half is one node
        (0, 3, 8, [(1, 0), (0, 2)]),  # a third of eight: two nodes
        (3, 6, 8, [(0, 3), (1, 2)]),
        (6, 8, 8, [(1, 3)]),
        (4, 5, 5, [(2, 1)]),  # the last of five is a whole, cut off node of the second level
        (2, 2, 8, []),  # nothing
    ],
)
def test_nodes_of_a_range(start, stop, leaves, expected):
    """A range of micro-batches is the fewest whole nodes that cover it."""
    assert tree.nodes(start, stop, leaves) == expected


@pytest.mark.parametrize("leaves", SIZES)
def test_nodes_tile_every_range(leaves):
    """The nodes of any range cover it exactly once, in order, and are O(log) many."""
    for start, stop in itertools.combinations(range(leaves + 1), 2):
        found = tree.nodes(start, stop, leaves)
        spans = [tree.span(node, leaves) for node in found]
        assert [i for a, b in spans for i in range(a, b)] == list(range(start, stop))
        assert len(found) <= max(1, 2 * (leaves - 1).bit_length())


@pytest.mark.parametrize("leaves", SIZES)
def test_the_order_of_additions_does_not_depend_on_the_workers(leaves):
    """However many workers hold the nodes, the same pairs are added in the same order."""

    def add(left, right):
        return f"({left}+{right})"

    def sum_of(node):
        single = {(0, i): str(i) for i in range(leaves)}
        return tree.fold(node, leaves, single, add)

    whole = sum_of(tree.root(leaves))
    for size in range(1, 12):
        held = {
            node: sum_of(node)
            for rank in range(size)
            for node in tree.nodes(*block(leaves, size, rank), leaves)
        }
        assert tree.fold(tree.root(leaves), leaves, held, add) == whole


def test_aligned_shares_are_one_node_each():
    """Shares of a power of two of micro-batches travel as one sum each."""
    for size in (2, 4, 8):
        assert all(len(tree.nodes(*block(16, size, rank), 16)) == 1 for rank in range(size))
