"""Columns of every kind, several files, Parquet, missing cells: what comes out, what is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ddp_gd
from ddp_gd.data import csv_files, table
from ddp_gd.data.load import fetch
from ddp_gd.data.request import Request
from ddp_gd.errors import DataError

MIXED = """age,town,member,zip,price,weight
30,Bern,true,3001,1.5,1
41.5, Köln,FALSE,50667,2.5,2
22,Bern,True,3001,0.5,0.5
"""


def write(folder: Path, content: str, name: str = "table.csv") -> str:
    """A file with this content."""
    path = folder / name
    path.write_text(content)
    return str(path)


def write_parquet(folder: Path, name: str = "table.parquet", **columns: object) -> str:
    """A Parquet file with these columns."""
    pq.write_table(pa.table(columns), folder / name)
    return str(folder / name)


def mixed_parquet(folder: Path) -> str:
    """The same table as `MIXED`."""
    return write_parquet(
        folder,
        age=pa.array([30, 41.5, 22]),
        town=pa.array(["Bern", "Köln", "Bern"]).dictionary_encode(),
        member=pa.array([True, False, True]),
        zip=pa.array([3001, 50667, 3001], pa.int32()),
        price=pa.array([1.5, 2.5, 0.5], pa.float32()),
        weight=pa.array([1, 2, 0.5]),
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_every_kind(tmp_path, kind):
    """Numbers stay numbers; texts and booleans become numbers of categories, which are listed."""
    source = write(tmp_path, MIXED) if kind == "csv" else mixed_parquet(tmp_path)
    dataset = ddp_gd.load(
        source, "price", categorical=["zip"], features=["town", "age", "member", "zip"]
    )
    assert dataset.feature_names == ("town", "age", "member", "zip")
    assert dataset.kinds == ("text", "number", "boolean", "text")
    assert dataset.categories == {
        0: ("Bern", "Köln"),
        2: ("false", "true"),
        3: ("3001", "50667"),
    }
    np.testing.assert_array_equal(dataset.features, [[0, 30, 1, 0], [1, 41.5, 0, 1], [0, 22, 1, 0]])
    np.testing.assert_array_equal(dataset.targets, [[1.5], [2.5], [0.5]])


def test_weights_and_several_targets(tmp_path):
    """A weight column and several targets are taken out of the features."""
    source = write(tmp_path, MIXED)
    dataset = ddp_gd.load(source, ["price", "age"], sample_weight="weight", features=["zip"])
    np.testing.assert_array_equal(dataset.sample_weight, [1, 2, 0.5])
    np.testing.assert_array_equal(dataset.targets, [[1.5, 30], [2.5, 41.5], [0.5, 22]])
    assert dataset.feature_names == ("zip",)
    everything = ddp_gd.load(source, "price", sample_weight="weight")
    assert everything.feature_names == ("age", "town", "member", "zip")


@pytest.mark.parametrize(
    ("target", "names", "classes"),
    [
        ("town", ("Bern", "Köln"), 2),
        ("member", ("false", "true"), 2),
        ("whole", None, 3),  # 0, 1 and 2, each of them there
        ("gap", None, None),  # 0, 1 and 3: amounts
        ("price", None, None),
    ],
)
def test_targets_that_are_classes(tmp_path, target, names, classes):
    """Texts, booleans, and whole numbers from 0 on without a gap are classes; others aren't."""
    rows = [
        *("Bern,true,0,0,1.5", "Köln,false,2,1,0", "Bern,true,1,3,1"),
    ]
    source = write(tmp_path, "\n".join(["town,member,whole,gap,price", *rows, ""]))
    dataset = ddp_gd.load(source, target)
    assert dataset.class_names == names
    assert dataset.classes == classes


def test_several_files_are_one_table(tmp_path):
    """Files given in an order, or those of a folder in the order of names, follow each other."""
    one = write(tmp_path, "a,town,y\n1,Bern,1\n2,Köln,2\n", "1.csv")
    two = write(tmp_path, "a,town,y\n3,Genf,3\n4,Bern,4\n", "2.csv")
    write(tmp_path, "not a table", ".hidden.csv")
    write(tmp_path, "not a table", "readme.txt")
    for source, order in (([two, one], [3, 4, 1, 2]), (tmp_path, [1, 2, 3, 4])):
        dataset = ddp_gd.load(source, "y")
        np.testing.assert_array_equal(dataset.targets[:, 0], order)
        names = [dataset.categories[1][int(n)] for n in dataset.features[:, 1]]
        assert names == [{1: "Bern", 2: "Köln", 3: "Genf", 4: "Bern"}[n] for n in order]


