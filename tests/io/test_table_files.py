"""Tables: a value that is not a number is empty, and nothing in them is run by a spreadsheet."""

import csv
import math

import pytest

from cfx.errors import UsageError
from cfx.io.files import csv_text, write_table

ROWS = [
    {"name": "=HYPERLINK(0)", "value": -1.25, "n": 3, "ok": True},
    {"name": "+1", "value": math.nan, "n": -2, "ok": None},
    {"name": "@SUM(A1)", "value": 0.123456, "n": 0, "ok": False},
    {"name": "-2+3", "value": None, "n": 1, "ok": True},
    {"name": 'Fe2O3, "pure"\n=1', "value": 1e-7, "n": 1, "ok": True},
]


def test_csv(tmp_path):
    write_table(tmp_path / "table.csv", ROWS)
    assert (tmp_path / "table.csv").read_bytes() == csv_text(ROWS).encode()
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "value", "n", "ok"]
    assert [row[0] for row in rows[1:]] == ["'=HYPERLINK(0)", "'+1", "'@SUM(A1)", "'-2+3", 'Fe2O3, "pure"\n=1']
    assert [row[1] for row in rows[1:]] == ["-1.25", "", "0.123456", "", "1e-07"]  # numbers stay numbers
    assert [row[2] for row in rows[1:]] == ["3", "-2", "0", "1", "1"]
    assert [row[3] for row in rows[1:]] == ["True", "", "False", "True", "True"]


def test_decimals_and_columns():
    assert csv_text(ROWS[:3], decimals=2).splitlines()[1:] == [
        "'=HYPERLINK(0),-1.25,3,True",
        "'+1,,-2,",
        "'@SUM(A1),0.12,0,False",
    ]
    assert csv_text([], columns=("a", "b")) == "a,b\n"


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path / "table.parquet", ROWS)
    columns = parquet.read_table(tmp_path / "table.parquet").to_pydict()
    assert columns["value"] == [-1.25, None, 0.123456, None, 1e-7]
    assert columns["name"] == [row["name"] for row in ROWS]  # cells of a type are never run


def test_other_endings(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        write_table(tmp_path / "table.xlsx", ROWS)
