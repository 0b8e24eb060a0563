"""Which of a model's own crystals are worth learning from, and what is told of a round of them.

Crystals are judged by the records of `runs.evaluate`, as drawn and as relaxed: a crystal has a filter that it fails
first, or none. Repeats are looked for among those that pass all other filters: of two alike, one may fail where the
other does not.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfx.config import SelfTrainConfig
from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.data.dataset import EncodedDataset, encode
from cfx.errors import UsageError
from cfx.evaluation.matching import find_duplicates
from cfx.evaluation.summary import BELOW_FLOOR, Thresholds, rate
from cfx.evaluation.validity import CLASSES

Record = dict[str, Any]
"""What is known of a crystal, see `runs.evaluate`."""

UNREADABLE, INVALID, OTHER_CLASS = "no crystal", "atoms too close, or no cell", "another class of compositions"
NO_ENERGY, TOO_LOW, TOO_HIGH = "no energy above the hull", BELOW_FLOOR, "too far above the hull as drawn"
KNOWN, REPEAT = "known", "a repeat"
BEFORE = (UNREADABLE, INVALID, OTHER_CLASS, NO_ENERGY, TOO_LOW, TOO_HIGH, KNOWN, REPEAT)
"""Filters of crystals as drawn, in order."""

NOT_RELAXED, HIGH, NOT_ENCODED = "not relaxed", "too far above the hull", "too many sites"
AFTER = (NOT_RELAXED, INVALID, NO_ENERGY, TOO_LOW, HIGH, KNOWN, NOT_ENCODED, REPEAT)
"""Filters of relaxed crystals, in order."""

NEARLY = 2.0
"""Forces this many times the `fmax` of the relaxation are small enough."""

GROWN = 8
"""Elements of which a round is told how much more frequent they have become."""


def check_classes(config: SelfTrainConfig) -> None:
    """Makes sure that the classes of compositions are ones.

    Raises:
        UsageError: if not.
    """
    if wrong := [name for name in config.classes if name not in CLASSES]:
        raise UsageError(f"there is no class of compositions {wrong[0]!r}", f"choose among: {', '.join(CLASSES)}")


def why_not_relaxed(record: Record, config: SelfTrainConfig, limits: Thresholds) -> str:
    """The filter of BEFORE that a crystal fails, repeats aside; "" if none."""
    if record["formula"] is None:
        return UNREADABLE
    if not record["valid_structure"]:
        return INVALID
    if record["class"] not in config.classes:
        return OTHER_CLASS
    highest = config.max_e_hull_unrelaxed if config.relax else config.max_e_hull
    return _why_not_wanted(record, highest, TOO_HIGH, config, limits)


def why_not_kept(record: Record, fmax: float | None, config: SelfTrainConfig, limits: Thresholds, goal: float) -> str:
    """The filter of AFTER that a relaxed crystal fails, as far as its record and its forces say; "" if none.

    Args:
        record: of the relaxed crystal.
        fmax: largest force that is left, eV/angstrom; None if it could not be relaxed.
        config: what is kept.
        limits: the floor.
        goal: force at which the relaxation was to end.
    """
    if fmax is None or (config.relax and fmax > NEARLY * goal):
        return NOT_RELAXED
    if not record["valid_structure"]:
        return INVALID
    return _why_not_wanted(record, config.max_e_hull, HIGH, config, limits)


def _why_not_wanted(record: Record, highest: float, too_high: str, config: SelfTrainConfig, limits: Thresholds) -> str:
    """What both ask last: an energy above the hull from the floor to a highest (eV/atom), and that it is new."""
    height = record["e_above_hull"]
    if height is None:
        return NO_ENERGY
    if limits.verdict(height) == BELOW_FLOOR:
        return TOO_LOW
    if not limits.allow(height, highest):
        return too_high
    return KNOWN if config.novel and not record["novel"] else ""


def mark_unencoded(reasons: list[str], structures: Sequence[Structure | None], n_max: int) -> None:
    """Finds, among crystals without a reason, those that are no sequence of sites of a model."""
    for row, structure in _left(reasons, structures):
        if encode([structure], n_max=n_max).failures:
            reasons[row] = NOT_ENCODED


def mark_repeats(
    reasons: list[str],
    structures: Sequence[Structure | None],
    earlier: Sequence[Structure],
    workers: int,
    once: bool = False,
) -> None:
    """Finds, among crystals without a reason, those that match an earlier one, or one of `earlier`.

    With `once`, those that a later one matches are repeats, too.
    """
    left = _left(reasons, structures)
    found = find_duplicates([*earlier, *(structure for _, structure in left)], workers)
    repeated = {one.match for one in found} if once else set()
    for place, (row, _) in enumerate(left, start=len(earlier)):
        if not found[place].unique or place in repeated:
            reasons[row] = REPEAT


def mark_learned(
    records: Sequence[Record],
    structures: Sequence[Structure | None],
    kept: Sequence[Structure],
    limits: Thresholds,
    workers: int,
) -> None:
    """Sets `learned` of every record: whether the crystal is S.U.N. and matches one of `kept`, that are learned from.

    Such a crystal is new to the reference, but no news of this run.
    """
    rows = [row for row, one in enumerate(records) if _is_sun(one, limits)]
    found = find_duplicates([*kept, *(structures[row] for row in rows)], workers)[len(kept) :]
    learned = {row for row, one in zip(rows, found, strict=True) if one.match is not None and one.match < len(kept)}
    for row, record in enumerate(records):
        record["learned"] = row in learned


def _is_sun(record: Record, limits: Thresholds) -> bool:
    height = record["e_above_hull"]
    return bool(height is not None and limits.allow(height, limits.stable) and record["unique"] and record["novel"])


def _left(reasons: Sequence[str], structures: Sequence[Structure | None]) -> list[tuple[int, Structure]]:
    """Rows and crystals without a reason."""
    pairs = zip(reasons, structures, strict=True)
    return [(row, one) for row, (reason, one) in enumerate(pairs) if not reason and one is not None]


def funnel(reasons: Sequence[str], filters: Sequence[str]) -> list[dict[str, Any]]:
    """How many crystals each filter took, and how many it left, in order."""
    counts, left, steps = Counter(reasons), len(reasons), []
    for name in filters:
        left -= counts[name]
        steps.append({"filter": name, "taken": counts[name], "left": left})
    return steps


def describe_kept(kept: Sequence[Record], data: EncodedDataset) -> dict[str, Any]:
    """What the crystals that are kept have in common: ready for JSON.

    Args:
        kept: lines of kept.jsonl.
        data: that they are mixed with.

    Returns:
        crystals; compositions, distinct ones; novel, a rate; classes and space_groups, counts; volume_change, the mean,
        relative; elements, those whose share of the crystals grew most against the data, with both shares.
    """
    from pymatgen.core import Composition

    held = Counter(symbol for one in kept for symbol in Composition(one["formula"]).get_el_amt_dict())
    known = data.element_counts() / len(data)
    shares = {symbol: (count / len(kept), float(known[SYMBOLS.index(symbol)])) for symbol, count in held.items()}
    grown = sorted(shares, key=lambda symbol: shares[symbol][1] - shares[symbol][0])[:GROWN]
    return {
        "crystals": len(kept),
        "compositions": len({one["formula"] for one in kept}),
        "novel": rate([one["novel"] for one in kept]) if kept else None,
        "classes": dict(Counter(one["class"] for one in kept)),
        "space_groups": dict(Counter(str(one["space_group"]) for one in kept).most_common()),
        "volume_change": float(np.mean([one["volume_change"] for one in kept])) if kept else None,
        "elements": [
            dict(zip(("element", "kept", "data"), (symbol, *shares[symbol]), strict=True)) for symbol in grown
        ],
    }
