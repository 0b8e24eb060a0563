"""The report as text: one valid file that asks for nothing from outside, whatever is in the data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cfx.report import GALLERY, SAMPLE, group_reasons, render_report, render_viewer

from . import example

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]></style>",
    "\u2028\u2029\x00\ud800",
    "\"'&lt;%%SCRIPT%%",
]


class Page(HTMLParser):
    """What a browser makes of the page: its tags, and the text of its scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style", "title")
        if self.inside:
            self.raw.append((tag, ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, text = self.raw[-1]
            self.raw[-1] = tag, text + data

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.raw if name == tag]

    @property
    def data(self):
        return json.loads(self.texts("script")[0])


def count_tags(text: str) -> list[str]:
    return [tag for tag, _ in Page(text).tags]


def test_data_arrive_whole():
    data = Page(render_report(example.result(example.evaluated("a.cif")))).data
    (file,) = data["files"]
    assert (data["kind"], data["version"], file["name"], file["rows"]) == ("report", "0.1.0", "a.cif", 40)
    assert file["columns"]["name"] == [f"gen_{i}" for i in range(40)]
    assert file["columns"]["formula"][9] is None
    assert file["columns"]["density"][:3] == [2.0, 2.1, 2.2]
    assert file["summary"]["frac_space_group_as_asked"] is None
    assert file["warnings"] == ["2 crystals are <b>below</b> the floor"]
    assert list(file["classes"]) == ["intermetallic", "charge-neutral"]
    assert file["gallery"][0] == example.rock_salt("Na", "Cl")


def test_columns_without_values_are_left_out():
    columns = Page(render_report(example.result(example.evaluated("a.cif")))).data["files"][0]["columns"]
    assert "reason" in columns
    assert not {"space_group_asked", "rmsd_to_relaxed"} & set(columns)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(text):
    record = example.record(0, name=text, formula=text, reason=text)
    crystal = example.rock_salt("Na", "Cl") | {"name": text, "formula": text, "species": [text] * 8}
    file = example.evaluated(text, records=[record], gallery=[crystal])
    file["settings"], file["summary"] = {text: text}, {text: {"value": 1.0, "unit": text}}
    file["reasons"] = [{"reason": text, "count": 1, "example": text}]
    page = render_report(example.result(file) | {"version": text})
    assert count_tags(page) == count_tags(render_report(example.result(example.evaluated("plain"))))
    page.encode("utf-8")
    (read,) = Page(page).data["files"]
    assert read["name"] == read["columns"]["formula"][0] == read["gallery"][0]["species"][0] == text
    assert read["settings"] == {text: text}
    viewer = render_viewer([crystal], title=text)
    assert count_tags(viewer) == count_tags(page)
    assert Page(viewer).data["title"] == text


def test_json_has_no_character_of_markup():
    page = render_report(example.result(example.evaluated("".join(HOSTILE))))
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert text.isascii()
    assert not set("<>&") & set(text)
    json.loads(text)


@pytest.mark.parametrize("page", [render_report(example.result(example.evaluated("a.cif"))), render_viewer([])])
def test_nothing_comes_from_elsewhere(page):
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|@font-face", page, re.IGNORECASE)
    for call in ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "EventSource", "import(", "eval(", "innerHTML"):
        assert call not in page
    for tag, attributes in Page(page).tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_policy_allows_just_these_scripts_and_styles():
    page = Page(render_report(example.result()))
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none';")
    for kind, text in (("script", page.texts("script")[1]), ("style", page.texts("style")[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_numbers_that_are_none():
    """NaN and infinity are no JSON: they arrive as null, and a column of them as none."""
    rows = [example.record(i, e_above_hull=value) for i, value in enumerate([math.nan, math.inf, None])]
    file = example.evaluated("a.cif", records=rows)
    file["summary"]["avg_energy_above_hull_per_atom"] = {"value": math.nan, "unit": "eV/atom", "of": 0}
    (read,) = Page(render_report(example.result(file))).data["files"]
    assert "e_above_hull" not in read["columns"]
    assert read["summary"]["avg_energy_above_hull_per_atom"]["value"] is None


def test_arrays_are_lists():
    cell = np.eye(3) * 5.64
    crystal = example.rock_salt("Na", "Cl") | {"cell": cell, "e_above_hull": np.float64(0.1234567891)}
    (read,) = Page(render_viewer([crystal])).data["gallery"]
    assert (read["cell"], read["e_above_hull"]) == (cell.tolist(), 0.123457)


def test_a_reference_of_many_values_is_thinned():
    values = np.random.default_rng(0).normal(5, 1, size=50_000)
    file = example.evaluated("a.cif", reference={"density": values, "num_elements": [3] * 70 + [2] * 30})
    reference = Page(render_report(example.result(file))).data["files"][0]["reference"]
    assert len(reference["density"]) == SAMPLE
    for share in (0.05, 0.5, 0.95):
        assert np.quantile(reference["density"], share) == pytest.approx(np.quantile(values, share), abs=0.01)
    assert reference["num_elements"] == [[2, 30], [3, 70]]


def test_galleries_hold_what_can_be_drawn_and_no_more():
    good = example.rock_salt("Na", "Cl")
    bad = [
        good | {"cell": None},
        good | {"cell": [[1, 0, 0], [0, 1, 0]]},
        good | {"cell": [[1, 0, 0], [0, math.nan, 0], [0, 0, 1]]},
        good | {"species": ["Na"]},
        good | {"species": [], "frac_coords": []},
        {"name": "nothing"},
    ]
    assert Page(render_viewer([*bad, good])).data["gallery"] == [good]
    many = example.evaluated("a.cif", gallery=[good] * 70)
    assert len(Page(render_report(example.result(many))).data["files"][0]["gallery"]) == GALLERY


def reasons(*texts: str) -> list[dict]:
    return [{"reason": text, "count": 10 - i, "example": f"gen_{i}"} for i, text in enumerate(texts)]


def test_reasons_that_differ_by_numbers_or_names_are_one():
    grouped = group_reasons(
        reasons(
            "energy: atoms 0.44 angstrom apart",
            "composition: charges do not balance",
            "energy: atoms 0.06 angstrom apart",
            *(f"energy: no EMT-potential for {symbol}" for symbol in ("Fe", "Co", "CoO2", "Ti", "Fe")),
        )
    )
    assert grouped == [
        {"reason": "energy: no EMT-potential for Fe, Co, CoO2, ...", "count": 25, "example": "gen_3", "kinds": 5},
        {"reason": "energy: atoms 0.06 to 0.44 angstrom apart", "count": 18, "example": "gen_0", "kinds": 2},
        {"reason": "composition: charges do not balance", "count": 9, "example": "gen_1", "kinds": 1},
    ]


def test_reasons_that_differ_otherwise_stay_apart():
    texts = ("no such key 'a b'", "no such file 'a b'", "2 rows", "2 rows or 3", "a CIF without atoms", "a POSCAR")
    assert [(one["reason"], one["kinds"]) for one in group_reasons(reasons(*texts))] == [(text, 1) for text in texts]


@pytest.mark.parametrize("result", [{}, {"files": None}, {"files": []}, {"files": [{}]}, {"files": [{"records": []}]}])
def test_empty_results_are_pages(result):
    assert Page(render_report(result)).data["kind"] == "report"


def test_titles():
    files = [example.evaluated(name) for name in ("a.cif", "b & c.csv")]
    assert Page(render_report(example.result(*files))).texts("title") == ["Evaluation of a.cif, b & c.csv"]
    assert Page(render_viewer([], title="x < y")).texts("title") == ["x < y"]


def test_pages_stay_small():
    """About 150 bytes a crystal, beside scripts and styles of about 90 kB."""
    page = render_report(example.result(example.evaluated("a.cif", crystals=800)))
    assert len(page) < 300_000
