"""Property models of matgl (MEGNet, TensorNet, ...), by name or from a directory, held against known crystals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.errors import CheckpointError, DependencyError
from cfx.potentials.base import check_device
from cfx.potentials.batching import LARGEST_BATCH, Batches, explain
from cfx.potentials.matgl_files import FORM, load_files, model_name
from cfx.potentials.screen import unfit
from cfx.properties.base import UNITS, PropertyBatch
from cfx.properties.canary import prove
from cfx.properties.known import CANARIES

if TYPE_CHECKING:
    from pymatgen.core import Structure

VOIGT = 6
"""Numbers that a symmetric tensor has: xx, yy, zz, and then the others."""

PBE = 0
"""Label of the functional in models of several fidelities (PBE, GLLB-SC, HSE, SCAN)."""

FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What networks raise on graphs, batches or states that they were not made for."""

SAME = 1e-3
"""Relative difference that the order of sums in a batch may make."""


def load_matgl_property(text: str, property: str, device: str) -> MatglProperty:
    """A property model of matgl that predicts what is known.

    Args:
        text: a published name, as MEGNet-MP-2019.4.1-BandGap-mfi, a name of the catalog, or a directory.
        property: that it predicts. A dielectric constant is the mean of the first three of six components of a tensor
            in Voigt's order, or the only number that the model gives.
        device: see `load_property`.

    Raises:
        DependencyError, UsageError: without matgl or the device.
        CheckpointError: for files that are no such model, or one that misses known crystals.
        NetworkError: if it cannot be fetched.
    """
    try:
        import matgl
        from matgl.apps.pes import Potential
    except ImportError as error:
        raise DependencyError(f"matgl cannot be imported: {error}", "pip install 'cfx-crystal[matgl]'") from error
    check_device(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that versions differ; what they predict is looked at below
        network = load_files(text)
    if isinstance(network, Potential):
        raise CheckpointError(f"{text} is a potential, and predicts no {property}", FORM)
    model = MatglProperty(network, f"matgl {matgl.__version__} ({model_name(text)})", property, device)
    if property not in CANARIES:
        warnings.warn(f"no crystals are known that would prove a model of {property}: {text} is trusted", stacklevel=2)
    prove(model)
    return model


class MatglProperty:
    """A network of matgl as a `PropertyModel`.

    Attributes:
        name, property, unit: see `PropertyModel`.
    """

    def __init__(self, network, name: str, property: str, device: str):
        """Looks at what the network gives for a few crystals.

        Raises:
            CheckpointError: if these are not the numbers of the property.
        """
        from matgl.ext.pymatgen import Structure2Graph

        inner = getattr(network, "model", network)
        self.name, self.property, self.unit = name, property, UNITS.get(property, "")
        self._network, self._device = network.to(device).eval(), device
        self._batches = Batches(LARGEST_BATCH[device.partition(":")[0]])
        self._elements = frozenset(SYMBOLS.index(symbol) for symbol in inner.element_types)
        self._convert = Structure2Graph(inner.element_types, inner.cutoff).get_graph
        self._has_labels = getattr(getattr(inner, "embedding", None), "ntypes_state", None) is not None
        known = [crystal.structure() for crystals in CANARIES.values() for crystal in crystals]
        known = [structure for structure in known if not unfit(structure, self._elements)]
        if not known:
            raise CheckpointError(f"{name} knows the elements of no crystal that would prove it", FORM)
        try:
            alone = np.concatenate([self._run([structure], together=False) for structure in known])
        except FAULTS as error:
            raise CheckpointError(f"{name} cannot be used: {explain(error)}", FORM) from error
        self._weights = _weights(alone.shape[1], name, property)
        self._together = self._batches_well(known, alone)

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """See `PropertyModel`. The network knows neither its uncertainty nor what it was trained on."""
        count = len(structures)
        results = self._batches.run(self._compute, structures, self._elements)
        reasons = [one if isinstance(one, str) else "" for one in results]
        value = np.array([np.nan if isinstance(one, str) else one for one in results], float)
        ok = np.array([not reason for reason in reasons], bool)
        return PropertyBatch(value, np.full(count, np.nan), np.zeros(count, bool), ok, reasons)

    def _compute(self, structures: list[Structure]) -> list[float]:
        if self._together:
            found = self._run(structures, together=True)
        else:
            found = np.concatenate([self._run([structure], together=False) for structure in structures])
        if not np.isfinite(found).all():
            raise ValueError("a value that is not finite")
        return (found @ self._weights).tolist()

    def _run(self, structures: Sequence[Structure], together: bool) -> np.ndarray:
        """All that the network gives for crystals [n, outputs]."""
        import torch
        from torch_geometric.data import Batch

        graphs = [self._graph(structure) for structure in structures]
        graph = Batch.from_data_list(graphs) if together else graphs[0]
        with torch.no_grad():
            found = self._network(g=graph.to(self._device), state_attr=self._state(len(graphs) if together else None))
        return found.detach().cpu().double().numpy().reshape(len(graphs), -1)

    def _graph(self, structure: Structure):
        graph, cell, _ = self._convert(structure)
        graph.pos, graph.pbc_offshift = graph.frac_coords @ cell[0], graph.pbc_offset @ cell[0]
        return graph

    def _state(self, count: int | None):
        """Of so many crystals in a batch, or of one alone: the label of PBE, or the two zeros that stand for none."""
        import torch

        if self._has_labels:
            return torch.full((count or 1,), PBE, device=self._device)
        return torch.zeros((2,) if count is None else (count, 2), device=self._device)

    def _batches_well(self, structures: list[Structure], alone: np.ndarray) -> bool:
        """Whether the network gives for crystals in a batch what it gives for each of them alone."""
        try:
            found = self._run(structures, together=True)
        except FAULTS:
            return False
        return found.shape == alone.shape and np.allclose(found, alone, rtol=SAME, atol=SAME)


def _weights(outputs: int, name: str, property: str) -> np.ndarray:
    """What makes the property of a network's numbers [outputs]."""
    if outputs == 1:
        return np.ones(1)
    if outputs == VOIGT and property == "dielectric":
        return np.array([1, 1, 1, 0, 0, 0]) / 3
    raise CheckpointError(f"{name} predicts {outputs} numbers, and no {property}", FORM)
