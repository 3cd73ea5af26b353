"""CSV files: what is read alike, what can't be used and how that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ddp_gd
from ddp_gd.data import csv_files
from ddp_gd.errors import DataError


def write_csv(folder: Path, content: str | bytes) -> str:
    """The path of a new CSV file with this content."""
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


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
