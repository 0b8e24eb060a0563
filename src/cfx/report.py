"""Results as HTML files that need nothing else: an evaluation, and a viewer of crystals.

The page is drawn by the scripts in resources/report. What comes from the data reaches them as JSON in which no
character means anything to HTML, and a content security policy lets nothing run but those scripts.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, operation_text, symmetry_table
from cfx.data.structures import load_crystals
from cfx.evaluation.validity import symmetry_dataset
from cfx.fetch.names import data_path
from cfx.io.files import replace_atomically
from cfx.reporter import Reporter

if TYPE_CHECKING:
    from spglib import SpglibDataset

SCRIPTS = (
    *("base", "facts", "downloads", "summary", "charts", "distributions", "elements"),
    *("table", "scene", "viewer", "gallery", "report"),
)
"""Scripts of the page, in order: each uses what earlier ones define."""

VIEWER = ("base", "facts", "downloads", "scene", "viewer", "gallery", "report")
"""Those that crystals alone need."""

ROW_HEIGHT = 480
"""Of the gallery in a notebook, in pixels: a row of crystals."""

CELL_CRYSTALS = 12
"""Crystals in the output of a notebook's cell, which is kept in the notebook."""

GALLERY = 60
"""Crystals in the gallery of an evaluated file."""

SAMPLE = 2000
"""Values kept of a reference distribution: more change no pixel."""

SAME_SHIFT = 0.002
"""Fractions of a cell by which a translation that was found may differ from that of the standard setting."""

DIGITS = 6
"""Significant digits of numbers in the page."""


def render_report(result: Mapping[str, Any]) -> str:
    """The page of an evaluation.

    Args:
        result: {"version": text, "files": [{name, crystals, settings, warnings, summary, classes, reasons,
            records, reference, gallery, floor}]}.
            What is missing or None was not evaluated. Of a gallery, the first 60 crystals are shown.

    Returns:
        A whole HTML document.
    """
    evaluated = [_evaluated_file(file) for file in result.get("files") or []]
    names = ", ".join(str(file["name"]) for file in evaluated)
    shown = [crystal for file in evaluated for crystal in file["gallery"]]
    data = {"kind": "report", "version": result.get("version"), "files": evaluated, "operations": _operations(shown)}
    return _page(data, f"Evaluation of {names}" if names else "Evaluation")


def render_viewer(crystals: Sequence[Mapping[str, Any]], title: str = "Crystals") -> str:
    """A page with the gallery alone.

    Args:
        crystals: each with name, formula, space_group, cell (3x3, angstrom, a row per vector), species and frac_coords;
            e_above_hull (eV/atom) if known; cif, the text that is saved as its CIF (by default the page makes one of
            all atoms). Those without a proper cell are left out.
        title: of the page.
    """
    return _viewer(crystals, title, "viewer")


def render_cell(crystals: Sequence[Mapping[str, Any]], title: str) -> str:
    """The gallery as the output of a notebook's cell: in a frame of its own, which reaches nothing.

    Args:
        crystals: as in `render_viewer`.
        title: stands above them.
    """
    page = html.escape(_viewer(crystals, title, "cell"))
    style = f"width:100%;height:{ROW_HEIGHT}px;border:1px solid #8884;border-radius:6px"
    return f'<iframe sandbox="allow-scripts allow-downloads" style="{style}" srcdoc="{page}"></iframe>'


def _viewer(crystals: Sequence[Mapping[str, Any]], title: str, kind: str) -> str:
    gallery = _drawable(crystals)
    data = {"kind": kind, "title": title, "gallery": gallery, "operations": _operations(gallery)}
    return _page(data, title, VIEWER)


def render_shortlist(
    file: Mapping[str, Any],
    crystals: Sequence[Mapping[str, Any]],
    text: str,
    table: str,
    version: str,
    title: str = "",
) -> str:
    """A page of the best crystals of an evaluated file.

    Args:
        file: as in `render_report`, without records; and `column`, what the crystals are sorted by. Of a discovery
            also `funnel`, its stages, each with stage, left, lost and why; `properties`, names of those predicted.
        crystals: as in `render_viewer`, the best first, each with rank, cif_file, the name that its CIF is saved under,
            and what is known of it under the names of `cfx eval`; NAME_std is the standard deviation of a property,
            NAME_extrapolated whether its model was trained on nothing like the crystal.
        text: what they are.
        table: their records as CSV.
        version: of cfx.
        title: of the page; by default it is a shortlist of the file.
    """
    title = title or f"Shortlist of {file['name']}"
    data = {"kind": "shortlist", "title": title, "text": text, "table": table, "version": version}
    best = {**file, "records": [], "summary": {}, "classes": {}, "reasons": [], "reference": None}
    return _page({**data, "files": [_evaluated_file({**best, "gallery": crystals}, None)]}, title)


