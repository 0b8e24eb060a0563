"""Operations of CIFs: every setting by every name, lists that contradict names or cells, and what is no group."""

from __future__ import annotations

import numpy as np
import pytest
import spglib

from cfx.data.formats import cif_symmetry
from cfx.data.formats.cif import structure_of_cif

TRICLINIC = np.array([[5.3, 0, 0], [0.9, 6.1, 0], [1.1, -0.7, 7.3]])
H_M, ALT, HALL, NUMBER = (
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_alt",
    "_space_group_name_hall",
    "_space_group_it_number",
)


def kind(setting: int):
    return spglib.get_spacegroup_type(setting)


def metric(setting: int) -> np.ndarray:
    """A cell that has the symmetry of a setting, and no more."""
    rotations = spglib.get_symmetry_from_database(setting)["rotations"].astype(float)
    return np.mean([turn.T @ TRICLINIC @ TRICLINIC.T @ turn for turn in rotations], axis=0)


def as_set(rotations: np.ndarray, translations: np.ndarray) -> frozenset:
    shifts = np.rint(translations * 24).astype(int) % 24
    return frozenset(
        (tuple(turn.ravel()), tuple(shift)) for turn, shift in zip(rotations.astype(int), shifts, strict=True)
    )


def found(setting: int, **said: str) -> list[frozenset]:
    data = {{"hall": HALL, "name": H_M, "alt": ALT, "number": NUMBER}[key]: [value] for key, value in said.items()}
    return [as_set(*group) for group in cif_symmetry.operations(data, metric(setting))]


def expected(setting: int) -> frozenset:
    operations = spglib.get_symmetry_from_database(setting)
    return as_set(operations["rotations"], operations["translations"])


def test_every_setting_by_its_hall_symbol():
    for setting in range(1, 531):
        assert found(setting, hall=kind(setting).hall_symbol) == [expected(setting)]
        assert found(setting, hall=kind(setting).hall_symbol.replace(" ", "_ ").upper()) == [expected(setting)]


def test_every_setting_by_its_full_symbol():
    """Alone it may leave the origin open, or which glide of two gives an e its place; with the choice it may not."""
    for setting in range(1, 531):
        group = kind(setting)
        several = found(setting, name=group.international_full)
        standard_e = group.number in (67, 68) and group.choice in ("ba-c", "2ba-c")
        assert expected(setting) in several or standard_e
        if group.choice:
            assert found(setting, alt=f"{group.international_full} :{group.choice}") == [expected(setting)]


@pytest.mark.parametrize(("with_blanks", "other"), [("P 32", "P 3 2"), ("P 62", "P 6 2")])
def test_blanks_of_hall_symbols_count(with_blanks, other):
    cell = metric(435)
    [these] = cif_symmetry.operations({HALL: [with_blanks]}, cell)
    [those] = cif_symmetry.operations({HALL: [other]}, cell)
    assert as_set(*these) != as_set(*those)
    assert len(cif_symmetry.operations({HALL: [with_blanks.replace(" ", "")]}, cell)) == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "neither symmetry operations nor a space group"),
        ({H_M: ["?"], NUMBER: ["."]}, "neither"),
        ({NUMBER: ["231"]}, "there is no space group 231"),
        ({NUMBER: ["0"]}, "there is no space group 0"),
        ({H_M: ["F m -3 m"], NUMBER: ["221"]}, "contradict"),
        ({H_M: ["F m -3 m"], ALT: ["P m -3 m"]}, "contradict"),
        ({H_M: ["F m -3 m"], HALL: ["-P 4 2 3"]}, "contradict"),
        ({HALL: ["-F 4 2 3 (x,y,z+1/9)"]}, "unknown space group"),
        ({H_M: ["P m -3 m"], "_space_group_ssg_name": ["X"]}, "modulated"),
        ({H_M: ["P m -3 m"], "_cell_modulation_dimension": ["1"]}, "modulated"),
    ],
)
def test_groups_that_are_not_said(said, reason):
    with pytest.raises(ValueError, match=reason):
        cif_symmetry.operations(said, np.eye(3) * 30)


def salt(operations: list[str], more: str = "", cell: str = "5.6 5.6 5.6", multiplicity: str = ".") -> str:
    """Rock salt, if it is given all operations of Fm-3m."""
    edges = "".join(f"_cell_length_{axis} {edge}\n" for axis, edge in zip("abc", cell.split(), strict=True))
    angles = "".join(f"_cell_angle_{angle} 90\n" for angle in ("alpha", "beta", "gamma"))
    listed = "".join(f"'{text}'\n" for text in operations)
    listed = f"loop_\n_symmetry_equiv_pos_as_xyz\n{listed}" if operations else ""
    keys = ("label", "fract_x", "fract_y", "fract_z", "symmetry_multiplicity")
    sites = "loop_\n" + "".join(f"_atom_site_{key}\n" for key in keys)
    sites += f"Na 0 0 0 {multiplicity}\nCl .5 .5 .5 {multiplicity}\n"
    return f"data_x\n{edges}{angles}{more}\n{listed}{sites}"


