"""What files mean by what they leave out: symbols, names, digits, blocks, frames, directories."""

import json
import os
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.core.crystal import CrystalBatch
from cfx.core.symmetry import LETTERS
from cfx.data.encode import EncodingError, encode_structure
from cfx.data.formats import Record
from cfx.data.formats import cif as cif_module
from cfx.data.formats.cif import structure_of_cif
from cfx.data.read import parse_structure, read_records, reason_of
from cfx.errors import DataError
from cfx.io.files import content_digest
from cfx.io.formats import cif_block

HEXAGONAL, RHOMBOHEDRAL = (4.5, 4.5, 11.9, 90, 90, 120), (4.7, 4.7, 4.7, 57, 57, 57)
CUBIC, MONOCLINIC, UNIQUE_C = (5.5, 5.5, 5.5, 90, 90, 90), (5, 6, 7, 90, 105, 90), (5, 6, 7, 90, 90, 105)
ORTHORHOMBIC, TETRAGONAL = (5, 6, 7, 90, 90, 90), (5, 5, 7, 90, 90, 90)
CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


def block(group: str = "", cell=CUBIC, sites: str = "Si1 Si 0.125 0.125 0.125 1", more: str = "") -> str:
    """A CIF without operations, unless `more` has them."""
    named = f"_symmetry_space_group_name_H-M '{group}'\n" if group else ""
    lines = "".join(f"_cell_{key} {value}\n" for key, value in zip(CELL, cell, strict=True))
    keys = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    return f"data_x\n{lines}{named}{more}loop_\n" + "".join(f"_atom_site_{key}\n" for key in keys) + sites + "\n"


@pytest.mark.parametrize(
    ("group", "cell", "point", "atoms", "number"),
    [
        ("R -3 m H", HEXAGONAL, "0 0 0.23", 6, 166),
        ("R -3 m :H", HEXAGONAL, "0 0 0.23", 6, 166),
        ("R-3m", HEXAGONAL, "0 0 0.23", 6, 166),
        ("R -3 m", RHOMBOHEDRAL, "0.23 0.23 0.23", 2, 166),
        ("R -3 m :R", RHOMBOHEDRAL, "0.23 0.23 0.23", 2, 166),
        ("R -3 c H", HEXAGONAL, "0 0 0.1", 12, 167),
        ("F d -3 m :2", CUBIC, "0.125 0.125 0.125", 8, 227),
        ("F d -3 m Z", CUBIC, "0.125 0.125 0.125", 8, 227),
        ("F d -3 m :1", CUBIC, "0 0 0", 8, 227),
        ("F d 3 m S", CUBIC, "0 0 0", 8, 227),
        ("P 21/n", MONOCLINIC, "0.1 0.2 0.3", 4, 14),
        ("P 1 21/n 1", MONOCLINIC, "0.1 0.2 0.3", 4, 14),
        ("P 21/n", UNIQUE_C, "0.1 0.2 0.3", 4, 14),
        ("P 21/b", UNIQUE_C, "0.1 0.2 0.3", 4, 14),
        ("I 2/a", MONOCLINIC, "0.1 0.2 0.3", 8, 15),
        ("P b n m", ORTHORHOMBIC, "0.1 0.2 0.3", 8, 62),
        ("C m c a", ORTHORHOMBIC, "0 0.2 0.3", 8, 64),
        ("I 41/a m d :2", TETRAGONAL, "0 0.75 0.125", 4, 141),
    ],
)
def test_symbols_without_operations(group, cell, point, atoms, number):
    found = structure_of_cif(block(group, cell, f"Si1 Si {point} 1"))
    assert len(found) == atoms
    settings = cif_module.operations({"_symmetry_space_group_name_h-m": [group]}, found.lattice.metric_tensor)
    # An atom in general position shows the whole group.
    spread = Structure(
        found.lattice, ["Si"] * 3, [[0.0213, 0.0617, 0.1411], [0.1123, 0.0871, 0.1547], [0.23, 0.041, 0.31]]
    )
    points = [
        image
        for point in spread.frac_coords
        for image in cif_module._images(point, settings[0], found.lattice.matrix, None)
    ]
    assert encode_structure(Structure(found.lattice, ["Si"] * len(points), points)).space_group == number


