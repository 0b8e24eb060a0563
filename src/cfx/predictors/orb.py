"""Orb models: any that Orbital Materials publishes with forces and stress, by name or from a file of its weights."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfx.errors import CheckpointError, DependencyError, NetworkError, UsageError, install
from cfx.predictors.base import check_device, to_atoms
from cfx.predictors.batching import BatchedPotential, Output

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

DEFAULT = "orb-v3-conservative-inf-mpa"
"""Trained on MPtrj and Alexandria, whose hulls its energies fit. Those of `-omat` models come from other
pseudopotentials, and fit neither."""

ELEMENTS = frozenset(range(1, 95)) - frozenset(range(84, 89))
"""The 89 elements of MPtrj, Alexandria and OMat24."""

NOT_POTENTIALS = ("omol", "separate", "v1")
"""Parts of names of models for molecules, of dispersion corrections, and of models that are no longer published."""


def load_orb(text: str, device: str) -> BatchedPotential:
    """An Orb model; its energies are raw.

    Args:
        text: NAME, /path/to/weights, NAME:/path/to/weights, or "" for the default. Names may have - or _. A file that
            begins with the name of a published model, as they do where they are published, is taken for that model.
        device: see `load_potential`.

    Raises:
        UsageError, DependencyError, CheckpointError, NetworkError: see `load_potential`.
    """
    try:
        from orb_models.forcefield import pretrained
    except ImportError as error:
        raise DependencyError(f"Orb cannot be imported: {error}", install("orb")) from error
    name, path = _name_and_path(text, pretrained.ORB_PRETRAINED_MODELS)
    published = {
        known: function
        for known, function in pretrained.ORB_PRETRAINED_MODELS.items()
        if not any(part in known for part in NOT_POTENTIALS)
    }
    if name not in published:
        raise UsageError(f"there is no Orb potential {name}", f"there are: {', '.join(sorted(published))}")
    check_device(device)
    loaded = _load(published[name], path, device)
    label = f"orb-models {version('orb-models')} ({name}{f', {path.name}' if path else ''})"
    return BatchedPotential(_Model(loaded, label, device), device)


def _name_and_path(text: str, known: Iterable[str]) -> tuple[str, Path | None]:
    name, colon, path = text.partition(":")
    if not colon and ("/" in name or "\\" in name or Path(name).suffix):
        name, path = _named_by_file(Path(name), known), name
    return name.replace("_", "-") or DEFAULT, Path(path) if path else None


def _named_by_file(path: Path, known: Iterable[str]) -> str:
    """The longest known name that a file's begins with, as orb-v2 of orb-v2-20241011.ckpt; "" if there is none."""
    words = f"{path.stem.lower().replace('_', '-')}-"
    return max((name for name in known if words.startswith(f"{name}-")), key=len, default="")


def _load(function, path: Path | None, device: str):
    """What a function of orb_models makes of its weights, downloaded or from a file."""
    if path is not None and not path.is_file():
        raise CheckpointError(f"no such file of weights: {path}", "give orb:NAME, or the path of downloaded weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            weights = {} if path is None else {"weights_path": str(path)}
            return function(**weights, device=device, compile=False)
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"these are not weights of {function.__name__}: {reason}",
                "name the model that they belong to: orb:NAME:/path/to/weights",
            ) from error
        except OSError as error:
            if path is not None:
                raise CheckpointError(
                    f"{path} cannot be read: {error.strerror or error}", "give the path of downloaded weights"
                ) from error
            raise NetworkError(
                f"the weights of {function.__name__} cannot be downloaded", "give orb:NAME:/path/to/weights"
            ) from error


class _Model:
    """An Orb model as a `Model`.

    orb-models 0.5 returns a model, which holds the settings of its graphs; 0.7, for Python 3.12 and later, returns a
    model and an adapter that makes graphs.
    """

    scale = "raw"
    elements: frozenset[int] | None = ELEMENTS

    def __init__(self, loaded, name: str, device: str):
        self.name = name
        self._device = device
        self._network, self._adapter = loaded if isinstance(loaded, tuple) else (loaded, None)
        self._conservative = hasattr(self._network, "grad_forces_name")

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """See `Model.compute`. Conservative models compute forces in any case."""
        import torch

        batch = self._batch([to_atoms(structure) for structure in structures])
        with torch.set_grad_enabled(self._conservative):
            found = self._network.predict(batch)
        energies = found["energy"].detach().cpu().numpy().reshape(-1)
        if not forces:
            return [Output(float(energy), None, None) for energy in energies]
        prefix = "grad_" if self._conservative else ""
        every = found[f"{prefix}forces"].detach().cpu()
        each = torch.split(every, [len(structure) for structure in structures])
        stress = _matrices(found[f"{prefix}stress"].detach().cpu().numpy().reshape(len(structures), -1))
        return [Output(float(e), f.numpy(), s) for e, f, s in zip(energies, each, stress, strict=True)]

    def _batch(self, crystals: list[Atoms]):
        if self._adapter is None:
            import torch
            from orb_models.forcefield import atomic_system, base

            settings, device = self._network.system_config, torch.device(self._device)
            return base.batch_graphs(
                [atomic_system.ase_atoms_to_atom_graphs(atoms, settings, device=device) for atoms in crystals]
            )
        graphs = [self._adapter.from_ase_atoms(atoms, device=self._device) for atoms in crystals]
        return type(graphs[0]).batch(graphs)


def _matrices(stress: np.ndarray) -> np.ndarray:
    """Stresses [n, 6], xx yy zz yz xz xy, or [n, 9] -> [n, 3, 3]."""
    order = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    return stress[:, order] if stress.shape[1] == 6 else stress.reshape(-1, 3, 3)