FM3M = "_symmetry_space_group_name_H-M 'F m -3 m'\n"
Z4 = "_cell_formula_units_Z 4\n_chemical_formula_sum"
INVERSION, HALVES = ["x,y,z", "-x,-y,-z"], ["x,y,z", "x,y+1/2,z+1/2", "x+1/2,y,z+1/2", "x+1/2,y+1/2,z"]


@pytest.mark.parametrize(
    ("operations", "more", "multiplicity", "formula"),
    [
        (["x,y,z"], f"{FM3M}{Z4} 'Na Cl'", ".", "Na4 Cl4"),
        (["x,y,z"], f"{FM3M}{Z4} 'Na4 Cl4'", ".", "Na4 Cl4"),  # as pymatgen writes formulas
        (["x,y,z"], FM3M, "4", "Na4 Cl4"),
        (["x,y,z"], "_symmetry_Int_Tables_number 225", "4", "Na4 Cl4"),
        (["x,y,z"], FM3M, "1", "Na1 Cl1"),
        (["x,y,z"], f"{FM3M}_cell_formula_units_Z 1\n_chemical_formula_sum 'Na Cl'", ".", "Na1 Cl1"),
        (["x,y,z"], "_symmetry_space_group_name_H-M 'P 1'", ".", "Na1 Cl1"),
        (HALVES, "", ".", "Na4 Cl4"),
        (HALVES, "_symmetry_space_group_name_H-M 'its name'", ".", "Na4 Cl4"),
    ],
)
def test_lists_beside_a_name(operations, more, multiplicity, formula):
    assert structure_of_cif(salt(operations, more, multiplicity=multiplicity)).formula == formula


@pytest.mark.parametrize(
    ("operations", "more", "multiplicity", "reason"),
    [
        (["x,y,z"], FM3M, ".", "a list of 1 symmetry operations, and a space group that has 192"),
        (INVERSION, FM3M, ".", "a list of 2 symmetry operations"),
        (["x,y,z"], f"{FM3M}{Z4} 'Na2 Cl2'", ".", "a list of 1"),
        (["x,y,z"], "_symmetry_space_group_name_H-M 'its name'", ".", "unknown space group"),
        (["x,y,z"], "", "4", "sites that stand for several atoms"),
        ([], "", ".", "neither symmetry operations"),
        ([], "_symmetry_space_group_name_H-M ?", "1", "neither symmetry operations"),
    ],
)
def test_the_identity_is_no_default(operations, more, multiplicity, reason):
    with pytest.raises(ValueError, match=reason):
        structure_of_cif(salt(operations, more, multiplicity=multiplicity))


@pytest.mark.parametrize(
    ("operations", "cell", "reason"),
    [
        (HALVES[:3], "5.6 5.6 5.6", "no group"),
        (["x,y,z", "y,z,x"], "5.6 5.6 5.6", "no group"),
        (["x,y,z", "-x,-y,z", "-x,-y,-z"], "5.6 5.6 5.6", "no group"),
        (["x,y,z", "y,z,x", "z,x,y"], "5.6 6.6 7.6", "a cell without the symmetry of the operations"),
        (["x,y,z", "-y,x,z", "-x,-y,z", "y,-x,z"], "5.6 6.6 5.6", "a cell without the symmetry of the operations"),
        (["x,y,z", "x+1e300,y,z"], "5.6 5.6 5.6", "not a symmetry operation"),
        (["x,y,z", "x+100y,y,z"], "5.6 5.6 5.6", "not a symmetry operation"),
    ],
)
def test_lists_that_are_no_group_of_the_cell(operations, cell, reason):
    with pytest.raises(ValueError, match=reason):
        structure_of_cif(salt(operations, cell=cell))


@pytest.mark.parametrize("third", ["1/3", "0.33", "0.333", "0.3333", ".33333333"])
def test_translations_of_few_digits(third):
    rest = str(round(1 - float(third), 6)) if third[-1] == "3" and "/" not in third else "2/3"
    texts = ("x,y,z", f"x+{third},y+{rest},z+{rest}", f"x+{rest},y+{third},z+{third}", "x,y,z")
    listed = cif_symmetry._listed(texts)
    np.testing.assert_array_equal(listed.translations, np.array([[0, 0, 0], [1, 2, 2], [2, 1, 1]]) / 3)
