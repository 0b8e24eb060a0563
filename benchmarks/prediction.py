"""How often the structure of a held-out crystal is found from its formula alone.

    python benchmarks/prediction.py mp20_subset_val.csv.gz --training training.csv --records found.jsonl --json out.json
    python benchmarks/prediction.py mp20_subset_val.csv.gz --prototypes --draws 20 --records raw.jsonl

DATA is a CSV with columns material_id and cif; of its crystals those whose ids have the least CRC-32 are taken: the
first 200, or --compounds. Each formula is given to `cfx predict` (--draws structures, --evaluations of the potential
for each); with --prototypes the list is of known prototypes alone, in the geometry of a known crystal
(`core.known_prototypes.typical_crystals`), those of `Model.rank_prototypes` that come first, without a potential.

A crystal is found if StructureMatcher matches it with one of the first 1, 5 or 20 structures of a list: with its own
tolerances (strict: ltol 0.2, stol 0.3, angle_tol 5), or with those usual in structure prediction (loose: 0.3, 0.5, 10).
Lists: by likelihood, by the energy of structures as drawn, by energy after relaxation, by probability
(`runs.predictions.probabilities`), and with --second by another potential's energies of the relaxed structures; with
--prototypes, by the rank of prototypes. Space groups are in the order of p(group | formula). Rates have Wilson
intervals of 95 %, of all compounds and of parts: whether the prototype (`core.prototypes.prototype_key`) and whether
the reduced formula occur in the training data, and whether no other structure of the formula is lower: in DATA and the
tables of --energies, with columns pretty_formula and e_above_hull. Compounds without a structure, for whatever reason,
count as not found.

--records is a file of JSON lines, one a compound; those that are in it are not computed again. --journals is a
directory that keeps what was drawn and relaxed for each compound: without the records, lists are then made anew from it
in a minute, after a change of how they are ranked.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
import zlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Structure
from record import add_json, machine

import cfx
from cfx.cli.values import start_jax
from cfx.config import SYMPREC, PredictConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.known_prototypes import KnownPrototype, prototypes_of, typical_crystals
from cfx.core.prototypes import Arrangement, arrangements_of, occupation_of, prototype_key
from cfx.data.dataset import load_dataset
from cfx.errors import CfxError
from cfx.evaluation.summary import wilson_interval
from cfx.io.journal import JsonLines
from cfx.predictors.load import load_potential
from cfx.reporter import Interrupted, Silent
from cfx.runs.candidates import Candidate
from cfx.runs.predict import name_of, predict

MATCHERS = {
    "strict": StructureMatcher(),
    "loose": StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10),
}
FIRST = (1, 5, 20)
SAME_ENERGY = 1e-4  # eV/atom
SPLITS = ("prototype_known", "formula_known", "is_lowest")


@dataclass(frozen=True)
class Compound:
    """A held-out crystal.

    Attributes:
        id: of the data.
        formula: reduced, symbol -> atoms.
        structure: pymatgen Structure.
        space_group: that a symmetry search finds.
        height: above the hull, by whoever made the data, eV/atom; not a number if that is not said.
        key: of its prototype.
        arrangement: which elements are on which letters, whatever the setting.
    """

    id: str
    formula: dict[str, int]
    structure: Structure
    space_group: int
    height: float
    key: tuple
    arrangement: Arrangement


def main() -> None:
    asked = parse()
    start_jax()
    warnings.simplefilter("ignore")
    model, compounds = cfx.load_model(asked.model), least_checksums(asked.data, asked.compounds)
    keys, formulas = known(asked.training) if asked.training else (None, None)
    lowest = least_heights([asked.data, *asked.energies]) if asked.energies else None
    done = {row["id"]: row for row in read_rows(asked.records)}
    for compound in compounds:
        if compound.id in done:
            continue
        prototypes = ranked(model, compound)
        found = listed(model, compound, prototypes, asked)
        formula = name_of(tuple(compound.formula.items()))
        row = {
            "id": compound.id,
            "formula": formula,
            "space_group": compound.space_group,
            "atoms": len(compound.structure),
            "prototype_known": None if keys is None else compound.key in keys,
            "formula_known": None if formulas is None else tuple(sorted(compound.formula.items())) in formulas,
            "is_lowest": None if lowest is None else compound.height <= lowest[formula] + SAME_ENERGY,
            "prototype_place": place_of(compound, prototypes_of(compound.formula)),
            "prototype_place_by_model": place_of(compound, prototypes),
            "space_group_place": place_in(found.space_groups, compound.space_group),
            "ranks": {name: ranks(compound.structure, structures) for name, structures in found.structures.items()},
            "structures": {name: len(structures) for name, structures in found.structures.items()},
            "error": found.error,
            "seconds": round(found.seconds, 2),
        }
        done[compound.id] = row
        with asked.records.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{len(done)}/{len(compounds)} {row['formula']} {row['ranks']} {row['seconds']} s", flush=True)
    rows = [done[compound.id] for compound in compounds]
    figures = summary(rows)
    print(json.dumps(figures, indent=1))
    if asked.json:
        files = ("data", "training", "energies", "records", "journals", "json")
        options = {name: value for name, value in vars(asked).items() if name not in files}
        kept = {"machine": machine(), "options": options, "figures": figures, "compounds": rows}
        asked.json.write_text(json.dumps(kept, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--training", type=Path, help="what the model learned from")
    arguments.add_argument("--energies", type=Path, nargs="+", default=[], help="tables of other known structures")
    arguments.add_argument("--model", default="mini")
    arguments.add_argument("--compounds", type=int, default=200)
    arguments.add_argument("--draws", type=int, default=20)
    arguments.add_argument("--evaluations", type=int, default=2000, help="of the potential, for a compound")
    arguments.add_argument("--potential", default="chgnet")
    arguments.add_argument("--second", help="another potential, of whose energies there is a list, too")
    arguments.add_argument("--no-relax", action="store_true")
    arguments.add_argument("--prototypes", action="store_true", help="known prototypes only, without a potential")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--records", type=Path, required=True)
    arguments.add_argument("--journals", type=Path, default=Path("journals"))
    add_json(arguments)
    return arguments.parse_args()


def least_checksums(data: Path, count: int) -> list[Compound]:
    """The crystals of least CRC-32 of their ids that cfx can encode, in that order."""
    table = read_table(data)
    table["checksum"] = [zlib.crc32(str(name).encode()) for name in table.material_id]
    table = table.sort_values("checksum").head(count)
    structures = [Structure.from_str(text, fmt="cif") for text in table.cif]
    encoded = cfx.encode(structures)
    for row, reason in encoded.failures:
        print(f"left out: {table.material_id.iloc[row]}: {reason}")
    found = []
    for row, (i, arrangement) in enumerate(zip(encoded.index.tolist(), arrangements_of(encoded.batch), strict=True)):
        name, structure, group = str(table.material_id.iloc[i]), structures[i], int(encoded.batch.space_group[row])
        height = float(table.e_above_hull.iloc[i]) if "e_above_hull" in table else np.nan
        key = key_of(encoded.batch, row)
        found.append(Compound(name, reduced(structure), structure, group, height, key, arrangement))
    return found


def read_table(data: Path) -> pd.DataFrame:
    """A CSV in which NaN is a formula."""
    return pd.read_csv(data, keep_default_na=False, na_values=[""])


def least_heights(tables: Sequence[Path]) -> dict[str, float]:
    """The least energy above the hull that tables have for each reduced formula, eV/atom."""
    rows = pd.concat([read_table(path)[["pretty_formula", "e_above_hull"]] for path in tables])
    names = {text: Composition(text).reduced_formula for text in rows.pretty_formula.unique()}
    return rows.e_above_hull.groupby(rows.pretty_formula.map(names)).min().to_dict()


def reduced(structure: Structure) -> dict[str, int]:
    """Symbol -> atoms of the reduced formula, as the formula is usually written."""
    counts = structure.composition.reduced_composition.get_el_amt_dict()
    return {symbol: round(count) for symbol, count in counts.items()}


def key_of(batch: CrystalBatch, row: int) -> tuple:
    """Of the prototype of a crystal (numpy)."""
    return prototype_key(
        int(batch.space_group[row]), tuple(sorted(letters for _, letters in occupation_of(batch, row)))
    )


def known(training: Path) -> tuple[set, set]:
    """Prototypes and reduced formulas of the training data."""
    batch = load_dataset(training, SYMPREC).batch
    keys = {key_of(batch, row) for row in range(len(batch))}
    counts = (lowest_terms(batch.composition(row)) for row in range(len(batch)))
    return keys, {tuple(sorted((SYMBOLS[number], n) for number, n in one.items())) for one in counts}


def ranked(model: cfx.Model, compound: Compound) -> list[KnownPrototype]:
    """The known prototypes of a formula that the model has room for, the likeliest first."""
    fitting = [one for one in prototypes_of(compound.formula) if len(one.letters) < model.config.n_max]
    return model.rank_prototypes(fitting)


def place_of(compound: Compound, prototypes: Sequence[KnownPrototype]) -> int | None:
    """Where the crystal stands among prototypes of its formula, elements in place."""
    return place_in([one.arrangement for one in prototypes], compound.arrangement)


def read_rows(records: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may end in the middle of one."""
    if records.exists():
        text = records.read_text()
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            records.write_text(complete)
        yield from map(json.loads, complete.splitlines())


