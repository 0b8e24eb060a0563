"""A share of a data set held out: the same crystals whatever their order, cell and digits."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from cfx.config import DataConfig
from cfx.core.symmetry import settings_table
from cfx.data.dataset import load_dataset
from cfx.data.split import crystal_hashes, read_data, split
from cfx.errors import DataError
from cfx.reporter import Mute

from .test_dataset import ROCK_SALT

CATIONS = ("Li", "Na", "K", "Rb", "Cs", "Ag", "Cu", "Tl", "Mg", "Ca", "Sr", "Ba")


def salts(path, *changes):
    """Rock salts of twelve cations, each once for every change made to its structure."""
    lines = []
    for cation in CATIONS:
        for number, change in enumerate(changes or [lambda salt: salt]):
            salt = ROCK_SALT.copy()
            salt.replace_species({"Na": cation})
            lines.append(json.dumps({"id": f"{cation}-{number}", "cif": change(salt).to(fmt="cif")}))
    path.write_text("\n".join(lines))
    return load_dataset(path, num_workers=1)


def shifted(salt):
    """Another origin, and slightly larger."""
    moved = salt.copy().scale_lattice(salt.volume * 1.02)
    moved.translate_sites(range(len(moved)), [0.5, 0.5, 0.5])
    return moved


def names(data) -> set[str]:
    return set(data.names)


def test_both_sides_have_the_crystals_of_the_data(tmp_path):
    data = salts(tmp_path / "salts.jsonl")
    train, held_out = split(data, 0.4)
    assert not names(train) & names(held_out) and names(train) | names(held_out) == names(data)
    for side in (train, held_out):
        rows = [data.names.index(name) for name in side.names]
        for ours, theirs in zip(jax.tree.leaves(side.batch), jax.tree.leaves(data.batch[np.array(rows)]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert side.element_counts().sum() == 2 * len(side) and side.provenance["crystals"] == len(side)
    assert len({data.digest, train.digest, held_out.digest}) == 3


def test_copies_are_on_one_side(tmp_path):
    """Primitive, in a supercell, from another origin."""
    copies = salts(tmp_path / "copies.jsonl", lambda salt: salt.get_primitive_structure(), lambda s: s * 2, shifted)
    sides = [{name.partition("-")[0] for name in side.names} for side in split(copies, 0.4)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(CATIONS)


def test_a_crystal_stays_on_its_side_when_others_come_and_go(tmp_path):
    data = salts(tmp_path / "salts.jsonl")
    lines = (tmp_path / "salts.jsonl").read_text().split("\n")
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[:2:-1]))
    fewer = load_dataset(tmp_path / "fewer.jsonl", num_workers=1)
    assert names(split(fewer, 0.4)[1]) == names(split(data, 0.4)[1]) & names(fewer)
    assert names(split(data, 0.4)[1]) < names(split(data, 0.8)[1])


def test_hashes_are_those_of_all_settings(rotary):
    """Of every golden crystal; crystals of other elements have others."""
    batch = rotary.batch.numpy()
    hashes = crystal_hashes(batch)
    for number in (1, 2, 3):
        last = settings_table().count[batch.space_group - 1] - 1
        np.testing.assert_array_equal(crystal_hashes(batch.in_settings(np.minimum(number, last))), hashes)
    other = dataclasses.replace(batch, species=np.where(batch.species > 0, batch.species % 90 + 1, 0))
    assert not np.isin(crystal_hashes(other), hashes).any()


def test_hashes_are_evenly_spread(rotary):
    """Of 150 crystals in each of 90 exchanges of elements: every tenth of the range has a tenth of them."""
    batch = rotary.batch.numpy()
    species = [np.where(batch.species > 0, (batch.species + shift) % 100 + 1, 0) for shift in range(90)]
    hashes = np.unique(np.concatenate([crystal_hashes(dataclasses.replace(batch, species=one)) for one in species]))
    counts = np.bincount((hashes / 2**64 * 10).astype(int), minlength=10)
    assert len(hashes) > 10_000 and ((counts - len(hashes) / 10) ** 2 / (len(hashes) / 10)).sum() < 27.9  # p = 0.001


def test_a_share_is_told_and_leaves_something_on_each_side(tmp_path):
    class Said(Mute):
        text = ""

        def message(self, text: str) -> None:
            Said.text = text

    salts(tmp_path / "salts.jsonl")
    path = str(tmp_path / "salts.jsonl")
    train, held_out = read_data(DataConfig(train=path, validation="40%"), 21, Said(), 1)
    assert held_out is not None and len(train) + len(held_out) == 12
    assert Said.text.startswith(f"held out for validation: {len(held_out)} of 12 crystals (")
    assert read_data(DataConfig(train=path), 21, Mute(), 1)[1] is None
    for share, words in ((1e-6, "holds out none"), (1 - 1e-6, "holds out all")):
        with pytest.raises(DataError, match=words):
            split(train, share)
