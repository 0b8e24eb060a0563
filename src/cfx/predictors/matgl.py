"""Potentials and property models of matgl 4, from the hub or from a directory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.errors import CheckpointError, DependencyError, UsageError, install
from cfx.predictors.base import UNITS, UNNAMED, PropertyBatch, check_device
from cfx.predictors.batching import BatchedPotential, Batches, Output, explain, reasons_of, why_unsuitable
from cfx.predictors.matgl_files import AS_IT_IS, FORM, Convention, ModelFiles, conventions_of, find_files, run_by
from cfx.predictors.self_check import KNOWN_PROPERTIES, check_property

if TYPE_CHECKING:
    from pymatgen.core import Structure

VOIGT = 6
"""Components of a symmetric tensor: xx, yy, zz, and then the others."""

PBE = 0
"""Label of the functional PBE in models of several fidelities (PBE, GLLB-SC, HSE, SCAN)."""

FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What networks raise on graphs, batches or states that they were not made for."""

SAME = 1e-3
"""Relative difference that the order of sums in a batch may make to a prediction."""

ALIKE = 0.05
"""Difference between largest misses of known crystals, as a share of the tolerance, that tells nothing."""


def load_matgl(text: str, scale: str, device: str) -> BatchedPotential:
    """A potential of matgl.

    Args:
        text: a name or a directory.
        scale: scale of its energies.
        device: see `load_potential`.

    Raises:
        UsageError, DependencyError, CheckpointError, NetworkError: see `load_potential`.
    """
    if not text:
        raise UsageError("matgl has many potentials; name one", FORM)
    files = _find(text, device)
    loaded = files.network()
    if not _is_potential(loaded):
        kind = type(loaded).__name__
        raise CheckpointError(f"{text} is a {kind} that predicts a property, not a potential", FORM)
    if getattr(loaded.model, "include_state", False) or loaded.calc_charge:
        raise CheckpointError(
            f"{text} needs a state or charges in addition to the crystal", "use another potential from matgl"
        )
    return BatchedPotential(_Model(loaded.to(device).eval(), _label(files), scale), device)


def load_matgl_property(text: str, property: str, device: str) -> MatglProperty:
    """A property model of matgl that passes the self-check of its property.

    Args:
        text: a published name, as MEGNet-BandGap-mfi-MP-2019.4.1, a name of the catalog, or a directory.
        property: that it predicts; "property", where nobody says, is what the file is published as. A dielectric
            constant is the mean of the first three of six components of a tensor in Voigt's order, or the only number
            that the model gives.
        device: see `load_property`.

    Raises:
        DependencyError, UsageError: without matgl or the device.
        CheckpointError: for files that are not such a model, one that misses known crystals, or one that nothing shows
            how to read.
        NetworkError: if it cannot be fetched.
    """
    files = _find(text, device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # that versions differ; the self-check looks at what the model predicts
        network = files.network()
    published = files.published()
    if published is not None and property == UNNAMED:
        property = published.property
    if _is_potential(network):
        raise CheckpointError(f"{text} is a potential and does not predict {property}", FORM)
    if published is not None and property != published.property:
        raise CheckpointError(
            f"{text} predicts {published.property}, not {property}", "leave `property_name` out, or name another model"
        )
    trained = _Trained(files, network, property, device)
    if published is not None:
        return trained.fittest([published.convention])
    if property in KNOWN_PROPERTIES:
        return trained.fittest(conventions_of(network))
    for warning in caught:
        warnings.warn(str(warning.message), stacklevel=2)
    return trained.unproven()


def _find(text: str, device: str) -> ModelFiles:
    """The files of a name or a directory, if there is a matgl to read them and a device to run on."""
    try:
        import matgl  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"matgl cannot be imported: {error}", install("matgl")) from error
    check_device(device)
    return find_files(text)


def _is_potential(network: Any) -> bool:
    from matgl.apps.pes import Potential

    return isinstance(network, Potential)


def _label(files: ModelFiles, convention: Convention = AS_IT_IS) -> str:
    """Name and version of a model, and by which convention it is run, unless that is the installed matgl's."""
    import matgl

    return f"matgl {matgl.__version__} ({', '.join(part for part in (files.name, str(convention)) if part)})"


