"""What a model draws: a batch with log-probabilities, that is written, told and shown."""

from __future__ import annotations

import html

import jax
import numpy as np
import pytest
from pymatgen.core import Composition

from cfx.core.crystal import CrystalBatch, concatenate
from cfx.core.lattice import is_physical
from cfx.core.likelihood import LogProb
from cfx.data.structures import load_crystals
from cfx.errors import DataError, UsageError
from cfx.report import CELL_CRYSTALS
from cfx.sampling.decode import Drawn
from cfx.sampling.sample import Sample, as_sample


@pytest.fixture(scope="module")
def drawn(rotary) -> list[Drawn]:
    """The first golden crystals, as draws of 8 and of 12, with log-probabilities of their own."""
    batch = rotary.batch.numpy()[:20]
    parts = np.arange(80, dtype=np.float32).reshape(4, 20)
    whole = Drawn(batch, LogProb(*-parts), LogProb(*-parts / 2))
    return [jax.tree.map(lambda leaf, rows=rows: leaf[rows], whole) for rows in (slice(0, 8), slice(8, 20))]


@pytest.fixture(scope="module")
def sample(drawn) -> Sample:
    return as_sample(drawn, 21, "golden")


def test_a_sample_is_a_batch_with_log_probabilities(sample, rotary):
    assert isinstance(sample, CrystalBatch) and len(sample) == 20 and sample.model == "golden"
    assert np.array_equal(sample.species, rotary.batch.species[:20])
    assert sample.log_prob.total.tolist() == [-(120 + 4 * i) for i in range(20)]
    some = sample[np.array([3, 0])]
    assert isinstance(some, Sample) and some.log_prob.total.tolist() == [-132, -120] and some.model == "golden"
    assert type(sample.numpy()) is CrystalBatch


def test_samples_are_put_together_and_with_other_batches(sample):
    both = concatenate([sample[:2], sample[5:6]])
    assert isinstance(both, Sample) and both.log_prob.wyckoff.tolist() == [0, -1, -5]
    mixed = concatenate([sample[:2], sample.numpy()[5:6]])
    assert type(mixed) is CrystalBatch and len(mixed) == 3


def test_no_crystals():
    nothing = as_sample([], 21, "golden")
    assert len(nothing) == 0 and nothing.num_slots == 21 and "0 crystals" in repr(nothing)
    with pytest.raises(DataError, match="no crystals"):
        nothing.write("x.cif")


def test_the_table(sample):
    table = sample.table
    assert table["log_prob"].tolist() == sample.log_prob.total.tolist()
    assert table["policy_log_prob"].tolist() == sample.policy_log_prob.total.tolist()
    assert table["space_group"].tolist() == sample.space_group.tolist()
    assert table["num_atoms"].tolist() == sample.num_atoms.tolist()
    names = [name.rpartition("_") for name in table["name"]]
    assert [Composition(name[0]).reduced_formula for name in names] == table["formula"].tolist()
    assert [int(name[2]) for name in names] == list(range(len(sample)))


@pytest.mark.parametrize("name", ["x.cif", "x.zip", "x.extxyz", "x.jsonl", "x.csv", "poscars"])
def test_what_is_written_is_read_again(sample, tmp_path, name):
    some = sample[:3]
    for _ in range(2):  # what is there is replaced
        assert some.write(tmp_path / name) == tmp_path / name
    found = load_crystals(tmp_path / name, num_workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for one, structure in zip(found, some.to_structures(), strict=True):
        assert one.structure.composition == structure.composition
        assert one.structure.volume == pytest.approx(structure.volume, rel=1e-4)
    if name == "x.cif":
        assert "_cfx_log_prob -120\n" in (tmp_path / name).read_text()
        assert [one.space_group_asked for one in found] == some.space_group.tolist()


def test_other_suffixes_and_lattices_that_close_no_cell(sample, tmp_path):
    with pytest.raises(UsageError, match="unknown suffix"):
        sample.write(tmp_path / "x.docx")
    bent = sample[:1].numpy()
    bent.lattice[0, 3:] = 10, 10, 170
    bent = Sample(**vars(bent), log_prob=sample.log_prob, policy_log_prob=sample.log_prob, model="golden")
    with pytest.raises(UsageError, match="unphysical lattices"):
        bent.write(tmp_path / "x.extxyz")
    assert "no crystals" not in bent._repr_html_()


def test_ase(sample):
    [atoms] = sample[:1].to_ase()
    [structure] = sample[:1].to_structures()
    assert len(atoms) == len(structure) and np.allclose(atoms.cell, structure.lattice.matrix)
    assert np.allclose(atoms.positions, structure.cart_coords) and list(atoms.symbols) == [
        site.specie.symbol for site in structure
    ]


def test_texts(sample):
    assert repr(sample).startswith("Sample(20 crystals by golden, space groups ") and len(repr(sample)) < 120
    assert "-158.0 nats on average" in repr(sample)
    assert repr(sample.numpy()) == "CrystalBatch(20 crystals in 21 slots)"


def test_a_cell_of_a_notebook_holds_the_viewer_and_nothing_from_elsewhere(sample):
    shown = sample._repr_html_()
    assert len(shown) < 150_000 and shown.startswith('<iframe sandbox="allow-scripts allow-downloads"')
    page = html.unescape(shown.partition('srcdoc="')[2])
    assert "default-src 'none'" in page and "src=" not in page.replace("style-src", "").replace("script-src", "")
    physical = int(is_physical(sample.lattice).sum())  # others have no cell to show
    assert page.count('"frac_coords"') == CELL_CRYSTALS < physical
    assert f"the first {CELL_CRYSTALS} of {physical}" in page
