"""Crystals as a model drew them: with their log-probabilities, to be written to a file and looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.core.crystal import CrystalBatch, concatenate, empty_batch
from cfx.core.elements import SYMBOLS, formula
from cfx.core.lattice import is_physical
from cfx.core.likelihood import LogProb
from cfx.errors import DataError
from cfx.io.files import sole_writer
from cfx.io.formats import OutputRecord
from cfx.io.outputs import GrowingOutput, check_output
from cfx.report import viewer_cell
from cfx.reporter import counted
from cfx.sampling.decode import Drawn

GROUPS_SHOWN = 3
"""Space groups that the text of a sample names."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Sample(CrystalBatch):
    """B crystals that a model drew, a `CrystalBatch` with what is known of the draws; a pytree.

    Attributes:
        log_prob: published log-probability, nats.
        policy_log_prob: of the draw as it was made, under constraints, temperature and top-p, nats.
        model: name of the model.
    """

    log_prob: LogProb
    policy_log_prob: LogProb
    model: str = field(metadata={"static": True})

    def __repr__(self) -> str:
        groups = Counter(np.asarray(self.space_group).tolist()).most_common()
        named = ", ".join(f"{group} ({count})" for group, count in groups[:GROUPS_SHOWN])
        more = f" and {len(groups) - GROUPS_SHOWN} others" if len(groups) > GROUPS_SHOWN else ""
        mean = f", {np.mean(np.asarray(self.log_prob.total, float)):.1f} nats on average" if len(self) else ""
        return f"Sample({counted(len(self), 'crystal')} by {self.model}, space groups {named}{more}{mean})"

    def _repr_html_(self) -> str:
        fine = np.flatnonzero(is_physical(np.asarray(self.lattice)))
        names = [self._name(int(row)) for row in fine]
        return viewer_cell(list(zip(names, self[fine].to_structures(), strict=True)), repr(self)[7:-1])

    def _name(self, row: int) -> str:
        """Of a crystal, as in a file."""
        return f"{formula(self.composition(row))}_{row}"

    def formula(self, row: int) -> str:
        """The reduced formula of a crystal, as pymatgen writes it."""
        from pymatgen.core import Composition

        return Composition({SYMBOLS[number]: count for number, count in self.composition(row).items()}).reduced_formula

    def rows(self) -> list[dict[str, Any]]:
        """What is known of each crystal: name, formula, space group, sites, atoms, log-probabilities in nats."""
        num_sites, num_atoms, rows = self.num_sites, self.num_atoms, []
        for row in range(len(self)):
            known = {
                "name": self._name(row),
                "formula": self.formula(row),
                "space_group": int(self.space_group[row]),
                "num_sites": int(num_sites[row]),
                "num_atoms": int(num_atoms[row]),
            }
            rows.append(known | self._log_probs(row))
        return rows

    @property
    def table(self) -> Any:
        """`rows` as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.rows())

    def write(self, path: str | Path) -> Path:
        """Writes the crystals with their log-probabilities, as `cfx sample -o` does; a file that is there is replaced.

        Args:
            path: a .cif, .zip, .extxyz, .jsonl or .csv file, or a directory for POSCAR files.

        Raises:
            UsageError: for another suffix.
            DataError: if there are no crystals, or a lattice closes no cell, which the format cannot hold.
            OutputError: if it cannot be written.
        """
        path = Path(path)
        if not len(self):
            raise DataError("there are no crystals to write")
        with sole_writer(path):
            check_output(path, force=True, keep_invalid=not is_physical(np.asarray(self.lattice)).all())
            target = GrowingOutput(path, {})
            target.begin()
            target.write([self._record(row) for row in range(len(self))], {})
            target.close()
        return path

    def _record(self, row: int) -> OutputRecord:
        """A crystal on its way out, with what is known of it."""
        return OutputRecord(row, self[row : row + 1].numpy(), {"model": self.model, **self._log_probs(row)})

    def _log_probs(self, row: int) -> dict[str, float]:
        """Log-probabilities of a crystal by name, nats."""
        return {
            "log_prob": float(self.log_prob.total[row]),
            **{f"log_prob_{part}": float(value[row]) for part, value in self.log_prob.parts().items()},
            "policy_log_prob": float(self.policy_log_prob.total[row]),
        }


def as_sample(drawn: Sequence[Drawn], num_slots: int, model: str) -> Sample:
    """Draws one after another (numpy); without any, no crystals in that many slots."""
    if not drawn:
        none = np.zeros(0, np.float32)
        nothing, unlikely = empty_batch(num_slots), LogProb(none, none, none, none)
        return Sample(**vars(nothing), log_prob=unlikely, policy_log_prob=unlikely, model=model)
    parts = [
        Sample(**vars(one.crystals), log_prob=one.log_prob, policy_log_prob=one.policy_log_prob, model=model)
        for one in drawn
    ]
    return concatenate(parts)
