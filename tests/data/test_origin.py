"""The files that a request comes down to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import ddp_gd
from ddp_gd.data import origin
from ddp_gd.errors import DataError


def test_diabetes_is_the_published_data():
    """The built-in data has the published rows, columns, sums and target mean, in raw units."""
    dataset = ddp_gd.load("diabetes")
    assert dataset.features.shape == (442, 10)
    assert dataset.targets.shape == (442, 1)
    assert " ".join(dataset.feature_names) == "age sex bmi bp s1 s2 s3 s4 s5 s6"
    assert dataset.target_names == ("progression",)
    assert dataset.source == "diabetes"
    np.testing.assert_array_equal(
        dataset.features[0], [59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.8598, 87]
    )
    assert dataset.targets.sum() == 67243  # mean 152.13
    assert dataset.features[:, 0].sum() == 21445  # mean age 48.52 years


def test_diabetes_file_is_the_documented_one():
    """The SHA-256 in datasets/README.md is that of the file beside it."""
    folder = Path(origin.__file__).with_name("datasets")
    digest = hashlib.sha256((folder / "diabetes.csv").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.csv", "nowhere.csv does not exist"),
        ("nowhere.npz", "nowhere.npz does not exist"),
        ("iris", "Unknown data 'iris': .*diabetes"),
        ("table.xlsx", "Unknown data 'table.xlsx': .*csv.*npz"),
        ("", "Unknown data ''"),
        ("folder.csv", "folder.csv is a folder"),
    ],
)
def test_source_that_is_not_there_is_explained(tmp_path, monkeypatch, source, message):
    """An unknown name or suffix, a missing file and a folder each have their own message."""
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    with pytest.raises(DataError, match=message):
        ddp_gd.load(source, target="b")


def test_sources_that_mean_nothing_are_refused(tmp_path, monkeypatch):
    """The same file twice, a data set beside another one; the current folder is one, though."""
    monkeypatch.chdir(tmp_path)
    source = str(tmp_path / "table.csv")
    Path(source).write_text("a,y\n1,2\n")
    with pytest.raises(DataError, match=r"table\.csv was given twice"):
        ddp_gd.load([source, "table.csv"], "y")
    with pytest.raises(DataError, match="'diabetes' is a data set of its own"):
        ddp_gd.load(["diabetes", source], "y")
    assert len(ddp_gd.load(".", "y").features) == 1


def test_target_for_npz_is_refused(tmp_path):
    """A target name that a .npz file cannot honour is an error rather than ignored."""
    np.savez(tmp_path / "t.npz", x=np.ones(3), y=np.ones(3))
    with pytest.raises(DataError, match="target='b' names a CSV column"):
        ddp_gd.load(tmp_path / "t.npz", target="b")


def test_npy_needs_its_targets(tmp_path):
    """Without a file of targets, or with columns' names, the message says what to give."""
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    for target in (None, "y", str(tmp_path / "nowhere.npy")):
        with pytest.raises(DataError, match=r"\.npy"):
            ddp_gd.load(tmp_path / "x.npy", target)
