"""Heads in numpy: as the script that trains them has them, and as arithmetic says."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfx.errors import CheckpointError
from cfx.predictors.bundled import LAYERS, Head, load_head, raw_inputs, summary
from cfx.predictors.chgnet import WIDTH, CrystalFeatures

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_property_models.py"


@pytest.fixture(scope="module")
def script():
    """The script that makes the bundled models."""
    pytest.importorskip("torch", reason="torch is not installed")
    spec = importlib.util.spec_from_file_location("make_property_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def some_features(sizes, seed: int = 0) -> list[CrystalFeatures]:
    rng = np.random.default_rng(seed)
    return [
        CrystalFeatures(
            rng.normal(size=(n, WIDTH)).astype(np.float32), rng.integers(1, 90, n), rng.uniform(5, 30), rng.normal()
        )
        for n in sizes
    ]


def repeated(crystal: CrystalFeatures, times: int) -> CrystalFeatures:
    return replace(crystal, atoms=np.tile(crystal.atoms, (times, 1)), numbers=np.tile(crystal.numbers, times))


@pytest.fixture(scope="module")
def head() -> Head:
    """Three members of 8 wide layers with random weights, two descriptors of elements."""
    rng = np.random.default_rng(1)
    atoms, crystals = WIDTH + 2, 2 * 4 + 4
    shapes = [(atoms, 8), (8, 8), (8, 2), (8, 8), (16 + crystals, 8), (8, 4), (4, 2)]
    arrays = {"elements": rng.normal(size=(119, 2)).astype(np.float32), "spread": np.float32(1)}
    arrays["seen"], arrays["bounds"] = np.full(119, 9), np.array([-20.0, 20.0])
    for name, (inputs, outputs) in zip(LAYERS, shapes, strict=True):
        arrays[f"{name}/w"] = rng.normal(0, 1 / np.sqrt(inputs), (3, inputs, outputs)).astype(np.float16)
        arrays[f"{name}/b"] = rng.normal(0, 0.3, (3, outputs)).astype(np.float16)
    for name, width in (("atom", atoms), ("crystal", crystals)):
        arrays[f"{name}_mean"] = rng.normal(size=width).astype(np.float32)
        arrays[f"{name}_scale"] = rng.uniform(0.5, 2, width).astype(np.float32)
    arrays["axes"] = rng.normal(size=(atoms + crystals, 3)).astype(np.float32)
    arrays["landmarks"], arrays["radius"] = rng.normal(size=(5, 3)).astype(np.float16), np.float64(1)
    return Head(arrays | {"transform": np.array("identity")}, "identity")


def with_constants(head: Head, means: list[float], log_width: float, **others) -> Head:
    """Members that say the same of every crystal."""
    bias = np.array([[mean, log_width] for mean in means], np.float32)
    output = {"output/w": np.zeros_like(head.arrays["output/w"]), "output/b": bias}
    return replace(head, arrays=head.arrays | output | {name: np.float32(value) for name, value in others.items()})


def test_as_the_network_that_is_trained(script):
    """Random weights, sizes that differ, one crystal of a single atom."""
    import torch

    features = some_features([3, 1, 7, 2])
    table = script.element_table()
    raw = raw_inputs(features, table)
    torch.manual_seed(0)
    networks = [script.Network(raw.atoms.shape[1], raw.crystals.shape[1]).eval() for _ in range(2)]
    still = {f"{name}_{part}": value for name in ("atom", "crystal") for part, value in (("mean", 0), ("scale", 1))}
    head = Head(script.stacked(networks) | still | {"elements": table, "bounds": np.array([-20, 20])}, "identity")
    found = np.stack(head.members(head.inputs(features)))
    owner = torch.from_numpy(np.repeat(np.arange(4), raw.sizes))
    with torch.no_grad():
        wanted = [network(torch.from_numpy(raw.atoms), torch.from_numpy(raw.crystals), owner) for network in networks]
    for member, (target, log_width) in enumerate(wanted):
        np.testing.assert_allclose(found[0, member], target, rtol=5e-3, atol=5e-3)  # weights are rounded to half
        np.testing.assert_allclose(np.log(found[1, member]), log_width, rtol=5e-3, atol=5e-3)
    assert np.ptp(found[0]) > 0.05


def test_crystals_do_not_see_each_other(head):
    features = some_features([3, 1, 7, 2])
    together = head.predict(features)
    for i, crystal in enumerate(features):
        alone = head.predict([crystal])
        assert alone.value[0] == pytest.approx(together.value[i], abs=1e-5)
        assert alone.std[0] == pytest.approx(together.std[i], rel=1e-5)


def test_nothing_changes_with_the_cell_or_the_order_of_atoms(head):
    crystal = some_features([5])[0]
    turned = replace(crystal, atoms=crystal.atoms[::-1], numbers=crystal.numbers[::-1])
    one = np.stack(head.members(head.inputs([crystal])))
    np.testing.assert_allclose(np.stack(head.members(head.inputs([turned]))), one, rtol=1e-5)
    np.testing.assert_allclose(np.stack(head.members(head.inputs([repeated(crystal, 3)]))), one, rtol=1e-5)


def test_what_is_known_of_the_crystal(head):
    """Rock salt with a table of one column, the atomic number."""
    salt = CrystalFeatures(np.zeros((4, WIDTH), np.float32), np.array([11, 17, 11, 17]), np.e**3, -3.5)
    iron = replace(salt, numbers=np.array([26, 26, 26, 53]))
    found = raw_inputs([salt, iron], np.arange(119.0)[:, None])
    np.testing.assert_allclose(found.crystals[0], [14, 3, 17, 11, 3, -3.5, 0, 2], rtol=1e-6)
    np.testing.assert_allclose(found.crystals[1][2:], [53, 26, 3, -3.5, 1, 2], rtol=1e-6)  # 131 electrons
    assert found.atoms[:4, -1].tolist() == [11, 17, 11, 17] and found.sizes.tolist() == [4, 4]


def test_electrons_are_those_of_a_formula_unit(head):
    """37 in CuO, an odd number however many formula units the cell has."""
    oxide = CrystalFeatures(np.zeros((2, WIDTH), np.float32), np.array([29, 8]), 10.0, -4.0)
    found = raw_inputs([oxide, repeated(oxide, 2)], head.arrays["elements"])
    assert found.crystals[:, -2].tolist() == [1, 1]


def test_inputs_are_standardised(head):
    features = some_features([3, 1])
    raw, found = raw_inputs(features, head.arrays["elements"]), head.inputs(features)
    for name, before, after in (("atom", raw.atoms, found.atoms), ("crystal", raw.crystals, found.crystals)):
        again = after * head.arrays[f"{name}_scale"] + head.arrays[f"{name}_mean"]
        np.testing.assert_allclose(again, before, atol=1e-4)


def test_mean_and_width_of_a_mixture(head):
    """A Laplace distribution of width b has the variance 2 b^2; that of the members' means is added."""
    features = some_features([2, 3])
    found = with_constants(head, [1, 2, 6], np.log(0.5), spread=3).predict(features)
    np.testing.assert_allclose(found.value, 3, rtol=1e-6)
    np.testing.assert_allclose(found.std, 3 * np.sqrt(2 * 0.25 + 14 / 3), rtol=1e-6)


