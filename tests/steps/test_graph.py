"""What the bits depend on: recorded, and refused where it can't be fixed."""

import keras
import pytest
import tensorflow as tf

from ddp_gd import ModelError
from ddp_gd.job import bitwise
from ddp_gd.steps import graph


def traced(function):
    """Trace a function of rows of three numbers."""
    return tf.function(function).get_concrete_function(tf.TensorSpec([None, 3]))


def test_facts_name_what_bits_depend_on():
    """The record holds the processor, the versions, oneDNN's settings, threads and rewriting."""
    words = " ".join(bitwise.facts())
    for expected in ("processor", "tensorflow", "keras", "oneDNN", "threads", "rewriting"):
        assert expected in words


@pytest.mark.parametrize(
    "draw",
    [tf.random.normal, tf.random.uniform, tf.random.truncated_normal],
)
def test_process_wide_random_numbers_are_refused(draw):
    """An operation that draws from TensorFlow's own generator is refused by name, in loops too."""

    def loop(x):
        return tf.while_loop(
            lambda i, _: i < 2, lambda i, y: (i + 1, y + draw(tf.shape(y))), (0, x)
        )

    with pytest.raises(ModelError, match=r"draws random numbers.*SeedGenerator"):
        graph.require_deterministic(traced(loop))


def test_seeds_of_layers_are_told_from_seeds_of_the_program():
    """A seed that comes in from outside the graph is Keras's, one written into it is not."""
    keras_own = tf.function(lambda x, seed: x + tf.random.stateless_normal(tf.shape(x), seed))
    specs = tf.TensorSpec([None, 3]), tf.TensorSpec([2], tf.int64)
    assert graph.constant_seeds(keras_own.get_concrete_function(*specs)) == []
    own = traced(lambda x: x + tf.random.stateless_normal(tf.shape(x), [1, 2]))
    assert len(graph.constant_seeds(own)) == 1
    graph.require_deterministic(own)


def test_untracked_state_is_refused():
    """A forward pass that writes to a tf.Variable of its own is refused by name."""
    seen = tf.Variable(tf.zeros(3))

    def remember(x):
        seen.assign_add(tf.reduce_sum(x, axis=0))
        return x

    with pytest.raises(ModelError, match=r"writes to a tf\.Variable"):
        graph.require_tracked_state(traced(remember))
    graph.require_tracked_state(traced(lambda x: x * keras.ops.mean(x)))
