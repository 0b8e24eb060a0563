"""The best crystals of an evaluated file, as a directory: a CIF of each, a table, and a page to look at them."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cfx.config import ShortlistConfig
from cfx.core import Structure
from cfx.errors import OutputError, UsageError
from cfx.evaluation.summary import BELOW_FLOOR, is_below_floor
from cfx.io.files import check_directory, check_own_files, csv_text, replace_atomically, sole_writer, write_texts
from cfx.report import render_shortlist
from cfx.reporter import Reporter
from cfx.runs.evaluate import IMPLAUSIBLE, Evaluated, as_shown
from cfx.runs.relax import crystal_block

PAGE, TABLE = "shortlist.html", "shortlist.csv"

OWN_FILES = re.compile(r"\d+_.+\.cif|shortlist\.(html|csv)")
"""Names of the files of a shortlist."""


class Selection(NamedTuple):
    """Which crystals of a file are in a shortlist.

    Attributes:
        rows: their places in the file, the best first.
        left_out: why others are not, and how many.
    """

    rows: list[int]
    left_out: dict[str, int]


def select(records: Sequence[Mapping[str, Any]], config: ShortlistConfig) -> Selection:
    """The best crystals of a file: of those that are valid, unique and not below the floor, the first by a column.

    Equal ones stay in the order of the file.
    """
    reasons = [_why_left_out(record, config.column) for record in records]
    fit = [row for row, reason in enumerate(reasons) if not reason]
    sign = -1 if config.descending else 1
    fit.sort(key=lambda row: sign * records[row][config.column])
    left_out = Counter(filter(None, reasons))
    if lower := len(fit) - config.top:
        left_out["ranked lower"] = max(0, lower)
    return Selection(fit[: config.top], dict(+left_out))


def _why_left_out(record: Mapping[str, Any], column: str) -> str:
    """Why a crystal is in no shortlist, or ""."""
    if record["formula"] is None:
        return "could not be read"
    if is_below_floor(record):
        return f"{BELOW_FLOOR} ({IMPLAUSIBLE})"
    if not record["valid"]:
        return "not valid"
    if record["duplicate_of"] is not None:
        return "duplicates"
    return f"without {column}" if record[column] is None else ""


def check_shortlist(directory: Path | None, files: Sequence[str], force: bool) -> None:
    """Makes sure before the work that a shortlist can be written, without loss of anything but an earlier one.

    Raises:
        UsageError: if several files are evaluated, or it has no name.
        OutputError: if it is there and `force` is False, or not a shortlist, or its directory cannot be written.
    """
    if directory is None:
        return
    if len(files) > 1:
        raise UsageError("a shortlist is of one file of crystals", "put several into one directory or zip")
    if directory.name not in ("", "..") and directory.exists() and not force:
        raise OutputError(f"{directory} exists", "choose another name, or overwrite a shortlist with `force`")
    check_own_files(directory, OWN_FILES, "be a shortlist", "a shortlist is", "of a shortlist")
    if any(directory.resolve() in Path(name).resolve().parents for name in files):
        raise UsageError(f"{directory} holds the crystals that are evaluated", "choose another name")
    check_directory(directory)


@contextmanager
def claimed_shortlist(directory: Path | None, files: Sequence[str], force: bool) -> Iterator[None]:
    """A block in which this process alone writes a shortlist; see `check_shortlist`."""
    with sole_writer(directory):
        check_shortlist(directory, files, force)
        yield


def write_shortlist(
    directory: Path, evaluated: Evaluated, config: ShortlistConfig, version: str, reporter: Reporter
) -> dict[str, Any]:
    """Writes the shortlist of an evaluated file.

    Returns:
        Ready for JSON: directory, sort, crystals (name -> file), left_out (reason -> how many).

    Raises:
        OutputError: if it cannot be written.
    """
    records, (rows, left_out) = evaluated.result["records"], select(evaluated.result["records"], config)
    with warnings.catch_warnings(action="ignore"):
        crystals = [_crystal(rank, evaluated, row, len(str(len(rows)))) for rank, row in enumerate(rows, start=1)]
    table = [
        {"rank": crystal["rank"], "cif_file": crystal["cif_file"], **records[row]}
        for crystal, row in zip(crystals, rows, strict=True)
    ]
    columns = ["rank", "cif_file", *records[0]]
    texts = {crystal["cif_file"]: crystal["cif"] for crystal in crystals} | {TABLE: csv_text(table, columns)}
    said = describe(config, len(rows), left_out)
    file = {**evaluated.result, "column": config.column}
    texts[PAGE] = render_shortlist(file, crystals, said, texts[TABLE], version)

    replace_atomically(directory, lambda fresh: write_texts(fresh, texts))
    reporter.message(f"written: {directory}: {said}")
    names = {crystal["cif_file"]: crystal["name"] for crystal in crystals}
    return {"directory": str(directory), "sort": config.sort, "crystals": names, "left_out": left_out}


def describe(config: ShortlistConfig, count: int, left_out: Mapping[str, int]) -> str:
    """What a shortlist is, in a line: how many crystals by which column, and what was left out."""
    order = ", the largest first" * config.descending
    others = "; ".join(f"{number} {reason}" for reason, number in left_out.items())
    return f"{count} of {count + sum(left_out.values())} crystals by {config.column}{order}" + (
        f"; left out: {others}" if others else ""
    )


def _crystal(rank: int, evaluated: Evaluated, row: int, digits: int) -> dict[str, Any]:
    """A crystal as the page has it, with its CIF."""
    record, structure = evaluated.result["records"][row], evaluated.structures[row]
    assert structure is not None  # what could not be read is in no shortlist
    name = f"{rank:0{digits}}_{formula_in_name(structure)}"
    block = crystal_block({**record, "name": name, "potential": evaluated.model or None}, structure)
    return {**record, "rank": rank, "cif_file": f"{name}.cif", "cif": block, **as_shown(record, structure)}


def formula_in_name(structure: Structure) -> str:
    """The formula as the name of a file: without parentheses, as BaN2O6."""
    return re.sub(r"(?<=[a-zA-Z])1\b ?| ", "", structure.composition.reduced_composition.formula)