class Lists(NamedTuple):
    """What was found for a formula, each list the best first.

    Attributes:
        structures: by the name of the list.
        space_groups: numbers.
        seconds: to draw, to evaluate and to relax.
        error: why there are none, if so.
    """

    structures: dict[str, list[Structure]]
    space_groups: list[int]
    seconds: float
    error: str = ""


def listed(
    model: cfx.Model, compound: Compound, prototypes: Sequence[KnownPrototype], asked: argparse.Namespace
) -> Lists:
    """What is found for a formula."""
    start = time.perf_counter()
    try:
        if asked.prototypes:
            drawn = typical_crystals(prototypes[: asked.draws], model.config.n_max).to_structures()
            return Lists({"prototypes": drawn}, [], time.perf_counter() - start)
        return predicted(model, compound, asked)
    except Interrupted:
        raise
    except CfxError as error:
        return Lists({}, [], time.perf_counter() - start, error.message)


def place_in(ranking: Sequence[Hashable], one: Hashable) -> int | None:
    """Where one stands among others, from 1; None: nowhere."""
    return ranking.index(one) + 1 if one in ranking else None


def predicted(model: cfx.Model, compound: Compound, asked: argparse.Namespace) -> Lists:
    """What `cfx predict` gives, and what it ranked on the way."""
    formula = tuple(compound.formula.items())
    config = PredictConfig(
        draws=asked.draws,
        seed=asked.seed,
        potential=asked.potential,
        budget=str(asked.evaluations),
        relax=not asked.no_relax,
        top=max(FIRST),
    )
    asked.journals.mkdir(parents=True, exist_ok=True)
    path = asked.journals / f"{compound.id}.jsonl"
    found = predict(model, [formula], config, Silent(), JsonLines(path), resume=path.exists())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    steps = {key: row for row in rows for key in ("candidates", "energies") if key in row}
    drawn = [Candidate.of(one).structure for one in steps["candidates"]["candidates"]]
    energies = steps["energies"]["energies"]
    by_energy = sorted((energy, i) for i, energy in enumerate(energies) if energy is not None)
    lists = {"likelihood": drawn, "energy as drawn": [drawn[i] for _, i in by_energy]}
    groups = [group for group, _ in steps["candidates"]["space_groups"]]
    if not asked.no_relax:
        lists["relaxed"] = [one.structure for one in found]
        lists["probability"] = [one.structure for one in sorted(found, key=lambda one: -one.probability)]
        if asked.second:
            evaluated = load_potential(asked.second).evaluate(lists["relaxed"], forces=False).energy
            per_atom = [energy / len(one) for energy, one in zip(evaluated, lists["relaxed"], strict=True)]
            lists["second potential"] = [lists["relaxed"][i] for i in np.argsort(per_atom, kind="stable")]
    return Lists(lists, groups, sum(row.get("seconds", 0.0) for row in rows))


