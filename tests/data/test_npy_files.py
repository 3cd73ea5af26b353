"""`.npy` and `.npz` files: what comes out, what can't be used."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ddp_gd
from ddp_gd.errors import DataError


def write_npz(folder: Path, **arrays: object) -> str:
    """The path of a new .npz file with these arrays."""
    path = folder / "arrays.npz"
    np.savez(path, **arrays)
    return str(path)


def test_npz_keeps_dtype_and_shape(tmp_path):
    """Images stay uint8 in their shape and 1-d labels become one column of integers."""
    images = np.arange(3 * 4 * 5 * 2, dtype=np.uint8).reshape(3, 4, 5, 2)
    dataset = ddp_gd.load(write_npz(tmp_path, x=images, y=np.array([0, 2, 1])))
    np.testing.assert_array_equal(dataset.features, images)
    np.testing.assert_array_equal(dataset.targets, [[0], [2], [1]])
    assert (dataset.features.dtype, dataset.targets.dtype) == (np.uint8, np.int64)
    assert (dataset.feature_names, dataset.target_names) == (("x0", "x1"), ("y",))


def test_npz_of_any_layout_comes_out_native_and_row_major(tmp_path):
    """Compressed, big-endian, Fortran-ordered input is read as native-endian and row-major."""
    values = np.arange(6.0).reshape(3, 2)
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, x=np.asfortranarray(values.astype(">f8")), y=values[:, 0])
    dataset = ddp_gd.load(str(path))
    np.testing.assert_array_equal(dataset.features, values)
    assert dataset.features.dtype.isnative
    assert dataset.features.flags.c_contiguous


ONE = np.ones(3)


BAD_NPZ = {
    # arrays -> what the message says
    "no y": ({"x": ONE}, ["no array 'y'", "holds 'x'"]),
    "other names": ({"data": ONE, "label": ONE}, ["no array 'x'", "'data', 'label'"]),
    "lengths differ": ({"x": ONE, "y": np.ones(4)}, ["3 rows", "4"]),
    "zero rows": ({"x": np.ones((0, 2)), "y": np.ones(0)}, ["no rows", "(0, 2)"]),
    "zero columns": ({"x": np.ones((3, 0)), "y": ONE}, ["no values in a row", "(3, 0)"]),
    "single number": ({"x": np.float64(1), "y": ONE}, ["single number"]),
    "objects": ({"x": np.array([1, "a", None], object), "y": ONE}, ["dtype object"]),
    "text": ({"x": np.array(["a", "b", "c"]), "y": ONE}, ["dtype <U1"]),
    "complex": ({"x": ONE * 1j, "y": ONE}, ["dtype complex128"]),
    "dates": ({"x": ONE.astype("M8[s]"), "y": ONE}, ["dtype datetime64"]),
    "records": ({"x": np.zeros(3, [("a", "f4")]), "y": ONE}, ["dtype ["]),
    "nan": ({"x": np.array([[1, 2], [np.nan, np.inf]]), "y": ONE[:2]}, ["2 of", "nan at x[1, 0]"]),
    "infinite target": ({"x": ONE, "y": np.array([1, 2, -np.inf])}, ["1 of", "-inf at y[2]"]),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_that_cannot_be_used_is_explained(tmp_path, case):
    """Each kind of unusable array gives one DataError with the file, the array and the value."""
    arrays, expected = BAD_NPZ[case]
    source = write_npz(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        ddp_gd.load(source)
    assert str(caught.value).startswith(source)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_truncated_npz_is_explained(tmp_path, kept):
    """A .npz file cut off anywhere is a DataError, not a crash or a shorter data set."""
    source = write_npz(tmp_path, x=np.ones((500, 4)), y=np.ones(500))
    whole = Path(source).read_bytes()
    Path(source).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        ddp_gd.load(source)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_flipped_byte_is_explained(tmp_path, save):
    """A byte changed inside an array fails the archive's checksum and is a DataError."""
    path = tmp_path / "arrays.npz"
    save(path, x=np.random.default_rng(0).normal(size=(500, 4)), y=np.ones(500))
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        ddp_gd.load(str(path))


def test_npz_that_claims_more_than_it_holds_is_not_allocated(tmp_path):
    """A header that declares a petabyte is refused by arithmetic, before any array is made."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 47,)}
    )
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
        archive.writestr("y.npy", header.getvalue() + bytes(64))
    with pytest.raises(DataError, match="needs 1125899906842624 bytes but the file holds 64"):
        ddp_gd.load(str(path))


def test_npy_is_mapped_where_it_lies(tmp_path):
    """A .npy file is not copied, unless its rows don't lie one after the other."""
    x = np.random.default_rng(0).normal(size=(50, 3))
    y = np.arange(50) % 3
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    dataset = ddp_gd.load(tmp_path / "x.npy", str(tmp_path / "y.npy"))
    assert Path(dataset.features.filename) == tmp_path / "x.npy"
    assert dataset.classes == 3
    np.testing.assert_array_equal(dataset.targets, y[:, None])
    for other in (np.asfortranarray(x), x.astype(">f8")):
        np.save(tmp_path / "x.npy", other)
        dataset = ddp_gd.load(tmp_path / "x.npy", str(tmp_path / "y.npy"))
        np.testing.assert_array_equal(dataset.features, x)
        assert dataset.features.dtype == "=f8"


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), np.ones(4), "x has 3 rows, but y has 4"),
        (np.array([[1.0], [np.nan]]), np.ones(2), r"1 of the values of 'x' .* nan at x\[1, 0\]"),
        (np.array(["a", "b"]), np.ones(2), "has dtype <U1"),
        (np.array([{}, {}]), np.ones(2), "is not a whole .npy file|has dtype object"),
        (np.ones((0, 2)), np.ones(0), "has no rows"),
    ],
)
def test_npy_that_cannot_be_used_is_explained(tmp_path, x, y, message):
    """Rows that differ, values that are not finite, texts, objects, nothing at all."""
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(DataError, match=message):
        ddp_gd.load(tmp_path / "x.npy", str(tmp_path / "y.npy"))
