"""The crystals of a fine-tuning run: crystals.jsonl, a line for each, and the best of them.

A resumed run reads from it what it had learnt of rewards, so that every reward is computed once.
"""

import re
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfx.core.crystal import CrystalBatch, concatenate
from cfx.core.elements import formula
from cfx.evaluation.matching import find_duplicates
from cfx.evaluation.summary import vendi_score
from cfx.io.files import replace_atomically
from cfx.io.formats import OutputRecord, render_cif
from cfx.io.journal import JsonLines
from cfx.rl.replay import Experience
from cfx.rl.rollout import SHARES, RewardCache, Rollout, arrangement, fingerprint, primitive_cells

NOT_CIF = re.compile(r"[^A-Za-z0-9]+")
"""What a name in a CIF cannot have."""

COPIES = 4
"""Crystals of the same sites and species that are remembered; thousands may differ by the cell only."""

KNOWN = ("advantage", "log_prob", "log_prob_reference")
"""What lines hold of an `Experience` beside the crystal and its reward."""

POOL = 4
"""Arrangements that are remembered for each crystal kept, since some repeat others in another setting."""


class Candidate(NamedTuple):
    """A crystal that may be among the best.

    Attributes:
        reward: its value.
        crystals: a batch of one.
        line: its step, reward, reason and parts, as in crystals.jsonl.
    """

    reward: float
    crystals: CrystalBatch
    line: dict[str, Any]


def _by_reward(one: Candidate) -> float:
    """Sorts the highest first; sorts are stable, so that of equals the earlier one comes first."""
    return -one.reward