def ranks(truth: Structure, structures: Sequence[Structure]) -> dict[str, int | None]:
    """The place of the first structure that matches, from 1, by each matcher."""
    found: dict[str, int | None] = {}
    for name, matcher in MATCHERS.items():
        places = (i for i, one in enumerate(structures, start=1) if matcher.fit(truth, one))
        found[name] = next(places, None)
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rates by list, matcher and length, of all and of parts."""
    parts = {"all": list(rows)}
    for split in SPLITS:
        for value in (True, False):
            parts[f"{split}: {'yes' if value else 'no'}"] = [row for row in rows if row[split] is value]
    names = list(dict.fromkeys(name for row in rows for name in row["ranks"]))
    return {
        "compounds": len(rows),
        "without a structure": sum(bool(row["error"]) for row in rows),
        "median seconds": float(np.median([row["seconds"] for row in rows])),
        **{
            f"{key} among the first": {str(n): rate([row[key] for row in rows], n) for n in (*FIRST, 100, 10_000)}
            for key in ("prototype_place", "prototype_place_by_model", "space_group_place")
        },
        "found": {
            part: {
                name: {
                    matcher: {
                        str(first): rate([row["ranks"].get(name, {}).get(matcher) for row in some], first)
                        for first in (*FIRST, 10_000)
                    }
                    for matcher in MATCHERS
                }
                for name in names
            }
            for part, some in parts.items()
            if some
        },
    }


def rate(places: Sequence[int | None], first: int) -> dict[str, Any]:
    """How many places are among the first, with Wilson's interval of 95 %."""
    count = sum(place is not None and place <= first for place in places)
    low, high = wilson_interval(count, len(places))
    return {"value": round(count / len(places), 4), "low": round(low, 4), "high": round(high, 4), "count": count}


if __name__ == "__main__":
    main()
