"""Results as HTML files that need nothing else: an evaluation, and a viewer of crystals.

The page is drawn by the scripts in resources/report. What comes from the data reaches them as JSON in which no
character means anything to HTML, and a content security policy lets nothing run but those scripts.
"""

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
from typing import Any

from cfx.core import Structure
from cfx.data.structures import load_crystals
from cfx.evaluation.validity import find_space_groups
from cfx.fetch.names import data_path
from cfx.io.files import replace_atomically
from cfx.reporter import Reporter

SCRIPTS = (
    *("base", "facts", "downloads", "summary", "charts", "distributions", "elements"),
    *("table", "scene", "viewer", "gallery", "report"),
)
"""Scripts of the page, in order: each uses what earlier ones define."""

GALLERY = 60
"""Crystals in the gallery of an evaluated file."""

SAMPLE = 2000
"""Values kept of a reference distribution: more change no pixel."""

DIGITS = 6
"""Significant digits of numbers in the page."""


def render_report(result: Mapping[str, Any]) -> str:
    """The page of an evaluation.

    Args:
        result: {"version": text, "files": [{name, crystals, settings, warnings, summary, classes, reasons,
            records, reference, gallery}]}.
            What is missing or None was not evaluated. Of a gallery, the first 60 crystals are shown.

    Returns:
        A whole HTML document.
    """
    evaluated = [_evaluated_file(file) for file in result.get("files") or []]
    names = ", ".join(str(file["name"]) for file in evaluated)
    data = {"kind": "report", "version": result.get("version"), "files": evaluated}
    return _page(data, f"Evaluation of {names}" if names else "Evaluation")


def render_viewer(crystals: Sequence[Mapping[str, Any]], title: str = "Crystals") -> str:
    """A page with the gallery alone.

    Args:
        crystals: each with name, formula, space_group, cell (3x3, angstrom, a row per vector), species and frac_coords;
            e_above_hull (eV/atom) if known; cif, the text that is saved as its CIF (by default the page makes one of
            all atoms). Those without a proper cell are left out.
        title: of the page.
    """
    return _page({"kind": "viewer", "title": title, "gallery": _drawable(crystals)}, title)


def _evaluated_file(file: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a file, its records by column."""
    reference = file.get("reference") or {}
    return {
        "name": file.get("name") or "unnamed",
        "crystals": file.get("crystals"),
        "settings": file.get("settings") or {},
        "warnings": file.get("warnings") or [],
        "summary": file.get("summary") or {},
        "classes": file.get("classes") or {},
        "reasons": file.get("reasons") or [],
        "rows": len(file.get("records") or []),
        "columns": _columns(_plain(file.get("records") or [])),
        "reference": {
            "density": _thinned(reference.get("density")),
            "num_elements": sorted(Counter(_numbers(reference.get("num_elements"))).items()),
        },
        "gallery": _drawable((file.get("gallery") or [])[:GALLERY]),
    }


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


def _page(data: Mapping[str, Any], title: str) -> str:
    """The template with everything in its place."""
    style = _resource("style.css")
    script = "\n".join(_resource(f"{name}.js") for name in SCRIPTS)
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
    """The cell (angstrom, a row per vector) and its atoms, as a page has them."""
    return {
        "cell": structure.lattice.matrix.round(5).tolist(),
        "species": [site.specie.symbol for site in structure],
        "frac_coords": structure.frac_coords.round(5).tolist(),
    }


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
        groups = find_space_groups([one.structure for one in shown])
        gallery = [
            {
                "name": one.name,
                "formula": one.structure.composition.reduced_formula,
                "space_group": group.found,
                **as_drawn(one.structure),
            }
            for one, group in zip(shown, groups, strict=True)
        ]
    page = render_viewer(gallery, path.name)
    replace_atomically(output, lambda partial: partial.write_text(page, encoding="utf-8"))
    if unread := sum(one.structure is None for one in crystals):
        reporter.warning(f"{unread} of {len(crystals)} crystals cannot be read: cfx data {name} says why")
    return len(shown), len(crystals)
