"""Potentials of matgl 4 (TensorNet, M3GNet, CHGNet, SO3Net), from its models on the hub or from a directory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfx.core.elements import SYMBOLS
from cfx.errors import CheckpointError, DependencyError, UsageError
from cfx.potentials.base import check_device
from cfx.potentials.batching import BatchedPotential, Output
from cfx.potentials.matgl_files import FORM, load_files, model_name

if TYPE_CHECKING:
    from pymatgen.core import Structure


def load_matgl(text: str, scale: str, device: str) -> BatchedPotential:
    """A potential of matgl.

    Args:
        text: a name or a directory.
        scale: of its energies.
        device: see `load_potential`.

    Raises:
        UsageError, DependencyError, CheckpointError, NetworkError: see `load_potential`.
    """
    if not text:
        raise UsageError("matgl has many potentials", FORM)
    try:
        import matgl
        from matgl.apps.pes import Potential
    except ImportError as error:
        raise DependencyError(f"matgl cannot be imported: {error}", "pip install 'cfx-crystal[matgl]'") from error
    check_device(device)
    loaded = load_files(text)
    if not isinstance(loaded, Potential):
        kind = type(loaded).__name__
        raise CheckpointError(f"{text} is a {kind} that predicts a property, and no potential", FORM)
    if getattr(loaded.model, "include_state", False) or loaded.calc_charge:
        raise CheckpointError(f"{text} wants a state or charges besides the crystal", "take another potential of matgl")
    name = f"matgl {matgl.__version__} ({model_name(text)})"
    return BatchedPotential(_Model(loaded.to(device).eval(), name, scale), device)


class _Model:
    """A potential of matgl as a `Model`."""

    def __init__(self, potential, name: str, scale: str):
        from matgl.ext.pymatgen import Structure2Graph

        self.name, self.scale = name, scale
        self.elements = frozenset(SYMBOLS.index(symbol) for symbol in potential.model.element_types)
        self._convert = Structure2Graph(potential.model.element_types, potential.model.cutoff).get_graph
        self._potential, self._energies = copy.copy(potential), copy.copy(potential)
        self._potential.calc_forces = self._potential.calc_stresses = True
        self._energies.calc_forces = self._energies.calc_stresses = False

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """See `Model.compute`. matgl's stress is dE/dstrain, as in ASE, but in GPa."""
        import torch
        from matgl.utils.constants import EV_PER_ANG3_TO_GPA
        from torch_geometric.data import Batch

        graphs, cells, _ = zip(*map(self._convert, structures), strict=True)
        potential = self._potential if forces else self._energies
        found = potential(Batch.from_data_list(list(graphs)), torch.cat([cell.reshape(1, 3, 3) for cell in cells]))
        energies, every, stress = (part.detach().cpu() for part in found[:3])
        if not forces:
            return [Output(float(energy), None, None) for energy in energies.reshape(-1)]
        each = torch.split(every, [len(structure) for structure in structures])
        stress = stress.reshape(-1, 3, 3).numpy() / EV_PER_ANG3_TO_GPA
        return [Output(float(e), f.numpy(), s) for e, f, s in zip(energies.reshape(-1), each, stress, strict=True)]