class CrystalLog:
    """crystals.jsonl of a run, and in memory its crystals with a reward and the cache."""

    def __init__(self, directory: Path, keep: int, window: int = 10, writes: bool = True):
        """A log in that directory that keeps so many of the best; nothing is read or written yet.

        Args:
            directory: of the run.
            keep: crystals in best.cif.
            window: steps whose compositions are compared.
            writes: whether this process writes; of several, all read.
        """
        self.keep, self._lines, self._writes = keep, JsonLines(directory / "crystals.jsonl"), writes
        self.cache = RewardCache()
        self._formulas: deque[list[str]] = deque(maxlen=window)
        self._seen: set[bytes] = set()
        self._best: dict[bytes, list[Candidate]] = {}

    def append(self, step: int, rollout: Rollout, drawn: Experience | None = None) -> None:
        """Adds the crystals of a step, counted from 1, and what was known of them when they were drawn.

        Raises:
            OutputError: if they cannot be written.
        """
        lines = []
        self._formulas.append([formula(rollout.crystals.composition(row)) for row in range(len(rollout.crystals))])
        for row, value in enumerate(rollout.value):
            parts = {name: _number(values[row]) for name, values in rollout.metrics.items()}
            line = {"step": step, "reward": _number(value), "reason": rollout.reasons[row], "parts": parts}
            known = {} if drawn is None else {name: _number(getattr(drawn, name)[row]) for name in KNOWN}
            lines.append(line | known | _crystal(rollout.crystals, row))
            self._consider(float(value), rollout.keys[row], rollout.crystals[row : row + 1], line)
        if self._writes:
            self._lines.add(*lines)

    def diversity(self) -> dict[str, float]:
        """Different compositions among the crystals of the last steps.

        `compositions` is their share of all crystals; `vendi_compositions`, how many there are in effect.
        """
        counts = Counter(formula for formulas in self._formulas for formula in formulas)
        return {"compositions": len(counts) / counts.total(), "vendi_compositions": vendi_score(counts)}

    def restore(self, step: int, num_slots: int, recent: int = 0) -> list[Experience]:
        """Reads the crystals of steps up to this one, and the rewards of those after it, which are made again.

        Their lines stay until others come: a run that is interrupted once more finds these rewards, too.

        Args:
            step: the last one that is not made again, from 1.
            num_slots: of the model.
            recent: number of steps.

        Returns:
            The crystals of the last `recent` steps, each with what was known of them.

        Raises:
            DataError: if a line is damaged.
            OutputError: if the file cannot be written.
        """
        if not self._lines.path.exists():
            return []
        kept, formulas, steps = 0, defaultdict(list), defaultdict(list)
        for end, line in self._lines.read():
            crystals = _read(line, num_slots)
            value = np.nan if line["reward"] is None else float(line["reward"])
            parts = {
                name: np.nan if part is None else float(part)
                for name, part in line["parts"].items()
                if name not in SHARES
            }
            key, known = fingerprint(crystals, 0), (value, line["reason"], parts)
            if line["step"] > step:
                self.cache.ahead.setdefault(key, known)
                continue
            kept = end
            self.cache.known.setdefault(key, known)
            self._consider(value, key, crystals, {name: line[name] for name in ("step", "reward", "reason", "parts")})
            if line["step"] > step - (self._formulas.maxlen or 0):
                formulas[line["step"]].append(formula(crystals.composition(0)))
            if line["step"] > step - recent:
                known = [np.array([line[name]], np.float32) for name in KNOWN]  # None becomes NaN
                steps[line["step"]].append(Experience(crystals, np.array([value]), *known))
        if self._writes:
            self._lines.resume(kept, keep=True)
        self._formulas.extend(formulas.values())
        return [Experience.joined(parts) for parts in steps.values()]

    def _consider(self, value: float, key: bytes, crystals: CrystalBatch, line: dict[str, Any]) -> None:
        """Remembers a crystal if it may be among the best and was not there before."""
        if not np.isfinite(value) or key in self._seen:
            return
        self._seen.add(key)
        copies = self._best.setdefault(arrangement(crystals, 0), [])
        copies.append(Candidate(value, crystals, line))
        copies.sort(key=_by_reward)
        del copies[COPIES:]
        if len(self._best) > 2 * POOL * self.keep:
            ranked = sorted(self._best.items(), key=lambda item: _by_reward(item[1][0]))
            self._best = dict(ranked[: POOL * self.keep])

    def best(self) -> list[OutputRecord]:
        """The crystals of highest reward, none twice, with what it was made of."""
        ranked = sorted((one for copies in self._best.values() for one in copies), key=_by_reward)
        structures, unique = [], []
        while len(unique) < self.keep and len(structures) < len(ranked):
            more = ranked[len(structures) :][: max(POOL * self.keep, len(structures))]
            structures += primitive_cells(concatenate([one.crystals for one in more]))
            found = find_duplicates(structures, 1)
            unique = [one for one, record in zip(ranked, found, strict=False) if record.unique]
        records = []
        for index, one in enumerate(unique[: self.keep]):
            parts = {
                NOT_CIF.sub("_", name).strip("_"): part for name, part in one.line["parts"].items() if part is not None
            }
            records.append(OutputRecord(index, one.crystals, {"step": one.line["step"], "reward": one.reward, **parts}))
        return records

    def write_best(self, path: Path) -> int:
        """Writes the best crystals as CIF blocks, and says how many there are.

        Raises:
            OutputError: if they cannot be written.
        """
        records = self.best()
        text = "\n".join(render_cif(record) for record in records)
        replace_atomically(path, lambda partial: partial.write_text(text))
        return len(records)


def _number(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN."""
    return float(value) if np.isfinite(value) else None


def _crystal(crystals: CrystalBatch, row: int) -> dict[str, Any]:
    """The sites and the lattice of one crystal; float32 numbers survive as decimal ones."""
    sites = int(crystals.num_sites[row])
    return {
        "space_group": int(crystals.space_group[row]),
        "wyckoff": crystals.wyckoff[row, :sites].tolist(),
        "species": crystals.species[row, :sites].tolist(),
        "frac_coords": crystals.frac_coords[row, :sites].astype(float).tolist(),
        "lattice": [_number(value) for value in crystals.lattice[row]],
    }


def _read(line: dict[str, Any], num_slots: int) -> CrystalBatch:
    """The crystal of a line of the log, as a batch of one."""
    sites = len(line["wyckoff"])
    letters, species = np.zeros((1, num_slots), np.int32), np.zeros((1, num_slots), np.int32)
    coords = np.zeros((1, num_slots, 3), np.float32)
    letters[0, :sites], species[0, :sites] = line["wyckoff"], line["species"]
    coords[0, :sites] = np.array(line["frac_coords"], np.float32).reshape(-1, 3)
    lattice = np.array([[np.nan if value is None else value for value in line["lattice"]]], np.float32)
    return CrystalBatch(np.array([line["space_group"]], np.int32), lattice, coords, species, letters)
