r"""Writes the training data of the bundled model from several files of crystals, and says what each brings.

    python tools/make_training_data.py mp20_subset_train.csv.gz mpts52_subset.csv.gz mp_extra.csv.gz \
        --held-out mp20_subset_val.csv.gz -o training.csv

Of each file it takes what MP-20's own rules allow: at most 20 atoms in the primitive cell and, where the file says so,
near the hull. A crystal is left out if it has the id of a held-out crystal or of one taken before, and if it matches a
held-out crystal, or one taken before, of the same composition by pymatgen's StructureMatcher.

    cfx eval training.csv --potential chgnet -o records.csv
    python tools/make_training_data.py training.csv --judged records.csv --without alexandria oqmd jarvis -o best.csv

With --judged it takes, of its own output, what CHGNet has from -0.2 to 0.1 eV/atom above the bundled hull and SMACT
finds valid: what the last epochs see.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

MAX_ATOMS = 20
MIN_E_HULL = -0.2  # eV/atom; what is below lies in a gap of the hull
MAX_E_HULL = 0.1  # eV/atom; MP-20 stops at 0.08, of an older hull
COLUMNS_OF_E_HULL = ("e_above_hull", "energy_above_hull")
COLUMNS_OF_IDS = ("material_id", "id")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sources", type=Path, nargs="+", help="files with a column cif; earlier ones come first")
    arguments.add_argument("--held-out", type=Path)
    arguments.add_argument("--judged", type=Path, help="records of cfx eval on the only source, an output of this tool")
    arguments.add_argument("--without", nargs="*", default=[], help="sources that --judged leaves out")
    arguments.add_argument("-o", "--output", type=Path, required=True)
    options = arguments.parse_args()
    if options.judged:
        table = pd.read_csv(options.sources[0])
        taken = best(table, pd.read_csv(options.judged), options.without)
        print(f"{len(taken):,} of {len(table):,} crystals")
        return taken.to_csv(options.output, index=False)

    held_out = read(options.held_out)
    rows = pd.concat([near_hull(read(path)) for path in options.sources], ignore_index=True)
    rows["fate"] = ""
    rows.loc[rows.id.isin(set(held_out.id)), "fate"] = "held out, by id"
    rows.loc[rows.id.duplicated() & (rows.fate == ""), "fate"] = "repeated, by id"
    known = spread(held_out.cif)
    structures = spread(rows.cif.where(rows.fate == ""))
    missing = pd.Series([structure is None for structure in structures])
    rows.loc[missing & (rows.fate == ""), "fate"] = "large, or unreadable"
    for row, fate in matches(structures, known).items():
        rows.loc[row, "fate"] = fate
    counts = {source: Counter(part.fate.replace("", "taken")) for source, part in rows.groupby("source", sort=False)}
    print(pd.DataFrame(counts).fillna(0).astype(int).T.to_string())
    taken = rows[rows.fate == ""]
    taken[["id", "source", "cif"]].to_csv(options.output, index=False)
    print(f"{len(taken):,} crystals")


def best(table: pd.DataFrame, records: pd.DataFrame, without: list[str]) -> pd.DataFrame:
    """The rows of sources not left out that are near the hull and of valid composition."""
    assert len(table) == len(records), "records of another file"
    near = records.e_above_hull.between(MIN_E_HULL, MAX_E_HULL)
    return table[near & records.valid_composition.astype(bool) & ~table.source.isin(without)]


def read(path: Path) -> pd.DataFrame:
    """A file as id, source, cif and energy above the hull where it is known."""
    table = pd.read_csv(path)
    name = next(column for column in COLUMNS_OF_IDS if column in table)
    energy = next((table[column] for column in COLUMNS_OF_E_HULL if column in table), None)
    source = path.name.split(".")[0]
    return pd.DataFrame({"id": table[name].astype(str), "source": source, "cif": table.cif, "e_above_hull": energy})


def near_hull(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are not known to be far above the hull."""
    return table[~(table.e_above_hull.astype(float) > MAX_E_HULL)]


def spread(cifs: Any) -> list[Any]:
    """Primitive structures, or None where there is no text, more than MAX_ATOMS atoms, or nothing readable."""
    chunks = [list(cifs)[i : i + 200] for i in range(0, len(cifs), 200)]
    found = joblib.Parallel(n_jobs=-1)(joblib.delayed(parse)(chunk) for chunk in chunks)
    return [structure for chunk in found for structure in chunk]  # pyright: ignore[reportOptionalIterable]


def parse(cifs: list[Any]) -> list[Any]:
    """A chunk of `spread`."""
    import warnings

    from pymatgen.core import Structure

    warnings.simplefilter("ignore")
    found = []
    for cif in cifs:
        try:
            structure = Structure.from_str(cif, fmt="cif").get_primitive_structure() if isinstance(cif, str) else None
        except ValueError:
            structure = None
        found.append(structure if structure is not None and len(structure) <= MAX_ATOMS else None)
    return found


def matches(structures: list[Any], known: list[Any]) -> dict[int, str]:
    """Row -> why it is left out, of the rows that match a known crystal or an earlier row."""
    groups: dict[str, tuple[list[int], list[Any]]] = {}
    for row, structure in enumerate(structures):
        if structure is not None:
            groups.setdefault(structure.composition.reduced_formula, ([], []))[0].append(row)
    for structure in known:
        if structure is not None and structure.composition.reduced_formula in groups:
            groups[structure.composition.reduced_formula][1].append(structure)
    tasks = [
        joblib.delayed(compare)(rows, [structures[row] for row in rows], held_out)
        for rows, held_out in groups.values()
        if held_out or len(rows) > 1
    ]
    return {row: fate for part in joblib.Parallel(n_jobs=-1, batch_size=50)(tasks) for row, fate in part.items()}


def compare(rows: list[int], structures: list[Any], held_out: list[Any]) -> dict[int, str]:
    """What `matches` says of the rows of one composition."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    # Not find_duplicates, which compares reduced cells, and with kept crystals only: it misses 1 of MP-20's 27.
    matcher, earlier, fates = StructureMatcher(), [], {}
    for row, structure in zip(rows, structures, strict=True):
        if any(matcher.fit(structure, other) for other in held_out):
            fates[row] = "held out, by structure"
        elif any(matcher.fit(structure, other) for other in earlier):
            fates[row] = "repeated, by structure"
        else:
            earlier.append(structure)
    return fates


if __name__ == "__main__":
    main()