def test_no_member_goes_beyond_the_training_data(head):
    bounded = replace(head, arrays=head.arrays | {"bounds": np.array([0.0, 7.0])})
    for means, value in (([-5, -4, 3], 1), ([1, 3, 5], 3), ([100, 7, 1], 5)):
        assert with_constants(bounded, means, 0).predict(some_features([2])).value[0] == pytest.approx(value)


def test_logarithms_become_numbers(head):
    found = with_constants(replace(head, transform="log10"), [1, 1, 1], np.log(0.01)).predict(some_features([2]))
    assert found.value[0] == pytest.approx(10)
    assert found.std[0] == pytest.approx(10 * np.log(10) * np.sqrt(2) * 0.01, rel=1e-5)


def test_far_from_all_landmarks_is_outside(head):
    features = some_features([2, 3, 4])
    places = head.inputs(features)
    marks = (summary(places) @ head.arrays["axes"])[:2] + np.array([[0.6, 0, 0], [0, 0.9, 0]], np.float32)
    near = replace(head, arrays=head.arrays | {"landmarks": marks})
    np.testing.assert_allclose(near.distance(places)[:2], [0.6, 0.9], rtol=1e-3)
    assert near.predict(features).outside.tolist() == [False, False, bool(near.distance(places)[2] > 1)]
    narrow = replace(near, arrays=near.arrays | {"radius": np.float64(0.7)})
    assert narrow.predict(features).outside.tolist()[:2] == [False, True]


def test_an_element_that_is_hardly_known_is_outside(head):
    features = [replace(one, numbers=np.full(len(one.numbers), 11)) for one in some_features([2, 3, 1])]
    features[1].numbers[2] = 12
    wide = replace(head, arrays=head.arrays | {"radius": np.float64(1e9), "seen": np.full(119, 5)})
    assert not wide.predict(features).outside.any()
    wide.arrays["seen"][12] = 4
    assert wide.predict(features).outside.tolist() == [False, True, False]


def test_no_crystals(head):
    found = head.predict([])
    assert found.value.shape == found.std.shape == found.outside.shape == (0,)


def test_files(head, tmp_path):
    np.savez(tmp_path / "head.npz", **head.arrays)
    features = some_features([2, 3])
    np.testing.assert_array_equal(load_head(tmp_path / "head.npz").predict(features), head.predict(features))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transform": np.array("square")}, "unknown target transformation, square"),
        ({"radius": None}, "has no radius"),
        ({"value/w": None}, "has no value/w"),
        ({"radius": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_files_that_are_none(head, tmp_path, change, words):
    arrays = {name: value for name, value in (head.arrays | change).items() if value is not None}
    np.savez(tmp_path / "head.npz", **arrays)
    with pytest.raises(CheckpointError, match=words) as error:
        load_head(tmp_path / "head.npz")
    assert error.value.hint and "\n" not in str(error.value)


def test_files_that_are_not_there_or_damaged(head, tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "head.npz", **head.arrays)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "head.npz").read_bytes()[:1000])
    for name in ("nothing.npz", "text.npz", "empty.npz", "cut.npz"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_head(tmp_path / name)
