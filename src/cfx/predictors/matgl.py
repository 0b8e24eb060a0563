"""Potentials and property models of matgl 4, from the hub or from a directory.

The files hold names of classes, and arguments to make them with. matgl imports and calls whatever they name, so they
are checked before. Arrays and arguments come through torch's restricted unpickler.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.catalog import POTENTIAL, REWARD, HubAddress, find, parse_address
from cfx.core.elements import SYMBOLS
from cfx.errors import CheckpointError, DependencyError, NetworkError, UnsafeError, UsageError
from cfx.fetch.files import fetch_file
from cfx.predictors.base import UNITS, PropertyBatch, check_device
from cfx.predictors.batching import BatchedPotential, Batches, Output, explain, reasons_of, why_unsuitable
from cfx.predictors.self_check import KNOWN_PROPERTIES, check_property
from cfx.reporter import Silent

if TYPE_CHECKING:
    from pymatgen.core import Structure

FILES = ("model.json", "model.pt", "state.pt")
OWNER = "materialyze"
"""Owner of the published models on the hub."""

FORM = "say matgl:NAME, a name of huggingface.co/materialyze, or matgl:/directory with model.json"
HOMES = re.compile(r"matgl\.(models(\._\w+)?|apps\.pes|apps\._pes\w*)")
"""Modules whose classes a file may name."""

VOIGT = 6
"""Components of a symmetric tensor: xx, yy, zz, and then the others."""

PBE = 0
"""Label of the functional PBE in models of several fidelities (PBE, GLLB-SC, HSE, SCAN)."""

FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What networks raise on graphs, batches or states that they were not made for."""

SAME = 1e-3
"""Relative difference that the order of sums in a batch may make to a prediction."""


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
    loaded, name, is_potential = _load(text, device)
    if not is_potential:
        kind = type(loaded).__name__
        raise CheckpointError(f"{text} is a {kind} that predicts a property, not a potential", FORM)
    if getattr(loaded.model, "include_state", False) or loaded.calc_charge:
        raise CheckpointError(
            f"{text} needs a state or charges in addition to the crystal", "use another potential from matgl"
        )
    return BatchedPotential(_Model(loaded.to(device).eval(), name, scale), device)


