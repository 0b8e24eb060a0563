"""Potentials that tests share: real libraries; where weights cannot be had, the real networks with random ones."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

from cfx.predictors.load import load_potential

METALS = ("Al", "Cu", "Ag", "Au")
ORB = "orb-v3-conservative-inf-omat"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads of torch that share two cores with other work wait for each other most of the time."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


def orb_weights(folder):
    """A file with random weights of an Orb model, as its library would download it."""
    pretrained = pytest.importorskip("orb_models.forcefield.pretrained", reason="orb-models is not installed")
    import torch

    torch.manual_seed(0)
    path = folder / "weights.ckpt"
    torch.save(pretrained.orb_v3_conservative_architecture(device="cpu").state_dict(), path)
    return path


def matgl_directory(folder, architecture: str = "TensorNet"):
    """A directory with a potential of matgl with random weights, large enough to give forces of some eV/angstrom."""
    pytest.importorskip("matgl", reason="matgl is not installed")
    import torch
    from matgl import models
    from matgl.apps.pes import Potential

    torch.manual_seed(0)
    network = getattr(models, architecture)(element_types=METALS, is_intensive=False, units=16)
    Potential(network, data_std=1000.0, element_refs=[-1.0, -2.0, -3.0, -4.0]).save(folder / architecture)
    return folder / architecture


@pytest.fixture(scope="session")
def get_potential(tmp_path_factory):
    """get_potential(name): chgnet, emt, orb, tensornet or m3gnet, each loaded once."""

    @functools.cache
    def get(name: str):
        folder = tmp_path_factory.mktemp(name)
        if name == "chgnet":
            pytest.importorskip("chgnet", reason="chgnet is not installed")
            return load_potential("chgnet")
        if name == "orb":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return load_potential(f"orb:{ORB}:{orb_weights(folder)}")
        if name in ("tensornet", "m3gnet"):
            architecture = {"tensornet": "TensorNet", "m3gnet": "M3GNet"}[name]
            return load_potential(f"matgl:{matgl_directory(folder, architecture)}")
        return load_potential("ase:ase.calculators.emt:EMT")

    return get


@pytest.fixture(scope="session")
def alloys() -> list:
    """Crystals of 1 to 8 atoms of metals that every potential here knows, mostly without symmetry."""
    from pymatgen.core import Lattice, Structure

    rng = np.random.default_rng(1)
    fcc = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    crystals = []
    for species in (["Cu", "Au", "Cu", "Ag"], ["Al"] * 4, ["Au", "Ag", "Al", "Cu"]):
        lattice = Lattice.from_parameters(*rng.uniform(3.7, 4.1, 3), *rng.uniform(85, 95, 3))
        crystals.append(Structure(lattice, species, fcc + rng.normal(0, 0.02, (4, 3))))
    crystals.insert(1, Structure(Lattice.rhombohedral(2.9, 60), ["Ag"], [[0.1, 0.2, 0.3]]))
    crystals.insert(0, crystals[0] * (2, 1, 1))
    return crystals
