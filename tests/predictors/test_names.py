"""Getting a potential by name, and what is said of names that are none."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from cfx.errors import CheckpointError, DependencyError, NetworkError, UsageError
from cfx.predictors.base import other_method
from cfx.predictors.load import load_potential, split_scale

from .conftest import ORB, matgl_directory, orb_weights

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("mace", UsageError, "there is no potential called mace"),
        ("", UsageError, "there is no potential called"),
        ("chgnet:0.2.0", UsageError, "0.2.0"),
        ("ase:ase.calculators.emt", UsageError, "does not name a calculator"),
        ("ase:.emt:EMT", UsageError, "does not name a calculator"),
        ("ase:ase.calculators.emt:NOTHING", UsageError, "no NOTHING in ase.calculators.emt"),
        ("ase:ase.build:bulk", UsageError, "without arguments"),
        ("ase:pathlib:Path", UsageError, "an ASE calculator"),
        ("ase:no_such_module:EMT", DependencyError, "no_such_module"),
        ("matgl:", UsageError, "many potentials"),
    ],
)
def test_names_that_are_none(text, error, says):
    with pytest.raises(error, match=says) as caught:
        load_potential(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "module", "extra"),
    [
        ("chgnet", "chgnet.model.model", "chgnet"),
        ("orb", "orb_models.forcefield", "orb"),
        ("matgl:x", "matgl", "matgl"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(text, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(DependencyError) as caught:
        load_potential(text)
    assert caught.value.hint == f"pip install 'cfx-crystal[{extra}]'"


def test_devices(get_potential):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("chgnet", reason="chgnet is not installed")
    for device in ("tpu", "cuda:", "cuda:x", "cpu:0", ""):
        with pytest.raises(UsageError, match="there is no device called"):
            load_potential("chgnet", device)
    with pytest.raises(DependencyError, match="cuda"):
        load_potential("chgnet", f"cuda:{torch.cuda.device_count()}")


def test_names_say_what_was_loaded(get_potential):
    assert get_potential("emt").name == "ase ase.calculators.emt:EMT"
    assert get_potential("emt").scale == "raw"
    assert load_potential("ase:ase.calculators.emt:EMT:mp2020").scale == "mp2020"
    assert split_scale("/a:b/c") == ("/a:b/c", "raw")


def test_a_calculator_may_be_an_object(monkeypatch, get_potential, alloys):
    from ase.calculators import emt

    monkeypatch.setattr(emt, "READY", emt.EMT(), raising=False)
    found = load_potential("ase:ase.calculators.emt:READY").evaluate(alloys, forces=False)
    assert (found.energy == get_potential("emt").evaluate(alloys, forces=False).energy).all()


@pytest.mark.skipif(importlib.util.find_spec("orb_models") is None, reason="orb-models is not installed")
class TestOrb:
    def test_names(self, get_potential):
        assert ORB in get_potential("orb").name and "weights.ckpt" in get_potential("orb").name
        assert get_potential("orb").scale == "raw"
        for name in ("orb:orb-v9", "orb:orb-v3-conservative-omol", "orb:separate-d3-3layer", "orb:orb-v1"):
            with pytest.raises(UsageError, match="no Orb potential") as caught:
                load_potential(name)
            assert "orb-v3-conservative-inf-mpa" in caught.value.hint and "omol" not in caught.value.hint

    def test_underscores_and_a_path_alone(self, tmp_path):
        weights = orb_weights(tmp_path)
        assert ORB in load_potential(f"orb:{ORB.replace('-', '_')}:{weights}").name
        assert "orb-v3-conservative-inf-mpa" in load_potential(f"orb:{weights}").name

    def test_a_file_is_what_it_is_called(self, tmp_path):
        """As orb-models names the files that it downloads."""
        weights = orb_weights(tmp_path)
        for file in (f"{ORB}-20250404.ckpt", f"{ORB.replace('-', '_')}.ckpt"):
            renamed = weights.rename(tmp_path / file)
            assert f"({ORB}, {file})" in load_potential(f"orb:{renamed}").name
            weights = renamed
        with pytest.raises(CheckpointError, match="not weights of orb_v2"):
            load_potential(f"orb:{weights.rename(tmp_path / 'orb-v2-20241011.ckpt')}")
        with pytest.raises(UsageError, match="no Orb potential orb-v3-conservative-omol"):
            load_potential(f"orb:{tmp_path / 'orb-v3-conservative-omol-20250820.ckpt'}")

    def test_weights_of_another_model_or_none_at_all(self, tmp_path):
        weights = orb_weights(tmp_path)
        text = tmp_path / "text.ckpt"
        text.write_text("not weights")
        for name in (f"orb:orb-v2:{weights}", f"orb:{text}", f"orb:{tmp_path / 'nothing.ckpt'}"):
            with pytest.raises(CheckpointError):
                load_potential(name)


@pytest.mark.skipif(importlib.util.find_spec("matgl") is None, reason="matgl is not installed")
class TestMatgl:
    def test_a_property_model_is_no_potential(self, tmp_path):
        from matgl.models import MEGNet

        MEGNet().save(tmp_path / "gap")
        with pytest.raises(CheckpointError, match="gap is a MEGNet that predicts a property"):
            load_potential(f"matgl:{tmp_path / 'gap'}")

    def test_a_network_with_angles(self, get_potential, alloys):
        batch = get_potential("m3gnet").evaluate(alloys)
        assert batch.ok.all()
        for i, crystal in enumerate(alloys):
            single = get_potential("m3gnet").evaluate([crystal])
            assert single.energy[0] == pytest.approx(batch.energy[i], abs=1e-3 * len(crystal))  # energies of 1000 eV
            np.testing.assert_allclose(single.forces[0], batch.forces[i], atol=1e-2)

    def test_names(self, tmp_path):
        directory = matgl_directory(tmp_path)
        assert load_potential(f"matgl:{directory}").name.endswith("(TensorNet)")
        assert load_potential(f"matgl:{directory}:mp2020").scale == "mp2020"
        (directory / "state.pt").write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match="cannot load"):
            load_potential(f"matgl:{directory}")
        with pytest.raises(NetworkError, match="cannot find M3GNet-9999"):
            load_potential("matgl:M3GNet-9999")

    def test_a_name_of_the_catalog_is_called_as_published(self):
        """So that what it was trained on is known, and warned of on somebody else's hull."""
        from cfx.predictors.matgl_files import model_name

        assert model_name("tensornet") == "TensorNet-PES-MatPES-PBE-2025.2"
        assert "MatPES" in other_method(model_name("tensornet"))
        assert model_name("M3GNet-9999") == "M3GNet-9999"