def load_matgl_property(text: str, property: str, device: str) -> MatglProperty:
    """A property model of matgl that passes the self-check of its property.

    Args:
        text: a published name, as MEGNet-MP-2019.4.1-BandGap-mfi, a name of the catalog, or a directory.
        property: that it predicts. A dielectric constant is the mean of the first three of six components of a tensor
            in Voigt's order, or the only number that the model gives.
        device: see `load_property`.

    Raises:
        DependencyError, UsageError: without matgl or the device.
        CheckpointError: for files that are not such a model, or one that misses known crystals.
        NetworkError: if it cannot be fetched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that versions differ; the self-check looks at what the model predicts
        network, name, is_potential = _load(text, device)
    if is_potential:
        raise CheckpointError(f"{text} is a potential and does not predict {property}", FORM)
    model = MatglProperty(network, name, property, device)
    if property not in KNOWN_PROPERTIES:
        warnings.warn(f"no crystals are known that would prove a model of {property}: {text} is trusted", stacklevel=2)
    check_property(model)
    return model


def _load(text: str, device: str) -> tuple[Any, str, bool]:
    """The network of a name or a directory, on the CPU; its name and version; and whether it is a potential."""
    try:
        import matgl
        from matgl.apps.pes import Potential
    except ImportError as error:
        raise DependencyError(f"matgl cannot be imported: {error}", "pip install 'cfx-crystal[matgl]'") from error
    check_device(device)
    network = load_files(text)
    return network, f"matgl {matgl.__version__} ({model_name(text)})", isinstance(network, Potential)


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


def load_files(text: str) -> Any:
    """The network of a name or a directory, on the CPU.

    Args:
        text: a directory; a name of the catalog; NAME or OWNER/NAME of the hub.

    Raises:
        CheckpointError: if the files are not there, damaged, or made by something else.
        UnsafeError: if they ask for anything but matgl's classes and numbers.
        NetworkError: if they have to be fetched, and cannot be.
    """
    import matgl

    _silence_warp()
    directory = _directory(text)
    with _known_globals():
        _check_classes(directory, text)
        try:
            return matgl.load_model(directory)
        except (ValueError, RuntimeError) as error:
            # matgl wraps whatever happened; the innermost error says it.
            while error.__cause__ is not None:
                error = error.__cause__
            raise _unreadable(text, error) from error


def model_name(text: str) -> str:
    """What a model is called: its directory, or its repository on the hub."""
    if (path := Path(text).expanduser()).exists():
        return path.name
    entry = find(text, REWARD, POTENTIAL)
    if entry is not None and isinstance(address := parse_address(entry.address), HubAddress):
        return address.repo.partition("/")[2]
    return text


def _silence_warp() -> None:
    """Keeps Warp, with which matgl finds neighbours if it is installed, from writing to stdout, where results go."""
    with contextlib.suppress(ImportError):
        import warp

        if hasattr(warp.config, "log_level"):
            warp.config.log_level = warp.LOG_WARNING
        else:
            warp.config.quiet = True


def _directory(text: str) -> Path:
    """Where the three files lie; they are fetched if they are published."""
    path = Path(text).expanduser()
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        if missing := [name for name in FILES if not (path / name).is_file()]:
            raise CheckpointError(f"there is no {missing[0]} in {text}", FORM)
        return path
    entry = find(text, REWARD, POTENTIAL)
    repo = text if "/" in text else f"{OWNER}/{text}"
    addresses = list(entry.files.values()) if entry is not None else [f"hf:{repo}/{name}" for name in FILES]
    try:
        paths = [fetch_file(address, Silent(), announce=False) for address in addresses]
    except NetworkError as error:
        raise NetworkError(f"matgl cannot find {text}: {error.message}", error.hint or FORM) from error
    return paths[0].parent if paths[0].is_file() else _only_model(paths[0], text)


def _only_model(folder: Path, text: str) -> Path:
    """Where in a folder there is a model."""
    places = [file.parent for file in sorted(folder.rglob(FILES[0]))]
    found = [place for place in places if all((place / name).is_file() for name in FILES)]
    if len(found) != 1:
        raise CheckpointError(f"{text} holds {len(found)} models of matgl, not one", FORM)
    return found[0]


@contextlib.contextmanager
def _known_globals() -> Iterator[None]:
    """Lets torch rebuild what property models keep besides arrays: how their targets were scaled."""
    import torch
    from matgl.data.transformer import LogTransformer, Normalizer

    scalar = np.float64(0).__reduce__()[0]  # numpy's private constructor of pickled scalars
    known = [Normalizer, LogTransformer, scalar, (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(known):
        yield


def _check_classes(directory: Path, text: str) -> None:
    """Makes sure that files name no classes but matgl's models."""
    import torch

    try:
        content = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        arguments = torch.load(directory / "model.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UnsafeError(f"{text} asks for {asked[1]}, which is not part of a model", FORM) from error
        raise _unreadable(text, error) from error
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise _unreadable(text, error) from error
    if not isinstance(content, dict) or "@module" not in content:
        raise CheckpointError(f"{text} is not a model of matgl", FORM)
    for module, name in (*_classes({key: content.get(key) for key in ("@module", "@class")}), *_classes(arguments)):
        if not _is_model(module, name):
            raise UnsafeError(f"{text} asks for {module}.{name}, which is not a model of matgl", FORM)


def _classes(content: Any) -> Iterator[tuple[str, str]]:
    """Classes that the content of a file names, at any depth."""
    if isinstance(content, dict):
        if "@module" in content:
            yield str(content["@module"]), str(content.get("@class"))
        for value in content.values():
            yield from _classes(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _classes(value)


def _is_model(module: str, name: str) -> bool:
    from matgl.utils.io import IOMixIn

    if not HOMES.fullmatch(module):
        return False
    public = "matgl.models" if module.startswith("matgl.models") else "matgl.apps.pes"
    found = getattr(importlib.import_module(public), name, None)
    return isinstance(found, type) and issubclass(found, IOMixIn)


def _unreadable(text: str, error: BaseException) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"matgl cannot load {text}: {reason}", FORM)