def _evaluated_file(file: Mapping[str, Any], most: int | None = GALLERY) -> dict[str, Any]:
    """What the page needs of a file, its records by column, at most so many crystals in its gallery."""
    reference = file.get("reference") or {}
    return {
        "name": file.get("name") or "unnamed",
        "crystals": file.get("crystals"),
        "settings": file.get("settings") or {},
        "warnings": file.get("warnings") or [],
        "floor": file.get("floor"),
        "summary": file.get("summary") or {},
        "classes": file.get("classes") or {},
        "funnel": file.get("funnel") or [],
        "column": file.get("column"),
        "properties": file.get("properties") or {},
        "reasons": group_reasons(file.get("reasons") or []),
        "rows": len(file.get("records") or []),
        "columns": _columns(_plain(file.get("records") or [])),
        "reference": {
            "density": _thinned(reference.get("density")),
            "num_elements": sorted(Counter(_numbers(reference.get("num_elements"))).items()),
        },
        "gallery": _drawable((file.get("gallery") or [])[:most]),
    }


VARYING = re.compile(
    r"(?P<number>(?<![A-Za-z_\d.])[-+]?\d[\d.,]*(?<![.,]))|'[^']*'|\"[^\"]*\"|"
    rf"\b(?:(?:{'|'.join(sorted(SYMBOLS[1:], key=len, reverse=True))})\d*)+\b"
)
"""What may differ between reasons that are the same otherwise: numbers, quoted names, elements and formulas."""

NAMED = 3
"""Names that a group of reasons lists."""


