"""What the workers measure of the training rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from ddp_gd.batching.split import RandomSplit
from ddp_gd.data.dataset import Dataset
from ddp_gd.data.training_rows import TrainingRows
from ddp_gd.errors import DataError
from ddp_gd.job.runtime import communicator


def dataset_of(features: np.ndarray) -> Dataset:
    """A data set in memory."""
    names = tuple(f"c{i}" for i in range(features.shape[-1]))
    return Dataset(features, np.zeros((len(features), 1)), names, ("y",), "memory")


def test_normalisation_is_scikit_learns():
    """Mean and deviation of the training rows are StandardScaler's to 1e-12, constants included."""
    r = np.random.default_rng(0)
    scale, offset = [1, 1, 1e-3, 1e5, 0, 7], [0, 1e8, 5, -1e4, 3.3, 1e3]
    features = r.normal(size=(200_000, 6)) * scale + offset
    split = RandomSplit(len(features), 0.1, seed=3)
    training = TrainingRows(
        communicator(), dataset_of(features), split.training, split.training_rows
    )
    ours = training.preprocessing(normalize=True)
    rows = split.training_rows(np.arange(split.training))
    theirs = StandardScaler().fit(features[rows])
    np.testing.assert_allclose(ours.normalizer.mean, theirs.mean_, rtol=1e-12, atol=0)
    np.testing.assert_allclose(ours.normalizer.scale, theirs.scale_, rtol=1e-12, atol=0)
    held_back = features[split.validation_rows(np.arange(split.validation))]
    # A mean of 1e8 with a relative error of 1e-14 moves what comes out by 1e-6: theirs, see below.
    expected = theirs.transform(held_back)
    np.testing.assert_allclose(ours.transform(held_back), expected, rtol=1e-6, atol=2e-6)
    exact = math.fsum(features[rows, 1]) / len(rows)
    assert abs(ours.normalizer.mean[1] - exact) <= 1.5e-8 < abs(theirs.mean_[1] - exact)


def test_missing_numbers_do_not_count():
    """Mean and deviation are those of the numbers that are there; a missing one becomes 0."""
    features = np.random.default_rng(1).normal(size=(1000, 2))
    features[::3, 0] = np.nan
    dataset = dataset_of(features)
    dataset = Dataset(**{**vars(dataset), "missing": True})
    training = TrainingRows(communicator(), dataset, 900, lambda rows: rows)
    ours = training.preprocessing(normalize=True)
    np.testing.assert_allclose(ours.normalizer.mean, np.nanmean(features[:900], axis=0))
    np.testing.assert_allclose(ours.normalizer.scale, np.nanstd(features[:900], axis=0))
    assert not ours.transform(features[::3])[:, 0].any()
    features[:, 0] = np.nan
    with pytest.raises(DataError, match=r"Column 'c0' .* has no value in the training rows"):
        training.preprocessing(normalize=True)