def test_float32_on_request(tmp_path):
    """`dtype` is that of the features; a number that it can't hold is refused."""
    source = write(tmp_path, "a,y\n1.5,1\n2,1e300\n")
    assert ddp_gd.load(source, "y", dtype="float32").features.dtype == np.float32
    with pytest.raises(DataError, match=r"1e\+300 is too large for dtype 'float32'"):
        ddp_gd.load(source, "a", dtype="float32")


# Missing cells

HOLES = "a,town,y\n1,Bern,1\n,Köln,2\nNA,,3\n4,Bern,\n5,Genf,5\n"


def holes(folder: Path, kind: str) -> str:
    """A table in which a number, a text and a target are missing."""
    if kind == "csv":
        return write(folder, HOLES)
    return write_parquet(
        folder,
        a=pa.array([1, None, float("nan"), 4, 5]),
        town=pa.array(["Bern", "Köln", None, "Bern", "Genf"]),
        y=pa.array([1, 2, 3, None, 5]),
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("csv", "4 cells are not finite numbers; the first, column 'a', data row 2 (line 3), is"),
        ("parquet", "4 cells are missing or not finite; the first, column 'a', row 2, is missing"),
    ],
)
def test_missing_cells_are_an_error_unless_asked_for(tmp_path, kind, expected):
    """The message says where the first is, how many there are, and what to do."""
    with pytest.raises(DataError) as caught:
        ddp_gd.load(holes(tmp_path, kind), "y")
    assert expected in str(caught.value)
    assert "missing='drop' or missing='mean'" in str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_with_missing_cells_are_dropped_on_request(tmp_path, kind, capsys):
    """`missing="drop"` keeps the whole rows, and says how many it left out."""
    dataset = ddp_gd.load(holes(tmp_path, kind), "y", missing="drop")
    np.testing.assert_array_equal(dataset.targets[:, 0], [1, 5])
    assert dataset.dropped == 3
    assert "3 rows with missing cells left out, 2 kept" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_numbers_are_left_for_the_mean_on_request(tmp_path, kind):
    """`missing="mean"` leaves NaN for numbers; a missing text is a category; a target is needed."""
    source = holes(tmp_path, kind)
    with pytest.raises(DataError, match="column 'y' has missing cells, and a target"):
        ddp_gd.load(source, "y", missing="mean")
    dataset = ddp_gd.load(source, "town", features=["a"], missing="drop")
    assert dataset.class_names == ("Bern", "Genf") or "Köln" in dataset.class_names
    whole = write(tmp_path, HOLES.replace("Bern,\n", "Bern,4\n"), "whole.csv")
    dataset = ddp_gd.load(whole, "y", missing="mean")
    np.testing.assert_array_equal(dataset.features[:, 0], [1, np.nan, np.nan, 4, 5])
    assert [dataset.categories[1][int(n)] for n in dataset.features[:, 1]] == [
        *("Bern", "Köln", "", "Bern", "Genf"),
    ]


def test_a_text_column_may_hold_na(tmp_path):
    """NA is a country's code among texts, and a missing number among numbers."""
    source = write(tmp_path, "country,y\nNA,1\nCH,2\n")
    assert ddp_gd.load(source, "y").categories == {0: ("NA", "CH")}


# What can't be used

NOT_USABLE = {
    "text after numbers": ("a,y\n1,1\nBern,2\n", {}, ["'Bern'", "categorical=['a']"]),
    "numbers after text": ("a,y\nBern,1\n7,2\n", {}, ["'Bern'", "categorical=['a']"]),
    "yes among booleans": ("a,y\ntrue,1\nyes,2\n", {}, []),  # a column of text
    "infinite": ("a,y\n1,1\ninf,2\n", {"missing": "drop"}, ["column 'a'", "'inf'"]),
    "one column twice": ("a,y\n1,1\n", {"features": ["a", "y"]}, ["Column 'y'", "two parts"]),
    "unknown feature": ("a,y\n1,1\n", {"features": ["b"]}, ["no column 'b'", "'a', 'y'"]),
    "unknown weight": ("a,y\n1,1\n", {"sample_weight": "w"}, ["no column 'w'"]),
    "unknown category": ("a,y\n1,1\n", {"categorical": ["c"]}, ["no column 'c'"]),
    "weight of text": ("a,w,y\n1,x,1\n", {"sample_weight": "w"}, ["'w' are not numbers"]),
    "weight below 0": ("a,w,y\n1,-1,1\n", {"sample_weight": "w"}, ["weight -1.0", "'w'"]),
    "text targets": ("a,b,y\n1,x,1\n", {"target": ["y", "b"]}, ["'b' is text"]),
    "all missing": ("a,y\n,1\n,2\n", {"missing": "drop"}, ["every row has a missing cell"]),
    "wrong word": ("a,y\n1,1\n", {"missing": "zero"}, ["missing='zero'"]),
    "wrong dtype": ("a,y\n1,1\n", {"dtype": "int8"}, ["dtype='int8'"]),
}


