"""What a potential is, and how to get one by name: energies, forces and stresses of many crystals in one call."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cfx.errors import DependencyError, UsageError
from cfx.metrics.hull import SCALES

if TYPE_CHECKING:
    from pymatgen.core import Structure

NAMES = "chgnet; orb, orb:NAME or orb:/path/to/weights; matgl:NAME or matgl:/directory; ase:MODULE:FACTORY"


@dataclass(frozen=True)
class PotentialBatch:
    """What a potential says of n crystals, in the order in which they were given.

    Attributes:
        energy: of the whole cell, eV; float64 [n], NaN where not ok.
        forces: for each crystal float64 [atoms, 3], eV/angstrom; None where not ok or not asked for.
        stress: float64 [n, 3, 3], eV/angstrom^3, positive under tension, as in ASE; NaN where not ok or not asked for.
        ok: bool [n].
        reasons: why a crystal is not ok, on one line; "" where it is.
    """

    energy: np.ndarray
    forces: list[np.ndarray | None]
    stress: np.ndarray
    ok: np.ndarray
    reasons: list[str]


class Potential(Protocol):
    """An interatomic potential.

    Attributes:
        name: which model, and which version of it.
        scale: of its energies, one of `metrics.hull.SCALES`.
    """

    name: str
    scale: str

    def evaluate(self, structures: Sequence[Structure | None], forces: bool = True) -> PotentialBatch:
        """Energies of crystals, and forces and stresses too unless only energies are asked for.

        A crystal that cannot be evaluated gets a reason and leaves the others alone.
        """


def load_potential(text: str, device: str = "cpu") -> Potential:
    """The potential of a name.

    Args:
        text: `chgnet`; `orb`, `orb:NAME`, `orb:/path` or `orb:NAME:/path` (weights of that model in a file);
            `matgl:NAME` or `matgl:/directory`, with `:mp2020` after it if the energies are on that scale;
            `ase:MODULE:FACTORY`, likewise.
        device: `cpu`, `cuda` or `cuda:N`. A calculator of ASE decides for itself.

    Raises:
        UsageError: for a name or a device that does not exist.
        DependencyError: for a library or a device that is not there.
        CheckpointError: for weights that are not there or belong to something else.
        NetworkError: for weights that cannot be downloaded.
    """
    # Threads of torch that spin while they wait make it ten times slower where other programs run too. Only heard if
    # torch has not been imported yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    kind, _, rest = text.partition(":")
    loaders: dict[str, Callable[[str, str], Potential]] = {
        "chgnet": _chgnet,
        "orb": _orb,
        "matgl": _matgl,
        "ase": _ase,
    }
    if kind not in loaders:
        raise UsageError(f"no potential is called {text}", f"there are: {NAMES}")
    return loaders[kind](rest, device)


def _chgnet(rest: str, device: str) -> Potential:
    if rest:
        raise UsageError(f"chgnet takes no name of a model, but was given {rest}", "say: chgnet")
    from cfx.potentials.chgnet import load_chgnet

    return load_chgnet(device)


def _orb(rest: str, device: str) -> Potential:
    from cfx.potentials.orb import load_orb

    return load_orb(rest, device)


def _matgl(rest: str, device: str) -> Potential:
    from cfx.potentials.matgl import load_matgl

    return load_matgl(*split_scale(rest), device)


def _ase(rest: str, device: str) -> Potential:
    from cfx.potentials.ase import load_calculator

    return load_calculator(*split_scale(rest))


def split_scale(text: str) -> tuple[str, str]:
    """A name and the scale after its last colon; "raw" unless it says one."""
    name, _, last = text.rpartition(":")
    return (name, last) if last in SCALES else (text, "raw")


OTHER_METHODS = {
    "omat": "of OMat24's pseudopotentials, which differ from Materials Project's and Alexandria's",
    "d3": "with a correction for dispersion",
    "r2scan": "of the r2SCAN functional",
    "matpes": "of MatPES, which has no Hubbard U and its own pseudopotentials",
}
"""Parts of names of models whose energies are not those of the PBE calculations that hulls are made of."""


def other_method(name: str) -> str | None:
    """What sets the energies of a potential apart from those of a PBE hull, as far as its name says."""
    return next((what for part, what in OTHER_METHODS.items() if re.search(rf"\b{part}", name.lower())), None)


def torch_devices() -> list[str]:
    """Names of the devices that torch has."""
    import torch

    return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))]


def check_device(device: str) -> None:
    """Makes sure that torch has a device.

    Raises:
        UsageError: if it is neither cpu nor cuda.
        DependencyError: if it is not there.
    """
    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not (number.isdecimal() or device == "cuda")):
        raise UsageError(f"no device is called {device}", "there are: cpu, cuda, cuda:N")
    if kind == "cuda":
        import torch

        if int(number or 0) >= torch.cuda.device_count():
            raise DependencyError(
                f"there is no device {device} here for torch", "take cpu, or install a torch that was built for CUDA"
            )
