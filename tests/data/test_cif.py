"""What CIFs say between the lines: dummies, alternatives, hydrogen in formulas, tags twice, texts without an end."""

from __future__ import annotations

import io

import pytest

from cfx.data.formats.cif import _blocks, cif_records, structure_of_cif

CELL = "".join(f"_cell_length_{axis} 5.6\n" for axis in "abc") + "".join(
    f"_cell_angle_{angle} 90\n" for angle in ("alpha", "beta", "gamma")
)
SALT = "Na1 Na 0 0 0 .\nCl1 Cl .5 .5 .5 .\n"


def salt(more: str = "", sites: str = SALT, column: str = "occupancy", head: str = "data_x\n") -> str:
    keys = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", column)
    listed = "loop_\n" + "".join(f"_atom_site_{key}\n" for key in keys) + sites
    return f"{head}{CELL}_space_group_name_H-M_alt 'F m -3 m'\n{more}\n{listed}"


def why(text: str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        structure_of_cif(text)
    return str(error.value)


@pytest.mark.parametrize(("column", "value"), [("calc_flag", "dum"), ("calc_flag", "Dum"), ("occupancy", "0.0")])
def test_dummies_are_no_atoms(column, value):
    text = salt(sites=SALT + f"Cent C .25 .25 .25 {value}\n", column=column)
    assert structure_of_cif(text).formula == "Na4 Cl4"


@pytest.mark.parametrize(
    ("column", "values"),
    [("disorder_group", "12"), ("disorder_group", ["-1", "."]), ("disorder_group", "AB"), ("occupancy", ["1", "0.99"])],
)
def test_alternatives_are_disorder(column, values):
    sites = f"Na1 Na 0 0 0 {values[0]}\nCl1 Cl .5 .5 .5 {values[1]}\n"
    assert "partial or mixed" in why(salt(sites=sites, column=column))
    assert structure_of_cif(salt(sites=sites.replace(values[1], values[0]).replace("-", ""), column=column))


@pytest.mark.parametrize(
    "formula",
    [
        "_chemical_formula_sum 'Na Cl H2'",
        "_chemical_formula_sum 'Na Cl . 2 H2 O'",
        "_chemical_formula_moiety 'Na +, Cl -, 2(D2 O)'",
        "_chemical_formula_structural 'Na Cl (OH)2'",
        "_chemical_formula_sum ?\n_chemical_formula_moiety\n;\nC2 H6\n;",
    ],
)
def test_hydrogen_without_sites(formula):
    assert why(salt(formula)).startswith("H has no sites")


@pytest.mark.parametrize("formula", ["Hf Cl", "Ho Hg", "Na Cl", "Dy"])
def test_other_elements_are_no_hydrogen(formula):
    assert structure_of_cif(salt(f"_chemical_formula_moiety '{formula}'")).formula == "Na4 Cl4"


@pytest.mark.parametrize("symbol", ["Na.5K.5", "Na,K", "?", "X", "7Li", "Vac", "Na(1)K"])
def test_names_that_are_no_element(symbol):
    assert why(salt(sites=SALT.replace(" Na ", f" {symbol} "))) == f"{symbol} is not an element"


@pytest.mark.parametrize("symbol", ["Na+", "Na+1", "Na1+", "NA", "na", "Na(1)", "Na0.5+"])
def test_names_of_elements(symbol):
    assert structure_of_cif(salt(sites=SALT.replace(" Na ", f" {symbol} "))).formula == "Na4 Cl4"


@pytest.mark.parametrize(
    ("more", "tag"),
    [
        ("_cell_length_b 5.7", "_cell_length_b"),
        ("_space_group_name_H-M_alt 'P 1'", "_space_group_name_h-m_alt"),
        ("loop_\n_atom_site_label\nNa1\nNa2", "_atom_site_label"),
        ("_cell.angle_beta 91", "_cell_angle_beta"),
    ],
)
def test_tags_that_contradict_themselves(more, tag):
    assert why(salt(more)) == f"{tag} occurs twice, with different values"


def test_tags_said_twice():
    assert structure_of_cif(salt("_cell_length_a 5.6\n_publ_author_name A\n_publ_author_name B")).formula == "Na4 Cl4"


@pytest.mark.parametrize("value", ["1/3", "0,5", "nan", "1e300", "half", "-inf", "0x10", "1_0", "9" * 70, "20000.5"])
def test_numbers_that_are_none(value):
    assert why(salt(sites=SALT.replace(".5 .5 .5", f".5 {value} .5")))


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_line_ends_end_lines(mark):
    text = salt(f"_publ_text '{mark}data_y {mark}_cell_length_a 3'")
    [record] = cif_records("x", io.StringIO(text))
    assert structure_of_cif(record.text).formula == "Na4 Cl4"


@pytest.mark.parametrize("text", ["_publ_text\n;\nno end\n", "_publ_text\n;", ";\n"])
def test_a_text_without_an_end_is_one_crystals_fault(text):
    file = salt(text) + "".join(salt(head=f"data_{i}\n") for i in range(6))
    records = list(cif_records("x", io.StringIO(file)))
    assert [record.name for record in records] == [f"x#{i}" for i in range(1, 8)]
    assert [structure_of_cif(record.text).formula for record in records[1:]] == ["Na4 Cl4"] * 6


def test_a_text_without_an_end_in_a_large_file(monkeypatch):
    monkeypatch.setattr("cfx.data.formats.cif.MOST_CHARACTERS", 2000)
    blocks = [salt(head=f"data_{i}\n") for i in range(20)]
    found = [block for block in _blocks(io.StringIO(salt("_publ_text\n;\n") + "".join(blocks))) if block.strip()]
    assert len(found) == 21
    assert found[1:] == blocks