@pytest.mark.parametrize("case", NOT_USABLE)
def test_table_that_cannot_be_used_is_explained(tmp_path, case):
    """One message names the column and the value."""
    content, options, expected = NOT_USABLE[case]
    source = write(tmp_path, content)
    options = {"target": "y", **options}
    if not expected:
        assert ddp_gd.load(source, **options).kinds == ("text",)
        return
    with pytest.raises(DataError) as caught:
        ddp_gd.load(source, **options)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_later_blocks_hold_what_the_first_did(tmp_path, monkeypatch):
    """A text far behind the rows that told a column's kind is found, with its place."""
    monkeypatch.setattr(csv_files, "FIRST_BYTES", 64)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 64)
    rows = "".join(f"{i},{i}\n" for i in range(500))
    source = write(tmp_path, f"a,y\n{rows}Bern,1\n{rows}")
    with pytest.raises(DataError, match=r"column 'a', data row 501 \(line 502\), is 'Bern'"):
        ddp_gd.load(source, "y")
    source = write(tmp_path, "a,y\n" + "true,1\n" * 100 + "maybe,2\n")
    with pytest.raises(DataError, match="is 'maybe'"):
        ddp_gd.load(source, "y")


def test_files_that_differ_are_refused(tmp_path):
    """Other columns, another order or type, another kind of file: the message names both."""
    one = write(tmp_path, "a,b,y\n1,2,3\n", "1.csv")
    for content, expected in (
        ("a,c,y\n1,2,3\n", "'b' is in one only"),
        ("b,a,y\n1,2,3\n", "their order differs"),
    ):
        two = write(tmp_path, content, "2.csv")
        with pytest.raises(DataError, match=expected):
            ddp_gd.load([one, two], "y")
    with pytest.raises(DataError, match=r"mixes \.csv and \.parquet"):
        ddp_gd.load([one, mixed_parquet(tmp_path)], "y")
    numbers = write_parquet(tmp_path, "1.parquet", a=[1.0], y=[1.0])
    texts = write_parquet(tmp_path, "2.parquet", a=["x"], y=[1.0])
    with pytest.raises(DataError, match=r"differ in column 'a', which is number .* and text"):
        ddp_gd.load([numbers, texts], "y")


