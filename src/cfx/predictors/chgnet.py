"""CHGNet as a potential, and its features of atoms as inputs of other models; its weights come with the package.

CHGNet was trained on energies, forces, stresses and magnetic moments of 1.6 million crystals. What it computes of
neighbourhoods on the way to these tells much of other properties too.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfx.errors import CheckpointError, DependencyError, install
from cfx.predictors.base import check_device
from cfx.predictors.batching import BatchedPotential, Batches, Output

if TYPE_CHECKING:
    from chgnet.model.model import CHGNet
    from pymatgen.core import Structure

ELEMENTS = frozenset(range(1, 95)) - frozenset(range(84, 89))
"""The 89 elements of MPtrj. CHGNet has parameters for 94, but never saw Po, At, Rn, Fr and Ra."""

VERSION = "0.3.0"
"""Version of CHGNet's weights that the bundled models were trained on."""

WIDTH = 258
"""Features of an atom: 64 after each of four convolutions, its magnetic moment (Bohr magnetons), its energy (eV)."""


def load_chgnet(device: str) -> BatchedPotential:
    """CHGNet 0.3.0, trained on MPtrj; its energies have the MP2020 corrections in them.

    Raises:
        DependencyError: without the package or the device.
    """
    return BatchedPotential(_Model(*load_network(device), device), device)


def load_network(device: str) -> tuple[CHGNet, str]:
    """The network of the package, and what it is called: the versions of the package and of its weights.

    Raises:
        DependencyError: without the package or the device.
    """
    try:
        import chgnet
        from chgnet.model.model import CHGNet
    except ImportError as error:
        raise DependencyError(f"CHGNet cannot be imported: {error}", install("chgnet")) from error
    check_device(device)
    with contextlib.redirect_stdout(io.StringIO()):
        network = CHGNet.load(use_device=device, verbose=False)
    return network, f"chgnet {chgnet.__version__} ({network.version})"


class _Model:
    """CHGNet as a `Model`."""

    scale = "mp2020"
    elements: frozenset[int] | None = ELEMENTS

    def __init__(self, network: CHGNet, name: str, device: str):
        self.name = name
        self._network, self._device = network.eval(), device

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """See `Model.compute`."""
        import torch

        graphs = [self._network.graph_converter(unwritable(one)).to(self._device) for one in structures]
        with torch.set_grad_enabled(forces):
            found = self._network(graphs, task="e")
            energies = found["e"].view(-1) * found["atoms_per_graph"]
        if not forces:
            return [Output(energy, None, None) for energy in energies.tolist()]
        # One pass backwards for forces and stresses, without the graph of second derivatives that training needs.
        inputs = [one.atom_frac_coord for one in graphs] + [one.lattice for one in graphs]
        slopes = [slope.cpu().numpy() for slope in torch.autograd.grad(energies.sum(), inputs)]
        by_coords, by_cell = slopes[: len(graphs)], slopes[len(graphs) :]
        return [_output(*one) for one in zip(structures, energies.tolist(), by_coords, by_cell, strict=True)]


def _output(structure: Structure, energy: float, by_coords: np.ndarray, by_cell: np.ndarray) -> Output:
    """Forces and stress from the derivatives of the energy by fractional coordinates [n, 3] and row vectors [3, 3].

    The sign of the stress is that of dE/dstrain, as in ASE.
    """
    cell = structure.lattice.matrix
    return Output(energy, -by_coords @ np.linalg.inv(cell).T, cell.T @ by_cell / structure.volume)


def unwritable(structure: Structure) -> Structure:
    """A copy that cannot be written: CHGNet puts a crystal on which it fails into the working directory."""
    from pymatgen.core import Structure

    copy = Structure(structure.lattice, structure.species, structure.frac_coords)
    copy.to = lambda *_, **__: ""  # pyright: ignore[reportAttributeAccessIssue] - a method, overridden on purpose
    return copy


@dataclass(frozen=True)
class CrystalFeatures:
    """What the bundled models see of a crystal; none of it depends on the choice of the cell.

    Attributes:
        atoms: float32 [atoms, WIDTH].
        numbers: atomic numbers, int [atoms].
        volume: per atom, angstrom^3.
        energy: per atom, eV, with the corrections of Materials Project's 2020 scheme.
    """

    atoms: np.ndarray
    numbers: np.ndarray
    volume: float
    energy: float


class FeatureExtractor:
    """CHGNet, up to its features.

    Attributes:
        name: versions of the package and of its weights.
    """

    def __init__(self, device: str = "cpu"):
        """Loads CHGNet.

        Raises:
            DependencyError: without the package or the device.
            CheckpointError: if the package brings other weights.
        """
        try:
            network, self.name = load_network(device)
        except DependencyError as error:
            raise DependencyError(f"the bundled property models need CHGNet: {error.message}", error.hint) from error
        if network.version != VERSION:
            raise CheckpointError(
                f"CHGNet's weights are {network.version}, the bundled property models need {VERSION}",
                "pip install 'chgnet>=0.4,<0.5'",
            )
        self._network, self._device = network.eval(), device
        self._batches = Batches(device)
        self._seen: list = []
        for layer in (*network.atom_conv_layers[:-1], network.readout_norm):
            assert layer is not None  # the published network normalises its readout
            layer.register_forward_hook(lambda _layer, _inputs, output: self._seen.append(output))

    def evaluate(self, structures: Sequence[Structure | None]) -> list[CrystalFeatures | str]:
        """Features of each crystal, or why it has none, in the order of the crystals."""
        return self._batches.run(self._compute, structures, ELEMENTS)

    def _compute(self, structures: list[Structure]) -> list[CrystalFeatures | str]:
        import torch

        graphs = [self._network.graph_converter(unwritable(one)).to(self._device) for one in structures]
        self._seen.clear()
        with torch.no_grad():
            found = self._network(graphs, task="em", return_site_energies=True)
            scalars = torch.stack(
                [torch.cat([one.view(-1) for one in found[key]]) for key in ("m", "site_energies")], 1
            )
            atoms = torch.cat([*self._seen, scalars], 1).cpu().numpy()
        self._seen.clear()
        parts = np.split(atoms, np.cumsum([len(structure) for structure in structures])[:-1])
        return [_crystal(*one) for one in zip(structures, parts, found["e"].tolist(), strict=True)]


def _crystal(structure: Structure, atoms: np.ndarray, energy: float) -> CrystalFeatures | str:
    if atoms.shape != (len(structure), WIDTH):
        return f"the model gives features of shape {atoms.shape}"
    if not (np.isfinite(atoms).all() and np.isfinite(energy)):
        return "the model gives features that are not finite"
    numbers = np.array([site.specie.Z for site in structure])
    return CrystalFeatures(atoms, numbers, structure.volume / len(structure), energy)
