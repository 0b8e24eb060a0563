"""Crystals to be evaluated: read in order, bad ones with a reason, with the space group that was asked for."""

import dataclasses
import json
import zipfile

import joblib
import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.data.encode import DISORDERED
from cfx.data.structures import load_crystals
from cfx.errors import DataError
from cfx.io.formats import OutputRecord, render_cif, render_csv, render_extxyz, render_jsonl

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MIXED_SALT = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def test_order_names_and_reasons(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for i in range(150):
            archive.writestr(f"gen_{i}.cif", "" if i == 7 else SALT.to(fmt="cif"))
        archive.writestr("gen_3.cif.bad", "not read")
        archive.writestr("gen_200.cif", MIXED_SALT.to(fmt="cif"))
        archive.writestr("gen_201.cif", "data_x\nnonsense\n")
    seen: list[int] = []
    loaded = load_crystals(tmp_path / "all.zip", 2, seen.append)
    assert [one.name for one in loaded] == [f"gen_{i}.cif" for i in [*range(150), 200, 201]]
    assert seen == sorted(seen) and seen[-1] == len(loaded)
    assert loaded[0].structure == load_crystals(tmp_path / "all.zip", 1)[0].structure
    assert loaded[7].reason == "the file holds no crystals"
    assert loaded[-2].reason == DISORDERED and loaded[-2].structure is None
    assert loaded[-1].structure is None and loaded[-1].reason
    assert all(one.space_group_asked is None for one in loaded)


@pytest.fixture(scope="module")
def written():
    """A crystal of the bundled model, and how its file formats write it."""
    crystals = cfx.load_model("mini").sample(194, seed=1)
    parts = dict.fromkeys(("wyckoff", "species", "coords", "lattice"), 0.0)
    remarks = {"model": "mini", "log_prob": 0.0, **{f"log_prob_{name}": value for name, value in parts.items()}}
    return crystals, OutputRecord(0, crystals, remarks)


@pytest.mark.parametrize(
    ("name", "render"),
    [("out.cif", render_cif), ("out.extxyz", render_extxyz), ("out.jsonl", render_jsonl), ("out.csv", render_csv)],
)
@pytest.mark.integration
def test_what_cfx_writes_says_what_was_asked(tmp_path, written, name, render):
    crystals, record = written
    header = "L,X,A,W,M,G,logp_w,logp_a,logp_xyz,logp_l,logp\n" if name == "out.csv" else ""
    (tmp_path / name).write_text(header + render(record))
    [loaded] = load_crystals(tmp_path / name, 1)
    assert loaded.space_group_asked == 194
    assert loaded.structure.composition == crystals.to_structures()[0].composition


@pytest.mark.integration
def test_the_space_group_of_a_frame_is_the_one_found(tmp_path, written):
    """What was asked for has a name of its own; frames of earlier versions had only that, as `space_group`."""
    _, record = written
    for found in (191, "none"):
        frame = render_extxyz(dataclasses.replace(record, remarks={**record.remarks, "space_group_found": found}))
        assert f" space_group={found} space_group_asked=194 " in frame and "space_group_found" not in frame
        (tmp_path / "new.extxyz").write_text(frame)
        assert load_crystals(tmp_path / "new.extxyz", 1)[0].space_group_asked == 194
        earlier = frame.replace(
            f"space_group={found} space_group_asked=194", f"space_group=194 space_group_found={found}"
        )
        (tmp_path / "old.extxyz").write_text(earlier)
        assert load_crystals(tmp_path / "old.extxyz", 1)[0].space_group_asked == 194


def test_a_foreign_file_asks_for_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"cif": SALT.to(fmt="cif", symprec=0.01)}))
    assert load_crystals(tmp_path / "x.jsonl", 1)[0].space_group_asked is None


@pytest.mark.parametrize("remarks", ["", "model=x", "energy=-3 converged=T", "log_prob=-3"])
def test_a_foreign_frame_asks_for_nothing(tmp_path, remarks):
    """`cfx relax` writes the group that it found; others may mean what they like by it."""
    comment = f'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 {remarks} space_group=99 pbc="T T T"'
    (tmp_path / "x.extxyz").write_text(f"1\n{comment}\nPo 0 0 0\n")
    assert load_crystals(tmp_path / "x.extxyz", 1)[0].space_group_asked is None


def test_nothing(tmp_path):
    (tmp_path / "x.cif").write_text("")
    with pytest.raises(DataError, match="holds no crystals"):
        load_crystals(tmp_path / "x.cif")


def test_a_backend_of_the_caller_is_used(tmp_path):
    (tmp_path / "x.cif").write_text(SALT.to(fmt="cif") * 2)
    with joblib.parallel_config(backend="threading"):
        assert len(load_crystals(tmp_path / "x.cif", 2)) == 2
