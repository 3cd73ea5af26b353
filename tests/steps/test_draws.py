"""A share draws for its rows what one process draws for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ddp_gd.steps import graph
from ddp_gd.steps.rows import draws

ROWS = 11
SEED = [3, 7]
STATELESS = tf.random
DRAWS: dict[str, Callable[[Any], Any]] = {
    "uniform": lambda s: STATELESS.stateless_uniform(s, SEED),
    "normal": lambda s: STATELESS.stateless_normal(s, SEED),
    "normal in float64": lambda s: STATELESS.stateless_normal(s, SEED, dtype=tf.float64),
    "uniform in halves": lambda s: STATELESS.stateless_uniform(s, SEED, dtype=tf.float16),
    "integers": lambda s: STATELESS.stateless_uniform(s, SEED, 0, 99, tf.int32),
    "all integers": lambda s: STATELESS.stateless_uniform(s, SEED, None, None, tf.int64),
    "truncated": lambda s: STATELESS.stateless_truncated_normal(s, SEED),
    "gamma": lambda s: STATELESS.stateless_gamma(s, SEED, 0.7),
    "poisson": lambda s: STATELESS.stateless_poisson(s, SEED, 4.0),
    "binomial": lambda s: STATELESS.stateless_binomial(s, SEED, 9.0, 0.4, tf.float32),
}


def of_share(draw: Callable[[Any], Any], first: int, count: int, shape: tuple[int, ...]) -> Any:
    """What a share of the rows draws; the shape is that of a row."""

    def traced(x: Any, first: Any, count: Any) -> Any:
        with draws.of_rows(draws.Rows(first, count, tf.constant(ROWS))):
            return draw(tf.shape(x))

    number = tf.TensorSpec([], tf.int32)
    function = graph.inlined(traced, tf.TensorSpec([None, *shape]), number, number)
    return function(tf.zeros([count, *shape]), tf.constant(first), tf.constant(count)).numpy()


@pytest.mark.parametrize("shape", [(), (3,), (4, 2)], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_shares_draw_the_whole(name: str, shape: tuple[int, ...]) -> None:
    """Uneven shares, one of them empty, put together are the draw of all rows, bit for bit."""
    whole = DRAWS[name](tf.constant([ROWS, *shape])).numpy()
    shares = [(0, 4), (4, 1), (5, 0), (5, 6)]
    parts = [of_share(DRAWS[name], first, count, shape) for first, count in shares]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_several_entries_of_a_row_stand_beside_each_other() -> None:
    """A draw with three entries for each row in its first dimension is cut at the rows."""

    def draw(shape: Any) -> Any:
        return tf.random.stateless_normal([3 * shape[0], 2], SEED)

    whole = draw([ROWS]).numpy()
    parts = [of_share(draw, first, count, ()) for first, count in ((0, 4), (4, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_draw_without_rows_is_the_same_for_all() -> None:
    """One draw for all rows, and one inside a loop, are what they are without shares."""

    def draw(shape: Any) -> Any:
        once = tf.random.stateless_normal([1, 2], SEED)
        looped = tf.while_loop(
            lambda i, _: i < 2,
            lambda i, x: (i + 1, x + tf.random.stateless_normal(tf.shape(x), [i, 1])),
            (0, tf.zeros([shape[0], 2])),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, 2])),
        )[1]
        return once + looped

    whole = graph.inlined(draw, tf.TensorSpec([1], tf.int32))(tf.constant([ROWS])).numpy()
    parts = [of_share(draw, first, count, ()) for first, count in ((0, 4), (4, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_parameters_stay_with_their_rows() -> None:
    """Categories and gammas whose parameters are a row's own are those of the whole."""
    logits = tf.random.stateless_normal([ROWS, 5], [1, 1])
    alpha = tf.random.stateless_uniform([ROWS, 5], [2, 2], 0.5, 2)

    def share(first: int, count: int) -> list[Any]:
        def traced(logits: Any, alpha: Any) -> Any:
            place = draws.Rows(tf.constant(first), tf.shape(logits)[0], tf.constant(ROWS))
            with draws.of_rows(place):
                return (
                    keras.random.categorical(logits, 4, seed=5),
                    tf.random.stateless_gamma(tf.shape(alpha), SEED, alpha),
                )

        function = graph.inlined(traced, *[tf.TensorSpec([None, 5])] * 2)
        rows = slice(first, first + count)
        return [t.numpy() for t in function(logits[rows], alpha[rows])]

    parts = zip(share(0, 4), share(4, 7), strict=True)
    categories, gammas = (np.concatenate(pair) for pair in parts)
    np.testing.assert_array_equal(categories, keras.random.categorical(logits, 4, seed=5).numpy())
    np.testing.assert_array_equal(gammas, tf.random.stateless_gamma([ROWS, 5], SEED, alpha).numpy())
