"""The one binary tree over the micro-batches of a step, in which bit-for-bit sums are added.

Node `(level, index)` covers the micro-batches `index * 2**level` up to the next node's first, cut
off at the number of micro-batches. Which node is added to which depends on that number alone; a
worker's consecutive micro-batches are a few whole nodes of it.

Integers only: `fold` is given what the nodes hold and how to add two of it.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

Node = tuple[int, int]
Value = TypeVar("Value")


def root(leaves: int) -> Node:
    """Return the node that covers all of `leaves` (at least 1) micro-batches."""
    return (leaves - 1).bit_length(), 0


def span(node: Node, leaves: int) -> tuple[int, int]:
    """Return the `(start, stop)` of the micro-batches that a node covers."""
    level, index = node
    return index << level, min((index + 1) << level, leaves)


def nodes(start: int, stop: int, leaves: int) -> list[Node]:
    """Return the fewest whole nodes that cover the micro-batches `start` to `stop - 1`, in order.

    At most two for each level; one where the range is aligned.
    """
    found = []
    while start < stop:
        level = root(leaves)[0]
        while start & ((1 << level) - 1) or span((level, start >> level), leaves)[1] > stop:
            level -= 1
        found.append((level, start >> level))
        start = span(found[-1], leaves)[1]
    return found


def children(node: Node, leaves: int) -> list[Node]:
    """Return the one or two nodes that a node above the micro-batches is the sum of."""
    level, index = node
    both = [(level - 1, 2 * index), (level - 1, 2 * index + 1)]
    return [child for child in both if span(child, leaves)[0] < leaves]


def fold(
    node: Node,
    leaves: int,
    held: Mapping[Node, Value],
    add: Callable[[Value, Value], Value],
) -> Value:
    """Add up what the nodes below `node` hold, always in the tree's order.

    Args:
        node: where to add up to.
        leaves: number of micro-batches.
        held: values of nodes that together cover `node` once.
        add: of a left and a right value.
    """
    if node in held:
        return held[node]
    parts = [fold(child, leaves, held, add) for child in children(node, leaves)]
    return parts[0] if len(parts) == 1 else add(parts[0], parts[1])
