"""Columns of numbers beside the structures of a table; `tests/cli/test_retrieve.py` reads each format."""

import numpy as np
import pytest

from cfx.data.formats.tables import column_names, read_column
from cfx.errors import DataError


@pytest.mark.parametrize("name", ["data.csv", "DATA.CSV", "data.jsonl", "DATA.JSONL"])
def test_names_and_values(tmp_path, name):
    lines = '{"cif": "x", "gap": 1.5}\n\n{"cif": "y"}\n' if name.lower().endswith("jsonl") else "cif,gap\nx,1.5\ny,\n"
    (tmp_path / name).write_text(lines)
    assert column_names(tmp_path / name) == ["gap"]
    np.testing.assert_array_equal(read_column(tmp_path / name, "gap"), [1.5, np.nan])
    with pytest.raises(DataError, match="has no column energy"):
        read_column(tmp_path / name, "energy")


@pytest.mark.parametrize("line", ["[1]", '"gap"', "{"])
def test_a_line_that_is_no_object(tmp_path, line):
    (tmp_path / "data.jsonl").write_text(f'{{"cif": "x", "gap": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"cannot read .*data\.jsonl"):
        read_column(tmp_path / "data.jsonl", "gap")


def test_what_is_no_table_has_no_columns(tmp_path):
    (tmp_path / "x.cif").write_text("data_x\n")
    assert column_names(tmp_path / "x.cif") == [] == column_names(tmp_path)
