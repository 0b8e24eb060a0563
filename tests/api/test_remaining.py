"""Describing, pairs, hulls, retrieval and self-training in Python, on crystals that cost little."""

from __future__ import annotations

import dataclasses

import pandas
import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.api.selftrain import NOT_GIVEN, OWN, TAKEN
from cfx.config import ModelConfig
from cfx.config.fields import sorted_out
from cfx.errors import DataError, UsageError

from ..needs import needs

TINY = ModelConfig(n_max=3, num_layers=1, num_heads=1, key_size=4, model_size=8, embed_size=4, first_hidden=8)


def salt(cation: str, anion: str = "Cl", a: float = 5.6) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_describe():
    found = cfx.describe([salt("Na"), salt("K"), None])
    assert repr(found) == "Description(2 crystals of 3 rows, 1 space group, 3 elements)" and len(found) == 2
    assert found.space_groups.to_dict() == {225: 2} and found.sites.to_dict() == {2: 2}
    assert found.elements.to_dict() == {"Cl": 2, "Na": 1, "K": 1}
    assert found.failures["row"].tolist() == [3] and found.failures["reason"].str.len().all()
    assert cfx.describe(salt("Na")).failures.empty


def test_retrieve():
    known = [salt("Na"), salt("K"), salt("Li")]
    found = cfx.retrieve([salt("K", a=5.7), salt("K"), salt("Rb"), None], known, workers=1)
    assert repr(found) == "Retrieval(2 of 4 crystals known, 1 distinct)" and found.failed == 1
    assert found.table[["name", "row", "times"]].to_numpy().tolist() == [["KCl_1", 1, 2]]
    assert found.top.empty and "KCl" in found._repr_html_()


@pytest.mark.integration
def test_retrieve_ranked_by_a_column(tmp_path):
    rows = [{"name": one, "cif": salt(one).to(fmt="cif"), "hardness": i} for i, one in enumerate(("Na", "K", "Li"))]
    pandas.DataFrame(rows).to_csv(tmp_path / "known.csv", index=False)
    given = {"property": "hardness", "top": [1, 2], "workers": 1}
    found = cfx.retrieve([salt("Na"), salt("K")], tmp_path / "known.csv", **given)
    assert found.table["rank"].tolist() == [2, 3] and found.table["value"].tolist() == [1, 0]
    assert found.top.to_dict("list") == {"k": [1, 2], "found": [0, 1], "of": [1, 2]}
    assert cfx.retrieve(salt("Na"), tmp_path / "known.csv", lowest=True, **given).table["rank"].tolist() == [1]


def test_hull():
    table = cfx.hull()
    phases = table.phases("Na-Cl")
    assert table.source == "chgnet-mp" and len(table) > 60_000 and repr(table).startswith("HullTable(chgnet-mp ")
    assert set(phases["formula"]) >= {"Na", "Cl2", "NaCl"}
    assert phases.set_index("formula").loc["NaCl", "e_above_hull"] == pytest.approx(0, abs=1e-9)
    assert table.missing(["NaCl", "NaXe7"]) == ["NaXe7"]
    with pytest.raises(UsageError, match="'Qq' is not an element"):
        table.phases("Na-Qq")


@pytest.mark.integration
def test_build_hull(tmp_path):
    needs("chgnet")
    pure = [Structure(Lattice.cubic(4.2), ["Na", "Na"], [[0, 0, 0], [0.5, 0.5, 0.5]]), salt("Cl", a=7)]
    built = cfx.build_hull([*pure, salt("Na")], tmp_path / "own.npz")
    assert len(built) == 3 and built.source == str(tmp_path / "own.npz")
    assert cfx.hull(built.source).phases("Na-Cl").equals(built.phases("Na-Cl"))
    [own] = cfx.evaluate(salt("Na"), potential="chgnet", hull=built.source, workers=1).table["e_above_hull"]
    assert own == pytest.approx(0, abs=1e-5)
    with pytest.raises(UsageError, match=r"own\.csv"):
        cfx.build_hull(salt("Na"), tmp_path / "own.csv")


def test_pairs_that_are_none():
    with pytest.raises(DataError, match="there are no pairs"):
        cfx.dpo("mini", [])
    with pytest.raises(UsageError, match="a pair has two crystals: number 1 has 1 crystal"):
        cfx.dpo("mini", [(salt("Na"), salt("K")), (salt("Na"),)])  # pyright: ignore
    with pytest.raises(TypeError, match="did you mean 'epochs'"):
        cfx.dpo("mini", [(salt("Na"), salt("K"))], epoch=3)


@pytest.mark.integration
def test_dpo(tmp_path):
    pairs = [(salt("Na", anion), salt("K", anion).to_ase_atoms()) for anion in ("F", "Cl")]
    settings = {"epochs": 3, "batch_size": 2, "learning_rate": 3e-3}
    tuned = cfx.dpo(cfx.Model.init(TINY, seed=1), pairs, tmp_path / "run", **settings)
    assert repr(tuned) == "PreferenceTuning(2 pairs, 3 steps, 100 % right)"
    assert tuned.history["dpo.loss"].is_monotonic_decreasing and "<svg" in tuned._repr_html_()
    again = cfx.dpo(cfx.Model.init(TINY, seed=1), pairs, tmp_path / "run", resume=True, **settings)
    assert again.model.digest() == tuned.model.digest() and again.steps == 3
    with pytest.raises(UsageError, match="is not empty"):
        cfx.dpo(cfx.Model.init(TINY), pairs, tmp_path / "run")


def test_settings_of_self_training_are_those_of_the_command():
    """Each goes to the part that the command gives it to."""
    for kind, names in TAKEN.items():
        own = names - set(OWN)
        parts = dict(zip(TAKEN, sorted_out("x", dict.fromkeys(own), *TAKEN, own=OWN, without=NOT_GIVEN), strict=True))
        assert parts[kind].keys() == own
    with pytest.raises(TypeError, match="has no setting 'min_distance'"):
        cfx.selftrain("mini", salt("Na"), min_distance=1)


@pytest.mark.integration
def test_selftrain(tmp_path):
    needs("chgnet")
    needs("smact")
    asked = {"space_group": 221, "n": 4, "max_sites": 2, "rounds": 1, "epochs": 1, "steps": 2, "fmax": 1, "workers": 1}
    loose = {"classes": "element,intermetallic,charge-neutral,other", "max_e_hull": 1}
    salts = [salt("Na"), salt("K"), salt("Li")]
    trained = cfx.selftrain("mini", salts, tmp_path / "run", **asked, **loose)
    [report] = trained.reports
    assert trained.rounds["kept"].tolist() == [report["kept"]["crystals"]] and trained.rounds["valid"][0] > 0
    assert repr(trained) == f"SelfTraining(1 round, {report['kept']['crystals']} crystals kept)"
    assert dataclasses.asdict(trained)["directory"] == tmp_path / "run" and trained.history is not None
    again = cfx.selftrain("mini", salts, tmp_path / "run", resume=True, **asked, **loose)
    assert again.model.digest() == trained.model.digest()
