"""Mean and deviation of columns, and what is made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ddp_gd.data.normalizer import Normalizer
from ddp_gd.errors import DataError


def exact_moments(column):
    """Mean and population standard deviation, correctly rounded sums of two exact passes."""
    values = [float(value) for value in column]
    mean = math.fsum(values) / len(values)
    correction = math.fsum(value - mean for value in values) / len(values)
    squares = math.fsum((value - mean - correction) ** 2 for value in values)
    return mean + correction, math.sqrt(squares / len(values))


@pytest.mark.parametrize("block_values", [1, 100, 1 << 20])
def test_normalizer_is_accurate_to_float64(monkeypatch, block_values):
    """Mean and scale agree with exact summation to 1e-12 at any offset, unit and block size."""
    monkeypatch.setattr("ddp_gd.data.normalizer.BLOCK_VALUES", block_values)
    noise = np.random.default_rng(0).normal(size=(1000, 5))
    array = noise * [1, 1, 1e-9, 1e9, 1e-120] + [0, 1e8, 5e-9, -1e12, 0]
    normalizer = Normalizer.fit(array)
    for index, column in enumerate(array.T):
        mean, scale = exact_moments(column)
        assert abs(normalizer.mean[index] - mean) <= 1e-12 * max(abs(mean), scale)
        assert abs(normalizer.scale[index] - scale) <= 1e-12 * scale


def test_transformed_columns_have_mean_0_and_deviation_1():
    """A column with mean 1e8 and deviation 1 comes out in float32 with mean 0, deviation 1."""
    array = np.random.default_rng(1).normal(size=(5000, 2)) * [1, 40] + [1e8, -3]
    result = Normalizer.fit(array).transform(array)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.astype(np.float64).mean(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(result.astype(np.float64).std(axis=0), 1, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.3, -1e300])
def test_constant_column_becomes_exactly_zero(value):
    """A constant column has scale 1, so it is shifted to exact zeros and never blown up."""
    array = np.full((1001, 1), value)
    normalizer = Normalizer.fit(array)
    assert normalizer.mean[0] == value
    assert normalizer.scale[0] == 1
    assert not normalizer.transform(array).any()


def test_images_are_normalised_per_channel():
    """Channels of uint8 images have their own mean and scale over rows, height and width."""
    images = np.random.default_rng(2).integers(0, 256, size=(7, 3, 4, 2), dtype=np.uint8)
    normalizer = Normalizer.fit(images)
    for channel in range(2):
        mean, scale = exact_moments(images[..., channel].ravel())
        assert normalizer.mean[channel] == pytest.approx(mean, rel=1e-13)
        assert normalizer.scale[channel] == pytest.approx(scale, rel=1e-13)
    expected = (images.astype(np.float64) - normalizer.mean) / normalizer.scale
    np.testing.assert_array_equal(normalizer.transform(images), expected.astype(np.float32))


def test_transform_does_not_depend_on_the_block_size(monkeypatch):
    """Rows are transformed alike, none left out, wherever a block ends."""
    array = np.random.default_rng(3).normal(size=(101, 3))
    normalizer = Normalizer.fit(array)
    whole = normalizer.transform(array)
    monkeypatch.setattr("ddp_gd.data.normalizer.BLOCK_VALUES", 10)
    np.testing.assert_array_equal(normalizer.transform(array), whole)


def test_inverse_undoes_transform():
    """Predictions come back in the target's own units, float64."""
    array = np.random.default_rng(4).normal(size=(100, 1)) * 77 + 152
    normalizer = Normalizer.fit(array)
    result = normalizer.inverse(normalizer.transform(array))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, array, rtol=0, atol=77 * 5e-7)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3), r"shape \(3,\)"),
        (np.ones((0, 2)), r"shape \(0, 2\)"),
        (np.array([[1, 2], [1, np.nan]]), "Column 1 .*not finite"),
        (np.array([[1e200, 0], [-1e200, 0]]), "Column 0 .*too large"),
    ],
)
def test_array_that_cannot_be_measured_is_refused(array, message):
    """No rows, no column axis, NaN and squares beyond float64 each give a DataError."""
    with pytest.raises(DataError, match=message):
        Normalizer.fit(array)


@pytest.mark.parametrize("method", ["transform", "inverse"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2,)])
def test_other_number_of_columns_is_refused(method, shape):
    """An array of another width is refused, not broadcast."""
    normalizer = Normalizer.fit(np.array([[1.0, 2], [3, 4]]))
    with pytest.raises(DataError, match="2 columns"):
        getattr(normalizer, method)(np.ones(shape))