@pytest.mark.parametrize(
    ("group", "cell", "reason"),
    [
        ("F d -3 m", CUBIC, "two origin choices"),
        ("P 4/n", TETRAGONAL, "two origin choices"),
        ("C c c a", ORTHORHOMBIC, "two origin choices"),
        ("R -3 m H", RHOMBOHEDRAL, "without the symmetry"),
        ("F m -3 m", ORTHORHOMBIC, "without the symmetry"),
        ("Q 3", CUBIC, "unknown space group"),
        ("F d -3 m :3", CUBIC, "unknown space group"),
        ("P 21/q", MONOCLINIC, "unknown space group"),
    ],
)
def test_symbols_that_do_not_decide(group, cell, reason):
    with pytest.raises(ValueError, match=reason):
        structure_of_cif(block(group, cell))


@pytest.mark.parametrize(("multiplicity", "atoms"), [(8, 8), (16, 16)])
def test_numbers_of_atoms_decide_between_origins(multiplicity, atoms):
    text = block("F d -3 m").replace("_atom_site_occupancy", "_atom_site_symmetry_multiplicity")
    assert len(structure_of_cif(text.replace("0.125 1", f"0.125 {multiplicity}"))) == atoms
    more = f"_chemical_formula_sum Si\n_cell_formula_units_Z {atoms}\n"
    assert len(structure_of_cif(block("F d -3 m", more=more))) == atoms


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (["-x,-y,-z"], "without the identity"),
        (["x,y,z", "2x,y,z"], "of a lattice"),
        (["x,y,z", "q,y,z"], "not a symmetry operation"),
        (["x,y,z", "1/0+x,y,z"], "not a symmetry operation"),
        (["x,y"], "not a symmetry operation"),
        (["x,y,z"] * 2000, "2000 symmetry operations"),
    ],
)
def test_operations_that_are_none(operations, reason):
    listed = "loop_\n_space_group_symop_operation_xyz\n" + "".join(f"'{text}'\n" for text in operations)
    with pytest.raises(ValueError, match=reason):
        structure_of_cif(block(more=listed))


@pytest.mark.parametrize(
    ("sites", "more", "reason"),
    [
        ("Na1 Na 0 0 0 1", "_chemical_formula_sum 'Na H'\n", "H has no sites although the formula"),
        ("O1 O 0 0 0 1", "_chemical_formula_sum 'H2 O'\n", "H has no sites"),
        ("Na1 Na 0 0 0 1\nCl1 Cl .5 .5 .5 1", "_chemical_formula_sum Na\n", "Cl has sites"),
        ("Na1 Na 0 0 0 1\nCl1 Cl .5 .5 .5 1", "_chemical_formula_sum 'Na Cl2'\n", "do not match the formula"),
        ("Wat Wat 0 0 0 1", "", "Wat is not an element"),
        ("X1 Xx 0 0 0 1", "", "Xx is not an element"),
        ("Na1 Na 0 0 0 0.5", "", "occupancy"),
        ("Na1 Na ? ? ? 1", "", "no coordinates"),
        ("Na1 Na nan 0 0 1", "", "not a number"),
        ("Na1 Na 0 0 0 1 Cl1", "", "rows of different lengths"),
        ("Na1 Na 0 0 0 0", "", "no atoms"),
    ],
)
def test_cifs_that_leave_atoms_out(sites, more, reason):
    with pytest.raises(ValueError, match=reason):
        structure_of_cif(block("P 1", sites=sites, more=more))


@pytest.mark.parametrize("occupancy", [".", "?", "1", "1.0(2)", "1."])
def test_occupancies_left_to_their_default(occupancy):
    assert (
        structure_of_cif(block("F m -3 m", sites=f"Na1 Na 0 0 0 {occupancy}\nCl1 Cl .5 .5 .5 .")).formula == "Na4 Cl4"
    )


