"""What CHGNet knows of the atoms of a crystal after each of its graph convolutions: the features of the bundled models.

CHGNet was trained on energies, forces, stresses and magnetic moments of 1.6 million crystals. Numbers about
neighbourhoods that it needs for these tell much of other properties too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfx.errors import CheckpointError, DependencyError
from cfx.potentials.batching import LARGEST_BATCH, Batches
from cfx.potentials.chgnet import ELEMENTS, load_network, unwritable

if TYPE_CHECKING:
    from pymatgen.core import Structure

VERSION = "0.3.0"
"""Of CHGNet's weights, which the bundled models learnt from."""

WIDTH = 258
"""Features of an atom: 64 after each of four convolutions, its magnetic moment (Bohr magnetons), its energy (eV)."""


@dataclass(frozen=True)
class CrystalFeatures:
    """What the bundled models see of a crystal; nothing of it changes with the choice of the cell.

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
        name: of the package and its weights.
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
        self._batches = Batches(LARGEST_BATCH[device.partition(":")[0]])
        self._seen: list = []
        for layer in (*network.atom_conv_layers[:-1], network.readout_norm):
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
