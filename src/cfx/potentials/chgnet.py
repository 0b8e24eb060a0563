"""CHGNet: its weights come with the package."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfx.errors import DependencyError
from cfx.potentials.base import check_device
from cfx.potentials.batching import BatchedPotential, Output

if TYPE_CHECKING:
    from chgnet.model.model import CHGNet
    from pymatgen.core import Structure

EV_PER_CUBIC_ANGSTROM = 160.21766208
"""In GPa, with the digits of CHGNet."""

ELEMENTS = frozenset(range(1, 95)) - frozenset(range(84, 89))
"""The 89 elements of MPtrj. CHGNet has parameters for 94, but never saw Po, At, Rn, Fr and Ra."""


def load_chgnet(device: str) -> BatchedPotential:
    """CHGNet 0.3.0, trained on MPtrj; its energies have the MP2020 corrections in them.

    Raises:
        DependencyError: without the package or the device.
    """
    return BatchedPotential(_Model(*load_network(device)), device)


def load_network(device: str) -> tuple[CHGNet, str]:
    """The network of the package, and what it is called: the versions of the package and of its weights.

    Raises:
        DependencyError: without the package or the device.
    """
    try:
        import chgnet
        from chgnet.model.model import CHGNet
    except ImportError as error:
        raise DependencyError(f"CHGNet cannot be imported: {error}", "pip install 'cfx-crystal[chgnet]'") from error
    check_device(device)
    with contextlib.redirect_stdout(io.StringIO()):
        network = CHGNet.load(use_device=device, verbose=False)
    return network, f"chgnet {chgnet.__version__} ({network.version})"


class _Model:
    """CHGNet as a `Model`."""

    scale = "mp2020"
    elements = ELEMENTS

    def __init__(self, network, name: str):
        self.name = name
        self._network = network

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """See `Model.compute`."""
        import torch

        graphs = [self._network.graph_converter(unwritable(structure)) for structure in structures]
        with torch.set_grad_enabled(forces):
            found = self._network.predict_graph(graphs, task="efs" if forces else "e", batch_size=len(graphs))
        found = [found] if len(graphs) == 1 else found
        return [_output(one, len(structure)) for one, structure in zip(found, structures, strict=True)]


def _output(found: dict, atoms: int) -> Output:
    """eV per atom -> eV; GPa -> eV/angstrom^3. The sign of the stress is that of dE/dstrain, as in ASE."""
    stress = found["s"] / EV_PER_CUBIC_ANGSTROM if "s" in found else None
    return Output(float(found["e"]) * atoms, found.get("f"), stress)


def unwritable(structure: Structure) -> Structure:
    """A copy that cannot be written: CHGNet puts a crystal on which it fails into the working directory."""
    from pymatgen.core import Structure

    copy = Structure(structure.lattice, structure.species, structure.frac_coords)
    copy.to = lambda *_, **__: None
    return copy