@pytest.mark.parametrize(
    "point",
    ["0.3333 0.6667 0.25", "1.3333 1.6667 0.25", "-0.6667 -0.3333 0.25", "-0.6667 1.6667 2.25", "0.33333 0.66667 .25"],
)
def test_thirds(point):
    found = structure_of_cif(block("P 63/m m c", (3, 3, 5, 90, 90, 120), f"Mg1 Mg {point} 1"))
    assert len(found) == 2
    np.testing.assert_allclose(found.frac_coords[:, :2] * 3, np.rint(found.frac_coords[:, :2] * 3), atol=1e-12)


SALT = block("F m -3 m", sites="Na1 Na 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1")


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        (SALT, ["Na4 Cl4"]),
        (SALT.replace("data_x\n", ""), ["Na4 Cl4"]),
        ("data_global\n_journal_year 2001\n" + SALT, ["Na4 Cl4"]),
        (SALT + "data_end\n_journal_year 2001\n", ["Na4 Cl4"]),
        (SALT.replace("data_x", "  DATA_x") + SALT.replace("data_x", "Data_y"), ["Na4 Cl4"] * 2),
        (SALT.replace("data_x\n", "data_x\n_publ_text\n;\ndata_y of the authors\n  data_z\n;\n"), ["Na4 Cl4"]),
        (SALT.replace("data_x\n", "data_x\n_publ_author_name 'M\xfcller, D''Arcy # 3'\n"), ["Na4 Cl4"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_blocks(tmp_path, text, formulas, encoding):
    (tmp_path / "x.CIF").write_bytes(text.encode(encoding))
    assert [parse_structure(record).formula for record in read_records(tmp_path / "x.CIF")] == formulas


def poscar(comment: str, names: str = "", counts: str = "4 4", behind: str = "") -> str:
    points = ["0 0 0", ".5 .5 0", ".5 0 .5", "0 .5 .5", ".5 0 0", "0 .5 0", "0 0 .5", ".5 .5 .5"]
    head = f"{comment}\n1.0\n5.6 0 0\n0 5.6 0\n0 0 5.6\n" + (names + "\n" if names else "") + f"{counts}\nDirect\n"
    return head + "".join(f"{point} {behind}\n" for point in points)


@pytest.mark.parametrize("comment", ["Na Cl", "NaCl", "Na4 Cl4", "Na4Cl4"])
def test_elements_of_a_poscar_in_its_comment(tmp_path, comment):
    (tmp_path / "x.poscar").write_text(poscar(comment))
    assert [parse_structure(record).formula for record in read_records(tmp_path / "x.poscar")] == ["Na4 Cl4"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (poscar("rock salt"), "names no elements"),
        (poscar("Na"), "names no elements"),
        (poscar("Na3 Cl5"), "names no elements"),
        (poscar("Xx Yy"), "Xx is not an element"),
        (poscar("x", "A B"), "A is not an element"),
        (poscar("x", "Na"), "1 elements with 2 numbers"),
        (poscar("x", "Na Cl", "4 4000000000"), "4,000,000,004 atoms announced, but 8 there"),
        ("x\n1\n2\n", "not a POSCAR"),
    ],
)
def test_poscars_that_are_refused(tmp_path, text, reason):
    (tmp_path / "POSCAR").write_text(text)
    [record] = read_records(tmp_path / "POSCAR")
    with pytest.raises(ValueError, match=reason):
        parse_structure(record)


def test_later_frames(tmp_path):
    one, velocities = poscar("Na Cl"), "\n" + "0.1 0.2 0.3\n" * 8
    (tmp_path / "POSCAR").write_text(one + one + velocities + one + velocities)
    (tmp_path / "XDATCAR").write_text(poscar("x", "Na Cl").replace("Direct", "Direct configuration= 1") + "".join(
        f"Direct configuration= {i}\n" + "".join(one.splitlines(keepends=True)[7:]) for i in (2, 3)))  # fmt: skip
    (tmp_path / "CONTCAR").write_text(one + velocities)
    found = {record.name: parse_structure(record).formula for record in read_records(tmp_path)}
    assert found == dict.fromkeys(
        ["CONTCAR", *(f"{name}#{i}" for name in ("POSCAR", "XDATCAR") for i in (1, 2, 3))], "Na4 Cl4"
    )


def frame(comment: str, atoms: str = "Na 0 0 0\nCl 2 2 2", count: int = 2) -> str:
    return f"{count}\n{comment}\n{atoms}\n"


BOX = 'Lattice="4 0 0 0 4 0 0 0 4"'


@pytest.mark.parametrize("pbc", ['pbc="F F F"', 'pbc="T T T"', "", "pbc=[F, F, F]", 'PBC="1 1 1"'])
def test_a_cell_is_a_period(tmp_path, pbc):
    (tmp_path / "x.extxyz").write_text(frame(f"{BOX} Properties=species:S:1:pos:R:3 {pbc}"))
    [record] = read_records(tmp_path / "x.extxyz")
    assert all(parse_structure(record).lattice.pbc)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (frame(f'{BOX} pbc="T T F"'), "some directions only"),
        (frame("no cell"), "without a Lattice"),
        (frame('Lattice="1 2 3"'), "nine numbers"),
        (frame(BOX, count=3), "3 atoms announced, but 2 there"),
        (frame(BOX, "Na 0 0 0\nXx 1 1 1"), "Xx is not an element"),
        (frame(f"{BOX} Properties=pos:R:3"), "without species and pos"),
        (frame(f"{BOX} Properties=x:R:1000000000:species:S:1:pos:R:3"), "too short"),
        (frame('Lattice="1 0 0 1 0 0 0 0 1"'), "cell without volume"),
    ],
)
def test_frames_that_are_refused(tmp_path, text, reason):
    (tmp_path / "x.xyz").write_text(text)
    [record] = read_records(tmp_path / "x.xyz")
    try:
        parse_structure(record)
    except (ValueError, ArithmeticError) as error:
        assert reason in reason_of(error)
    else:
        pytest.fail("was read")