class _Trained(NamedTuple):
    """A network that may have been trained by one convention or another, for a property."""

    files: ModelFiles
    network: Any
    property: str
    device: str

    def run_by(self, convention: Convention) -> MatglProperty:
        """The network as a model."""
        return MatglProperty(
            run_by(self.network, convention), _label(self.files, convention), self.property, self.device
        )

    def fittest(self, conventions: Sequence[Convention]) -> MatglProperty:
        """The model that suits the known crystals best; with a warning if another does so as well.

        Raises:
            CheckpointError: what is wrong with the first, if none of them is right.
        """
        right, errors = [], []
        for convention in conventions:
            try:
                model = self.run_by(convention)
                right.append((check_property(model), model))
            except CheckpointError as error:
                errors.append(error)
        if not right:
            raise errors[0]
        (miss, model), *others = sorted(right, key=lambda one: one[0])
        if others and others[0][0] < miss + ALIKE:
            warnings.warn(f"known crystals suit {model.name} and {others[0][1].name}; the first is used", stacklevel=3)
        return model

    def unproven(self) -> MatglProperty:
        """The model as the installed matgl runs it, with a warning that says what another convention would change.

        Raises:
            CheckpointError: if an earlier version of matgl wrote the files.
        """
        if self.files.is_of_earlier_version():
            raise CheckpointError(
                f"{self.files.text} was written by another version of matgl, and no crystals are known that would show "
                f"how to run a model of {self.property}",
                f"say what it predicts (`property_name`), if it is one of: {', '.join(KNOWN_PROPERTIES)}",
            )
        model, *others = [self.run_by(convention) for convention in conventions_of(self.network)]
        warnings.warn(
            f"no crystals are known that would prove a model of {self.property}: {self.files.text} is trusted"
            + (f", but may be of an earlier matgl, as which {_difference(model, others[0])}" if others else ""),
            stacklevel=3,
        )
        return model


def _difference(model: MatglProperty, other: MatglProperty) -> str:
    """Where another model differs most among known crystals."""
    crystals = [crystal for crystals in KNOWN_PROPERTIES.values() for crystal in crystals]
    values = [one.evaluate([crystal.structure() for crystal in crystals]).value for one in (model, other)]
    i = int(np.nanargmax(np.abs(values[1] - values[0])))
    return f"it would predict {values[1][i]:.3g} instead of {values[0][i]:.3g} for {crystals[i].formula}"


class _Model:
    """A potential of matgl as a `Model`."""

    elements: frozenset[int] | None

    def __init__(self, potential, name: str, scale: str):
        self.name, self.scale = name, scale
        self.elements, self._convert = _elements_and_converter(potential.model)
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


class MatglProperty:
    """A network of matgl as a `PropertyModel`.

    Attributes:
        name, property, unit: see `PropertyModel`.
    """

    def __init__(self, network, name: str, property: str, device: str):
        """Tries the network on a few crystals, alone and in a batch.

        Raises:
            CheckpointError: if it fails, or its numbers cannot be those of the property.
        """
        inner = getattr(network, "model", network)
        self.name, self.property, self.unit = name, property, UNITS.get(property, "")
        self._network, self._device = network.to(device).eval(), device
        self._batches = Batches(device)
        self._elements, self._convert = _elements_and_converter(inner)
        self._has_labels = getattr(getattr(inner, "embedding", None), "ntypes_state", None) is not None
        known = [crystal.structure() for crystals in KNOWN_PROPERTIES.values() for crystal in crystals]
        known = [structure for structure in known if not why_unsuitable(structure, self._elements)]
        if not known:
            raise CheckpointError(f"{name} does not know the elements of any crystal that would test it", FORM)
        try:
            alone = np.concatenate([self._run([structure], together=False) for structure in known])
        except FAULTS as error:
            raise CheckpointError(f"{name} cannot be used: {explain(error)}", FORM) from error
        self._weights = _weights(alone.shape[1], name, property)
        self._together = self._batches_well(known, alone)

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """See `PropertyModel`. The network knows neither its uncertainty nor what it was trained on."""
        results = self._batches.run(self._compute, structures, self._elements)
        value = np.array([np.nan if isinstance(one, str) else one for one in results], float)
        unknown, outside = np.full(len(value), np.nan), np.zeros(len(value), bool)
        return PropertyBatch(value=value, std=unknown, outside=outside, reasons=reasons_of(results))

    def _compute(self, structures: list[Structure]) -> list[float]:
        if self._together:
            found = self._run(structures, together=True)
        else:
            found = np.concatenate([self._run([structure], together=False) for structure in structures])
        if not np.isfinite(found).all():
            raise ValueError("a value that is not finite")
        return (found @ self._weights).tolist()

    def _run(self, structures: Sequence[Structure], together: bool) -> np.ndarray:
        """Outputs of the network for crystals, [n, outputs]."""
        import torch
        from torch_geometric.data import Batch

        graphs = [self._graph(structure) for structure in structures]
        graph: Any = Batch.from_data_list(graphs) if together else graphs[0]
        with torch.no_grad():
            found = self._network(g=graph.to(self._device), state_attr=self._state(len(graphs) if together else None))
        return found.detach().cpu().double().numpy().reshape(len(graphs), -1)

    def _graph(self, structure: Structure) -> Any:
        graph, cell, _ = self._convert(structure)
        graph.pos, graph.pbc_offshift = graph.frac_coords @ cell[0], graph.pbc_offset @ cell[0]
        return graph

    def _state(self, count: int | None):
        """State label of crystals in a batch, or of one alone: that of PBE, or the two zeros that stand for none."""
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
    raise CheckpointError(f"{name} predicts {outputs} numbers, not a {property}", FORM)


def _elements_and_converter(network) -> tuple[frozenset[int], Callable]:
    """Atomic numbers that a network knows, and what makes graphs of crystals for it."""
    from matgl.ext.pymatgen import Structure2Graph

    elements = frozenset(SYMBOLS.index(symbol) for symbol in network.element_types)
    return elements, Structure2Graph(network.element_types, network.cutoff).get_graph
