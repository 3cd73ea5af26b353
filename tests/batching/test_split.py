"""Keras's own split: the last rows are for validation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from keras.src.trainers.data_adapters import array_slicing

from ddp_gd.batching.split import train_validation_split
from ddp_gd.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("rows", "fraction", "training_rows"),
    [
        (442, 0.2, 353),  # 353.6 is rounded down
        (10, 0.3, 7),
        (10, 0.9, 0),  # 10 * (1 - 0.9) is 0.9999999999999998: refused below
        (100, 0.9, 9),  # 9.999999999999998
        (2, 0.5, 1),
        (3, 0.01, 2),  # any fraction above 0 takes at least one row
    ],
)
def test_split_point(rows, fraction, training_rows):
    """The last floor(rows * (1 - fraction)) and further rows are for validation, in order."""
    if training_rows == 0:
        with pytest.raises(DataError, match=r"validation_split=0.9 leaves no training row out of"):
            train_validation_split(rows, fraction)
        return
    assert train_validation_split(rows, fraction) == (
        slice(0, training_rows),
        slice(training_rows, rows),
    )


def test_split_is_that_of_keras():
    """At every size and fraction tried, both sides hold the rows that Keras's own split gives."""
    for rows in [2, 3, 7, 10, 100, 442, 1000, 12345]:
        array = np.arange(rows)
        for fraction in [0.001, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.999]:
            try:
                expected = array_slicing.train_validation_split(array, fraction)
            except ValueError:
                with pytest.raises(DataError):
                    train_validation_split(rows, fraction)
                continue
            for ours, theirs in zip(train_validation_split(rows, fraction), expected, strict=True):
                np.testing.assert_array_equal(array[ours], theirs[:])


def test_no_split_trains_on_every_row():
    """At 0 every row is trained on and none is held back."""
    assert train_validation_split(5, 0.0) == (slice(0, 5), slice(5, 5))


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.0, 1.5, math.nan, math.inf, "0.2", None])
def test_fraction_out_of_range_is_refused(fraction):
    """A fraction that is no number in [0, 1) is a ConfigError that quotes it."""
    with pytest.raises(ConfigError, match=f"validation_split={fraction!r} must be"):
        train_validation_split(10, fraction)


@pytest.mark.parametrize(
    ("rows", "fraction", "message"),
    [
        (0, 0.0, "0 rows"),
        (0, 0.2, "0 rows"),
        (1, 0.2, "validation_split=0.2 leaves no training row out of 1"),
    ],
)
def test_empty_side_is_refused(rows, fraction, message):
    """A side without rows is a DataError that quotes the fraction and the rows."""
    with pytest.raises(DataError, match=message):
        train_validation_split(rows, fraction)