def test_hidden_files_links_and_zips_within(tmp_path):
    root, beside = tmp_path / "root", tmp_path / "beside"
    for place in (root / ".hidden", root / "deep" / ".git", beside):
        place.mkdir(parents=True)
        (place / "a.cif").write_text(SALT)
    (root / ".b.cif").write_text(SALT)
    (root / "link").symlink_to(beside)
    (beside / "back").symlink_to(root)
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
        for name in ("a.MCIF", ".hidden/a.cif", "x/._a.cif", "POSCAR"):
            archive.writestr(name, SALT if name != "POSCAR" else poscar("Na Cl"))
    for path in (root / "inner.ZIP", tmp_path / "outer.zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "inner.zip", "b/inner.zip")
            archive.writestr("broken.zip", b"no zip")
    found = [record.name for record in read_records(root)]
    inner = ["b/inner.zip/POSCAR", "b/inner.zip/a.MCIF", "broken.zip"]
    assert found == [*(f"inner.ZIP/{name}" for name in inner), "link/a.cif"]
    assert [record.name for record in read_records(tmp_path / "outer.zip")] == inner


def test_members_that_say_too_much(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        archive.writestr("a.cif", SALT)
    content = (tmp_path / "bomb.zip").read_bytes()
    size = len(SALT).to_bytes(4, "little")
    (tmp_path / "bomb.zip").write_bytes(content.replace(size, (2**32 - 2).to_bytes(4, "little")))
    records = list(read_records(tmp_path / "bomb.zip"))
    assert [record.format for record in records] == ["unreadable"]


def test_names_of_one_line(tmp_path):
    rows = [{"id": name, "cif": SALT} for name in ("a\nb", "a\x1b[31mb", "a\r\n\tb")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [record.name for record in read_records(tmp_path / "x.jsonl")] == ["a b", "a [31mb", "a b"]


@pytest.mark.parametrize("row", [{"cif": None}, {"cif": ""}, {"cif": None, "cif_string": None}])
def test_a_structure_beside_an_empty_cif(tmp_path, row):
    structure = structure_of_cif(SALT).as_dict()
    (tmp_path / "x.jsonl").write_text(json.dumps(row | {"structure": structure}) + "\n")
    assert [parse_structure(record).formula for record in read_records(tmp_path / "x.jsonl")] == ["Na4 Cl4"]


@pytest.mark.parametrize("doubled", [["Na"], ["Cl"], ["Na", "Cl"]])
@pytest.mark.parametrize("shift", [0.0, 1.0, 1e-4])
def test_doubled_atoms(doubled, shift):
    """moyo takes some of them for a crystal with twice the atoms."""
    salt = structure_of_cif(SALT)
    twice = [site for site in salt if site.specie.symbol in doubled]
    species = [site.specie for site in [*salt, *twice]]
    points = [*salt.frac_coords, *(site.frac_coords - shift for site in twice)]
    with pytest.raises(EncodingError, match="too close"):
        encode_structure(Structure(salt.lattice, species, points))


@pytest.mark.parametrize("shift", [[0, 0, 0], [-1e-4, 0, 0], [1e-4, -1e-4, 1e-4], [1 - 1e-4, 1, 0]])
def test_overlaps_are_found_across_the_faces(shift):
    skew = Lattice.from_parameters(4, 5, 6, 75, 82, 98)
    with pytest.raises(EncodingError, match="two elements overlap"):
        encode_structure(Structure(skew, ["Na", "Cl"], [[0, 0, 0], shift]))


def test_large_cells_take_little_memory():
    """A table of distances of 2,744 atoms takes 180 MB."""
    points = np.stack(np.meshgrid(*[np.arange(14) / 14] * 3), -1).reshape(-1, 3)
    tracemalloc.start()
    crystal = encode_structure(Structure(Lattice.cubic(56), ["Po"] * len(points), points))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert crystal.space_group == 221
    assert peak < 60_000_000


@pytest.mark.parametrize("point", [(0.8243, 0.6542, 0.25), (0.3, 0.05, 0.25), (0.6675, 0.3320, 0.25)])
def test_atoms_that_the_multiplicity_tells_apart_stay_apart(point):
    """A model may draw an orbit whose atoms are hundredths of an angstrom apart; that is for validity to say."""
    cell = np.array([[6.7, 6.7, 9.97, 90, 90, 120]])
    letter = LETTERS.index("j")
    crystal = CrystalBatch(np.array([194]), cell, np.array([[point]]), np.array([[13]]), np.array([[letter]]))
    assert len(structure_of_cif(cif_block("Al", crystal, {}))) == 12


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["x.cif", "x.poscar"])
def test_wide_characters(tmp_path, name, encoding):
    text = SALT if name == "x.cif" else poscar("Na Cl")
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert [parse_structure(record).formula for record in read_records(tmp_path / name)] == ["Na4 Cl4"]


SCALED = [(".5", "11.2"), ("-175.616", "3"), ("5.6D0", "1.0d0"), ("2 1 4 # of each axis", "2.8 5.6 1.4")]


@pytest.mark.parametrize(("scale", "edges"), SCALED)
@pytest.mark.parametrize("mode", ["Direct", "Cartesian", "kartesisch"])
@pytest.mark.parametrize("selective", ["", "Selective dynamics\n"])
def test_scales_of_a_poscar(scale, edges, mode, selective):
    edges = edges.split() if " " in edges else [edges] * 3
    vectors = "".join(" ".join(edge if i == k else "0" for k in range(3)) + "\n" for i, edge in enumerate(edges))
    points = np.array([line.split() for line in poscar("").splitlines()[7:]], float)
    if mode != "Direct":
        points = points * [float(edge.replace("d", "e")) for edge in edges]
    atoms = "".join(" ".join(map(repr, map(float, point))) + " T F T\n" for point in points)
    found = parse_structure(
        Record("x", "poscar", f"x\n{scale}\n{vectors}Na/ab12 Cl_pv ! salt\n4 4 ! eight\n{selective}{mode}\n{atoms}")
    )
    np.testing.assert_allclose(found.lattice.matrix, 5.6 * np.eye(3), rtol=1e-5)
    assert encode_structure(found).space_group == 225


VELOCITIES = "\n" + "1.0E-1 2 3\n" * 8
TAILS = [
    VELOCITIES,
    VELOCITIES + "\n1\n2.0\n0 0 0 0\n" + "0 0 0\n" * 24,
    "Lattice velocities and vectors\n  1\n" + "0 0 0\n" * 3 + "5 0 0\n0 5 0\n0 0 5\n" + VELOCITIES,
    "\nCartesian" + VELOCITIES,
]


@pytest.mark.parametrize("tail", TAILS)
def test_what_follows_the_atoms_is_no_frame(tmp_path, tail):
    (tmp_path / "CONTCAR").write_text((poscar("x", "Na Cl") + tail) * 2)
    assert [parse_structure(record).formula for record in read_records(tmp_path / "CONTCAR")] == ["Na4 Cl4"] * 2


@pytest.mark.parametrize("damage", [("5.6 0 0", "5.6 0 x"), ("0 5.6 0", "0 5.6"), ("4 4\n", "4 -4\n")])
def test_a_damaged_frame_is_a_row(tmp_path, damage):
    one = poscar("x", "Na Cl")
    (tmp_path / "XDATCAR").write_text(one + one.replace(*damage) + one)
    records = list(read_records(tmp_path / "XDATCAR"))
    assert [record.name for record in records] == ["XDATCAR#1", "XDATCAR#2", "XDATCAR#3"]
    with pytest.raises(ValueError, match="not a POSCAR"):
        parse_structure(records[1])


ABSURD = ["1e300", "-1e17", "2e5"]


@pytest.mark.parametrize("number", [*ABSURD, "nan", "inf", "9" * 400])
@pytest.mark.parametrize("kind", ["cif", "poscar", "extxyz", "json"])
def test_coordinates_without_digits(kind, number):
    sites = [{"species": [{"element": "Na", "occu": 1}], "abc": ["X", 0, 0]}]
    text = {
        "cif": block("P 1", sites="Na1 Na X 0 0 1"),
        "poscar": "x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n1\nDirect\nX 0 0\n",
        "extxyz": frame(BOX, "Na X 0 0", count=1),
        "json": json.dumps({"lattice": {"matrix": np.diag([4.0] * 3).tolist()}, "sites": sites}).replace('"X"', "X"),
    }[kind]
    number = {"nan": "NaN", "inf": "Infinity"}.get(number, number) if kind == "json" else number
    with pytest.raises((ValueError, ArithmeticError)) as error:
        parse_structure(Record("x", kind, text.replace("X", number)))
    assert re.search("cells away|not a number|three numbers|not a pymatgen", reason_of(error.value))


@pytest.mark.parametrize(
    ("comment", "atoms", "reason"),
    [
        (f"{BOX} Properties=Z:I:1:pos:R:3", "-1 0 0 0\n17 2 2 2", "-1 is not an atomic number"),
        (f"{BOX} Properties=Z:I:1:pos:R:3", "0 0 0 0\n17 2 2 2", "0 is not an atomic number"),
        (f"{BOX} Properties=Z:I:1:pos:R:3", "119 0 0 0\n17 2 2 2", "119 is not an atomic number"),
        (f"{BOX} Properties=species:S:1:pos:R:3:occupancy:R:1", "Na 0 0 0 .5\nCl 2 2 2 1", "partial or mixed"),
        (f"{BOX} Properties=species:S:-1:pos:R:3", "Na 0 0 0\nCl 2 2 2", "Properties with species:S:-1"),
        (f"{BOX} Properties=species:S:1:pos:R:2", "Na 0 0 0\nCl 2 2 2", "Properties with pos:R:2"),
        (f'{BOX} Lattice="5 0 0 0 5 0 0 0 5"', "Na 0 0 0\nCl 2 2 2", "or with two"),
        (f'{BOX} pbc="True False True"', "Na 0 0 0\nCl 2 2 2", "some directions only"),
    ],
)
def test_frames_that_would_mean_something_else(comment, atoms, reason):
    with pytest.raises(ValueError, match=reason):
        parse_structure(Record("x", "extxyz", frame(comment, atoms)))


def test_a_frame_of_no_atoms_is_a_row(tmp_path):
    (tmp_path / "x.xyz").write_text(f"0\n{BOX}\n" + frame(BOX))
    first, second = read_records(tmp_path / "x.xyz")
    with pytest.raises(ValueError, match="no atoms"):
        parse_structure(first)
    assert parse_structure(second).formula == "Na1 Cl1"


EMPTY = ["NaN", "nan", "null", " \n", "None", "<NA>", float("nan"), 0, False, [], {}]


@pytest.mark.parametrize("value", EMPTY)
def test_what_pandas_and_others_write_for_nothing(tmp_path, value):
    sites = [{"species": [{"element": "Mg", "occu": 1}], "abc": [0, 0, 0]}]
    row = {"cif": value, "structure": {"lattice": {"matrix": np.diag([3.0] * 3).tolist()}, "sites": sites}}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"cif": value}) + "\n")
    first, second = read_records(tmp_path / "x.jsonl")
    assert parse_structure(first).formula == "Mg1"
    with pytest.raises(ValueError, match=r"."):
        parse_structure(second)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pbc": [True, True, False]}, "some directions only"),
        ({"matrix": [[1, 0, 0], [0, 1, 0]]}, "not a pymatgen"),
        ({"matrix": None}, "not a pymatgen"),
        ({"matrix": [[9e5, 0, 0], [0, 9e5, 0], [0, 0, 9e5]]}, "edges of more than"),
        ({"abc": [0, 0]}, "not a pymatgen"),
        ({"abc": [[0], 0, 0]}, "not a pymatgen"),
        ({"occu": None}, "not a pymatgen"),
        ({"occu": "1"}, "not a pymatgen"),
    ],
)
def test_dicts_that_are_no_crystal(change, reason):
    lattice, site = {"matrix": np.diag([3.0] * 3).tolist()}, {"abc": [0, 0, 0]}
    kind = {"element": "Mg", "occu": 1}
    for part in (lattice, site, kind):
        part |= {key: value for key, value in change.items() if key in part or (key == "pbc" and part is lattice)}
    text = json.dumps({"lattice": lattice, "sites": [{**site, "species": [kind]}]})
    with pytest.raises(ValueError, match=reason):
        parse_structure(Record("x", "json", text))


def test_large_cells_without_symmetry_are_refused_early(monkeypatch):
    monkeypatch.setattr("cfx.data.encode._by_spglib", lambda *_: pytest.fail("spglib takes too long"))
    points = np.random.default_rng(0).permutation(11**3)[:1100]
    grid = np.stack(np.unravel_index(points, (11, 11, 11)), 1) / 11
    cell = Structure(Lattice.cubic(33), ["Na"] * 1100, grid + np.random.default_rng(1).normal(0, 0.002, grid.shape))
    with pytest.raises(EncodingError, match="1100 symmetry-inequivalent sites, more than 20"):
        encode_structure(cell)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.cif")
    (tmp_path / "zeros.cif").symlink_to("/dev/zero")
    assert [record.format for record in read_records(tmp_path)] == ["unreadable", "unreadable"]
    assert len(content_digest(tmp_path, [])) == 64
    with pytest.raises(DataError, match="not a plain file"):
        content_digest(tmp_path / "pipe.cif", [])