def test_parquet_that_cannot_be_used_is_explained(tmp_path):
    """Truncated, empty, nested, dates, and numbers that lose digits."""
    path = tmp_path / "t.parquet"
    for columns, expected in (
        ({"a": pa.array([], pa.float64()), "y": pa.array([], pa.float64())}, "has no rows"),
        ({"a": [[1, 2]], "y": [1.0]}, "column 'a' is of type list"),
        ({"a": pa.array([0], pa.timestamp("s")), "y": [1.0]}, "column 'a' is of type timestamp"),
        ({"a": [2**53 + 1], "y": [1.0]}, r"'a' does not fit into float64 .*2\*\*53"),
        ({"a": [float("inf")], "y": [1.0]}, "column 'a', row 1, is inf"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(DataError, match=expected):
            ddp_gd.load(path, "y")
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not a whole Parquet file"):
            ddp_gd.load(path, "y")


def test_a_column_that_identifies_rows_is_refused(tmp_path, monkeypatch):
    """More different texts than make sense as features are an error with the remedy."""
    monkeypatch.setattr(table, "MOST_CATEGORIES", 5)
    source = write(tmp_path, "a,y\n" + "".join(f"x{i},1\n" for i in range(6)))
    with pytest.raises(DataError, match="'a' holds more than 5 different texts"):
        ddp_gd.load(source, "y")


# What a table may also look like


def test_newlines_within_quotes_anywhere(tmp_path, monkeypatch):
    """A quoted newline is part of a cell wherever the reader starts a new block."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 256)
    row = '1,2,"first\n7,8,9"\n'
    for padding in range(0, 40, 7):
        source = write(tmp_path, f"a,b,t\n1,2,{'z' * padding}x\n" + row * 50)
        dataset = ddp_gd.load(source, "a", categorical=["t"])
        assert len(dataset.features) == 51
        assert dataset.categories[1][1] == "first\n7,8,9"


def test_one_column_keeps_its_rows(tmp_path):
    """In a file of one column a blank line is a row with a missing cell, not none."""
    request = Request((write(tmp_path, "a\n1\n\n2\n"),), targets_needed=False)
    with pytest.raises(DataError, match=r"column 'a', data row 2 \(line 3\), is empty. Fill in"):
        fetch(request)
    assert len(fetch(dataclasses.replace(request, missing="mean")).features) == 3


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["New\u00a0York", "a\tb"], "text"),
        (["1,500.2", "2,500.0"], None),  # thousands' marks: not guessed
        (["Inf", "Bern"], None),
        (["true", "NA"], "boolean"),
        (["2024-01-01", "2024-01-02"], "text"),
    ],
)
def test_texts_that_look_like_something_else(tmp_path, cells, kind):
    """Spaces of other kinds are text; what is written like a number is never a category unasked."""
    lines = "".join(f'"{cell}",{i}\n' for i, cell in enumerate(cells))
    source = write(tmp_path, "a,y\n" + lines)
    if kind is None:
        with pytest.raises(DataError, match=r"not finite numbers?|not a finite"):
            ddp_gd.load(source, "y")
        return
    assert ddp_gd.load(source, "y", missing="drop").kinds == (kind,)


def test_classes_of_dropped_rows_are_none(tmp_path):
    """A class that stands in rows with missing cells only is no class; many classes are fine."""
    source = write(tmp_path, "a,y\n,Z\n1,A\n2,B\n,C\n")
    dataset = ddp_gd.load(source, "y", missing="drop")
    assert dataset.class_names == ("A", "B")
    assert dataset.classes == 2
    np.testing.assert_array_equal(dataset.targets, [[0], [1]])
    many = write(tmp_path, "a,y\n" + "".join(f"{i},c{i}\n" for i in range(1500)))
    assert ddp_gd.load(many, "y").classes == 1500
    assert ddp_gd.load(write(tmp_path, "a,y\n1,true\n2,true\n"), "y").classes is None


def test_parquet_names_must_tell_columns_apart(tmp_path):
    """Two columns of one name, or a column without one, are refused."""
    cases = {
        "more than one column called 'a'": ["a", "a", "y"],
        "column 1 has no name": ["", "b", "y"],
    }
    for message, names in cases.items():
        columns = [pa.array([1.0])] * 3
        pq.write_table(pa.Table.from_arrays(columns, names), tmp_path / "t.parquet")
        with pytest.raises(DataError, match=message):
            ddp_gd.load(tmp_path / "t.parquet", "y")


def test_weights_that_leave_nothing_are_refused(tmp_path):
    """Weights below 0, or all 0, in a table and in arrays."""
    with pytest.raises(DataError, match="all weights are 0"):
        ddp_gd.load(write(tmp_path, "a,w,y\n1,0,1\n2,0,2\n"), "y", sample_weight="w")
    for weights, message in (
        (-np.ones(3), "the weight -1.0 is below 0"),
        (np.zeros(3), "are 0"),
    ):
        np.savez(tmp_path / "t.npz", x=np.ones((3, 1)), y=np.ones(3), sample_weight=weights)
        with pytest.raises(DataError, match=message):
            ddp_gd.load(tmp_path / "t.npz")


def test_columns_left_out(tmp_path: Path) -> None:
    """What `exclude` names is no feature; all else is, in the order of the file."""
    found = ddp_gd.load(write(tmp_path, MIXED), "price", exclude=["zip", "weight"])
    assert found.feature_names == ("age", "town", "member")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exclude": ["nowhere"]}, "has no column 'nowhere'"),
        ({"exclude": ["zip"], "features": ["age"]}, r"exclude=\['zip'\] and features=\['age'\]"),
        ({"exclude": ["age", "town", "member", "zip", "weight"]}, "has only its target column"),
    ],
)
def test_columns_that_can_not_be_left_out(options: dict, said: str, tmp_path: Path) -> None:
    """They are named."""
    with pytest.raises(DataError, match=said):
        ddp_gd.load(write(tmp_path, MIXED), "price", **options)


@pytest.mark.parametrize(("days", "remarked"), [(120, True), (31, True), (30, False), (4, False)])
def test_a_column_that_names_rows(
    days: int, remarked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A date becomes a feature for each day: said, with the column's name and the remedy."""
    rows = "".join(f"{i},day {i % days},{i % 3}.5\n" for i in range(120))
    ddp_gd.load(write(tmp_path, f"a,day,y\n{rows}"), "y")
    said = capsys.readouterr().err
    expected = (
        f"ddp_gd: warning: column 'day' holds {days} different texts in 120 rows, and each becomes "
        "a feature of its own. If it names rows (a date, an id) rather than describing them, leave "
        "it out: exclude 'day'.\n"
    )
    assert said == (expected if remarked else "")


def test_filled_cells_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing numbers of features; a missing text is a category, and no number."""
    content = "a,b,town,y\n1,,Bern,1\n,,Bern,2\n3,4,,3\n5,6,Bern,4\n"
    found = ddp_gd.load(write(tmp_path, content), "y", missing="mean")
    assert found.missing_cells == np.isnan(found.features).sum() == 3
    assert "3 missing cells are filled with the mean of their column's" in capsys.readouterr().err