def group_reasons(reasons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reasons that differ by numbers or names alone, counted together, the most frequent first.

    Args:
        reasons: each with reason, count and example.

    Returns:
        The same, and `kinds`, how many reasons of the list are in a group. A number that differs is written as "0.06 to
        0.47", a name as "Fe, Co, Ni, ...".
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in reasons:
        groups.setdefault(VARYING.sub("\0", str(one["reason"])), []).append(one)
    merged = [
        {
            "reason": _merged([str(one["reason"]) for one in group]),
            "count": sum(one["count"] for one in group),
            "example": group[0]["example"],
            "kinds": len(group),
        }
        for group in groups.values()
    ]
    return sorted(merged, key=lambda group: -group["count"])


def _merged(texts: Sequence[str]) -> str:
    """One text for texts that are alike but for what VARYING finds."""
    found = [list(VARYING.finditer(text)) for text in texts]
    parts = iter([_span(matches) for matches in zip(*found, strict=True)])
    return VARYING.sub(lambda match: next(parts), texts[0])


def _span(matches: Sequence[re.Match[str]]) -> str:
    """What stands in one place of several texts: the one word, lowest to highest number, or the first few names."""
    words = list(dict.fromkeys(match[0] for match in matches))
    if len(words) == 1:
        return words[0]
    if all(match["number"] for match in matches):
        ordered = sorted(words, key=lambda word: float(word.replace(",", "")))
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(words[:NAMED] + ["..."] * (len(words) > NAMED))


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; a column in which nothing was evaluated is left out."""
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return {name: values for name, values in columns.items() if any(value not in (None, "") for value in values)}


def _numbers(values: Any) -> list[float]:
    """The finite numbers among values, which may be None or an array."""
    return [value for value in _plain([] if values is None else values) if _is_number(value)]


def _thinned(values: Any) -> list[float]:
    """At most SAMPLE evenly spaced quantiles of a distribution."""
    ordered = sorted(_numbers(values))
    if len(ordered) <= SAMPLE:
        return ordered
    return [ordered[int((i + 0.5) * len(ordered) / SAMPLE)] for i in range(SAMPLE)]


def _drawable(crystals: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The crystals that have a cell of three vectors and a place for each atom."""
    plain = (_plain(crystal) for crystal in crystals)
    return [
        crystal
        for crystal in plain
        if _is_matrix(crystal.get("cell"), 3)
        and _is_matrix(crystal.get("frac_coords"), len(crystal.get("species") or []))
    ]


def _is_matrix(rows: Any, count: int) -> bool:
    """Whether something is `count` rows of three finite numbers, and not nothing."""
    return (
        isinstance(rows, list)
        and 0 < count == len(rows)
        and all(isinstance(row, list) and len(row) == 3 and all(map(_is_number, row)) for row in rows)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, numbers with DIGITS digits, those that are not finite as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _script_json(data: Any) -> str:
    """JSON as it may stand in a <script>: pure ASCII, and no character that HTML could take for markup."""
    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _page(data: Mapping[str, Any], title: str, scripts: Sequence[str] = SCRIPTS) -> str:
    """The template with everything in its place."""
    style = _resource("style.css")
    script = "\n".join(_resource(f"{name}.js") for name in scripts)
    parts = {
        "TITLE": html.escape(title).encode("utf-8", "replace").decode(),
        "POLICY": f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
        "STYLE": style,
        "DATA": _script_json(data),
        "SCRIPT": script,
    }
    return re.sub(r"%%([A-Z]+)%%", lambda match: parts[match[1]], _resource("template.html"))


def _digest(text: str) -> str:
    """The source of a content security policy that allows just this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (files("cfx") / "resources" / "report" / name).read_text(encoding="utf-8")


def as_drawn(structure: Structure) -> dict[str, Any]:
    """The cell (angstrom, a row per vector), its atoms, and what a symmetry search finds of it, as a page has them.

    space_group: found, or None. sites: symmetry-inequivalent ones, each as the number of its first atom, how many atoms
    of the cell it has, and its Wyckoff position, as "4a"; none where no symmetry is found. standard: whether the cell
    is in the standard setting, so that the operations of the group are its own.
    """
    dataset, _ = symmetry_dataset(structure)
    drawn = {
        "cell": structure.lattice.matrix.round(5).tolist(),
        "species": [site.specie.symbol for site in structure],
        "frac_coords": structure.frac_coords.round(5).tolist(),
        "space_group": None if dataset is None else int(dataset.number),
    }
    return drawn if dataset is None else {**drawn, "sites": _sites(dataset), "standard": _is_standard(dataset)}


def as_card(name: str, structure: Structure) -> dict[str, Any]:
    """A crystal of which nothing is known but its structure, as `render_viewer` takes it."""
    return {"name": name, "formula": structure.composition.reduced_formula, **as_drawn(structure)}


def _sites(dataset: SpglibDataset) -> list[list[int | str]]:
    multiplicity = symmetry_table().multiplicity[dataset.number - 1]
    counts = Counter(dataset.equivalent_atoms.tolist())
    letters = {atom: dataset.wyckoffs[atom] for atom in counts}
    return [
        [atom, count, f"{multiplicity[LETTERS.index(letters[atom])]}{letters[atom]}"] for atom, count in counts.items()
    ]


def _is_standard(dataset: SpglibDataset) -> bool:
    """Whether the operations found are those of the standard setting: same axes, origin and centring."""
    shifts = dataset.translations * 24
    if np.abs(shifts - shifts.round()).max() > 24 * SAME_SHIFT:
        return False
    rotations, translations = symmetry_table().general_operations(int(dataset.number))
    return _as_integers(dataset.rotations, shifts) == _as_integers(rotations, translations * 24)


def _as_integers(rotations: np.ndarray, shifts: np.ndarray) -> set[tuple[int, ...]]:
    """Operations, as nine numbers of a rotation and three of a translation in 24ths of the cell."""
    rows = np.concatenate([rotations.reshape(-1, 9), shifts.round() % 24], axis=1)
    return set(map(tuple, rows.astype(int).tolist()))


def _operations(gallery: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The operations of the groups of crystals that are in the standard setting, as a CIF has them."""
    groups = sorted({crystal["space_group"] for crystal in gallery if crystal.get("standard")})
    tables = {str(group): symmetry_table().general_operations(group) for group in groups}
    return {group: list(map(operation_text, *operations)) for group, operations in tables.items()}


def viewer_cell(crystals: Sequence[tuple[str, Structure]], title: str = "Crystals") -> str:
    """The first CELL_CRYSTALS of crystals, with their names, as the output of a notebook's cell."""
    with warnings.catch_warnings(action="ignore"):
        shown = [as_card(name, structure) for name, structure in crystals[:CELL_CRYSTALS]]
    more = f", the first {len(shown)} of {len(crystals):,}" if len(shown) < len(crystals) else ""
    return render_cell(shown, f"{title}{more}")


def write_viewer(name: str, output: Path, first: int, reporter: Reporter) -> tuple[int, int]:
    """Writes a page of the first crystals of a file, in order; how many are shown, and how many the file has.

    Args:
        name: of a file, directory or zip, or of a data set.
        output: where the page goes.
        first: how many crystals, at most.

    Raises:
        DataError: if none can be read.
        OutputError: if the page cannot be written.
    """
    path = data_path(name, reporter)
    with warnings.catch_warnings(action="ignore"), reporter.progress(f"reading {path.name}", None) as progress:
        crystals = load_crystals(path, on_progress=progress.update)
        shown = [one for one in crystals if one.structure is not None][:first]
        page = render_viewer([as_card(one.name, one.structure) for one in shown], path.name)
    replace_atomically(output, lambda partial: partial.write_text(page, encoding="utf-8"))
    if unread := sum(one.structure is None for one in crystals):
        reporter.warning(f"{unread} of {len(crystals)} crystals cannot be read: cfx data {name} says why")
    return len(shown), len(crystals)
