import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ddp_gd
from ddp_gd.data import convert, csv_files
from ddp_gd.errors import DataError


def write_csv(folder: Path, content: str | bytes) -> str:
    """The path of a new CSV file with this content."""
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_npz(folder: Path, **arrays: object) -> str:
    """The path of a new .npz file with these arrays."""
    path = folder / "arrays.npz"
    np.savez(path, **arrays)
    return str(path)


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
    folder = Path(convert.__file__).with_name("datasets")
    digest = hashlib.sha256((folder / "diabetes.csv").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text(encoding="utf-8")


def test_csv_takes_the_target_out_wherever_it_stands(tmp_path):
    """The named column becomes the targets and the others, in file order, the features."""
    source = write_csv(tmp_path, "a,y,b\n1,2,3\n4,5,6\n")
    dataset = ddp_gd.load(source, target="y")
    np.testing.assert_array_equal(dataset.features, [[1, 3], [4, 6]])
    np.testing.assert_array_equal(dataset.targets, [[2], [5]])
    assert dataset.features.dtype == dataset.targets.dtype == np.float64
    assert (dataset.feature_names, dataset.target_names) == (("a", "b"), ("y",))
    assert dataset.features.flags.c_contiguous


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2.5\n-3e2,4\n",
        b"\xef\xbb\xbfa,b\n1,2.5\n-3e2,4\n",  # byte order mark, as Excel writes it
        b"a,b\r\n1,2.5\r\n-3e2,4",  # Windows line ends, no last line end
        b"\n\na, b\n 1,\t2.5\n\n-3e2 ,+4\n\n",  # blank lines, spaces, a plus
        b'"a","b"\n"1","2.5"\n"-3E+2","4."\n',  # quotes
    ],
)
def test_csv_reads_every_common_dialect_alike(tmp_path, content):
    """Byte order mark, line ends, blank lines, spaces and quotes do not change what is read."""
    dataset = ddp_gd.load(write_csv(tmp_path, content), target="b")
    np.testing.assert_array_equal(dataset.features, [[1], [-300]])
    np.testing.assert_array_equal(dataset.targets, [[2.5], [4]])


def test_csv_keeps_float64_digits(tmp_path):
    """A value that float32 cannot hold is read to the last float64 bit."""
    dataset = ddp_gd.load(write_csv(tmp_path, "a,b\n100000000.1,0\n"), target="b")
    assert dataset.features[0, 0] == 100000000.1


def test_csv_larger_than_a_block_is_read_whole(tmp_path, monkeypatch):
    """Rows are neither lost nor reordered where the reader starts a new block."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 64)
    rows = 1000
    source = write_csv(tmp_path, "a,b\n" + "".join(f"{i},{-i}\n" for i in range(rows)))
    dataset = ddp_gd.load(source, target="b")
    np.testing.assert_array_equal(dataset.features[:, 0], np.arange(rows))
    np.testing.assert_array_equal(dataset.targets[:, 0], -np.arange(rows))


CELL = "data row 2 (line 3)"
BAD_CSV = {
    # content -> what the message says
    "empty file": ("", ["is empty"]),
    "blank lines only": ("\n\n", ["is empty"]),
    "header only": ("a,b\n", ["no rows"]),
    "unknown target": ("a,c\n1,2\n", ["no column 'b'", "'a', 'c'"]),
    "semicolons": ("a;b\n1;2\n", ["no column 'b'", "'a;b'"]),
    "only the target": ("b\n1\n", ["only its target column 'b'"]),
    "duplicate columns": ("a,b,a\n1,2,3\n", ["more than one column called 'a'"]),
    "nameless column": (",b\n0,1\n", ["column 1 has no name"]),
    "word": ("a,b\n1,2\nx,4\n", ["column 'a'", CELL, "'x'", "1 cell is not"]),
    "missing cell": ("a,b\n1,2\n3,\n", ["column 'b'", CELL, "is empty"]),
    "NA": ("a,b\n1,2\nNA,NA\n", ["column 'a'", CELL, "'NA'", "2 cells are not"]),
    "nan": ("a,b\n1,2\n3,nan\n", ["column 'b'", CELL, "'nan'"]),
    "infinity": ("a,b\n1,2\n-inf,3\n", ["column 'a'", CELL, "'-inf'"]),
    "overflow": ("a,b\n1,2\n1e999,3\n", ["column 'a'", CELL, "'1e999'"]),
    "decimal comma": ('a,b\n1,2\n"1,5",3\n', ["column 'a'", CELL, "'1,5'"]),
    "long cell": ("a,b\n1,2\n" + "z" * 5000 + ",3\n", ["'" + "z" * 40 + "...'"]),
    "line and row differ": ("\na,b\n\n1,2\n\nx,4\n", ["data row 2 (line 6)"]),
    "short row": ("a,b\n1,2\n3\n", [CELL, "has 1 cells", "2 columns"]),
    "long row": ("a,b\n1,2\n3,4,5\n", [CELL, "has 3 cells", "2 columns"]),
    "latin-1 header": ("é,b\n1,2\n".encode("latin-1"), ["not UTF-8", "0xe9"]),
    "latin-1 cell": ("a,b\n1,2\né,3\n".encode("latin-1"), ["not UTF-8", "0xe9"]),
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), ["not UTF-8", "0xff"]),
    "binary": (b"a,b\n1,\x00\n", ["column 'b'", "data row 1 (line 2)"]),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_csv_that_cannot_be_used_is_explained(tmp_path, case):
    """Each kind of unusable CSV file gives one short DataError with the file, place and value."""
    content, expected = BAD_CSV[case]
    source = write_csv(tmp_path, content)
    with pytest.raises(DataError) as caught:
        ddp_gd.load(source, target="b")
    message = str(caught.value)
    assert message.startswith(source)
    assert all(part in message for part in expected), message
    assert len(message) - len(source) < 200


def test_csv_without_a_target_lists_the_columns(tmp_path):
    """A CSV file read without naming its target gives the names to choose from."""
    with pytest.raises(DataError, match=r"Name the target column of .*'a', 'b'"):
        ddp_gd.load(write_csv(tmp_path, "a,b\n1,2\n"))


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


def test_target_for_npz_is_refused(tmp_path):
    """A target name that a .npz file cannot honour is an error rather than ignored."""
    with pytest.raises(DataError, match="target='b' names a CSV column"):
        ddp_gd.load(write_npz(tmp_path, x=ONE, y=ONE), target="b")
