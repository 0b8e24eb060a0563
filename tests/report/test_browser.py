"""The report in a browser: it draws, sorts, filters and turns without an error, on a desk and on a phone."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cfx.report import as_drawn, render_report, render_shortlist, render_viewer

from . import example
from .browser import EXECUTABLE, NAMES, Browser, Tab

HOSTILE = "</script><img src=x onerror=document.documentElement.dataset.hostile=1><b>"
DESK, PHONE = 1280, 360

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason=f"needs one of {', '.join(NAMES)} on PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    process = Browser(tmp_path_factory.mktemp("profile"))
    yield process
    process.close()


@pytest.fixture
def show(browser, tmp_path) -> Callable[..., Tab]:
    """Opens a page, which must come up well, and be well when the test is done with it."""
    tabs = []

    def open_page(page: str, width: int = DESK) -> Tab:
        file = tmp_path / f"{len(tabs)}.html"
        file.write_text(page, encoding="utf-8")
        tabs.append((Tab(browser, file, width), file))
        return tabs[-1][0]

    yield open_page
    for tab, file in tabs:
        check(tab, file)


def check(tab: Tab, file: Path) -> None:
    """No error, nothing fetched, nothing wider than the page, a name for every picture and headers in every table."""
    root = tab.run("({...document.documentElement.dataset})")
    assert "error" not in root, root["error"]
    assert "hostile" not in root
    assert root["ready"] == "yes"
    assert tab.seen("Runtime.exceptionThrown") == []
    assert [one["entry"] for one in tab.seen("Log.entryAdded") if one["entry"]["level"] == "error"] == []
    assert [event["request"]["url"] for event in tab.seen("Network.requestWillBeSent")] == [file.as_uri()]
    assert tab.run("[innerWidth, document.documentElement.scrollWidth]") == [tab.width, tab.width]
    outside = (
        "node => !node.closest('.scroll, .hidden, svg, #tip') && node.getBoundingClientRect().right > innerWidth + 1"
    )
    assert tab.run(f"[...document.querySelectorAll('main *')].filter({outside}).map(node => node.outerHTML)") == []
    assert tab.run("[...document.querySelectorAll('canvas, .plot svg')].filter(node => !node.ariaLabel).length") == 0
    headless = "table => !table.closest('[hidden]') && !table.querySelector('th[scope=col]')"
    assert tab.run(f"[...document.querySelectorAll('table')].filter({headless}).length") == 0
    twice = "ids => ids.length - new Set(ids).size"
    assert tab.run(f"({twice})([...document.querySelectorAll('[id]')].map(node => node.id))") == 0


def texts(tab: Tab, selector: str) -> list[str]:
    return tab.run(f"[...document.querySelectorAll({selector!r})].map(node => node.textContent)")


def column(tab: Tab, name: str) -> list[str]:
    """The cells of a column of the table of crystals."""
    place = texts(tab, ".crystals thead th").index(name) + 1
    return texts(tab, f".crystals tbody tr > :nth-child({place})")


def status(tab: Tab) -> str:
    return texts(tab, ".pager [role=status]")[0]


def click(tab: Tab, selector: str, index: int = 0) -> None:
    tab.run(f"document.querySelectorAll({selector!r})[{index}].click()")


def enter(tab: Tab, index: int, text: str) -> None:
    """Types into one of the fields above the table."""
    tab.run(
        f"(node => {{ node.value = {text!r}; node.dispatchEvent(new Event('input')); }})"
        f"(document.querySelectorAll('.controls input')[{index}])"
    )


PIXELS = """(canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width || 1, canvas.height || 1);
  let [painted, sum] = [0, 0];
  for (let i = 0; i < data.length; i += 4) {
    painted += data[i + 3] > 0;
    sum = (sum * 31 + data[i] + 7 * data[i + 1] + 13 * data[i + 2] + 17 * data[i + 3]) % 1000000007;
  }
  return [painted, sum];
})"""


def picture(tab: Tab, index: int = 0, selector: str = ".crystal canvas") -> tuple[int, int]:
    """Painted pixels of a canvas, and a sum that changes with the picture, once all that was asked for is drawn."""
    tab.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    painted, checksum = tab.run(f"{PIXELS}([...document.querySelectorAll({selector!r})].at({index}))")
    return painted, checksum


def bring(tab: Tab, index: int = 0) -> tuple[float, float]:
    """Scrolls to a crystal of the gallery; where its middle is."""
    canvas = f"document.querySelectorAll('.crystal canvas')[{index}]"
    tab.run(f"{canvas}.scrollIntoView({{ block: 'center', behavior: 'instant' }})")
    tab.wait(f"{PIXELS}({canvas})[0]")
    return tuple(tab.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({canvas}.getBoundingClientRect())"))


def one_file(**changes) -> str:
    return render_report(example.result(example.evaluated("a.cif", **changes)))


def test_summary_and_charts(show):
    tab = show(one_file())
    valid, unique, energy, density = texts(tab, ".metrics tbody tr:not(.group)")
    for part in ("Valid", "70.0\u202f%", "28 of 40", "95\u202f% interval 65.0 to 75.0\u202f%"):
        assert part in valid
    assert "Unique" in unique
    for part in ("0.051\u202feV/atom", "over 40 crystals", "standard error 0.004"):
        assert part in energy
    assert "0.400\u202fg/cm³" in density
    assert "Space group as asked" in texts(tab, "#metrics .note")[0]
    settings = dict(zip(texts(tab, ".file dt"), texts(tab, ".file dd"), strict=True))
    assert settings == {"potential": "chgnet 0.4.2", "relaxed": "no", "fmax": "0.05", "hull": "–"}
    assert texts(tab, "figcaption h3") == [
        "Energy above the hull",
        "Density",
        "Number of elements",
        "Space groups found",
    ]
    assert texts(tab, "#distributions text.mark") == ["0: on the hull", "0.1: metastable"]
    assert tab.run("document.querySelectorAll('.plot svg').length") == 4
    assert texts(tab, "#failures tbody th") == ["no structure in the rowfor example gen_9"]


def test_funnel(show):
    """Of 40: every 10th cannot be read, and the other tests each take more away."""
    tests = [
        lambda i: True,
        lambda i: i % 10 != 9,
        lambda i: i % 5,
        lambda i: i % 4,
        lambda i: i % 3,
        lambda i: 0.02 * (i % 9) - 0.03 <= 0.1,
        lambda i: 0.02 * (i % 9) - 0.03 <= 0,
    ]
    counts = [sum(all(test(i) for test in tests[: k + 1]) for i in range(40)) for k in range(len(tests))]
    assert len(set(counts)) == len(counts)
    tab = show(one_file())
    stages = ["all", "readable", "valid", "unique", "novel", "metastable", "stable"]
    assert texts(tab, ".funnel tbody th span") == stages
    assert [int(text) for text in texts(tab, ".funnel .stage strong")] == counts


def test_histograms_count_everything(show):
    """Shares of each figure's table add up to 100 %, of crystals and of the reference."""
    tab = show(one_file())
    for i, count in enumerate((36, 36, 36)):
        rows = tab.run(
            f"[...document.querySelectorAll('#distributions figure')][{i}].querySelectorAll('tbody tr').values()"
            ".map(row => [...row.children].map(cell => cell.textContent)).toArray()"
        )
        assert sum(int(row[1].split("(")[1][:-1]) for row in rows) == count
        for k in range(1, len(rows[0])):
            assert sum(float(row[k].split("\u202f")[0]) for row in rows) == pytest.approx(100, abs=1)
    assert len(rows[0]) == 3, "the reference has a column of its own"


def test_table_pages_sorts_and_filters(show):
    tab = show(one_file())
    assert "Asked for" not in texts(tab, ".crystals thead th")
    assert (len(column(tab, "Name")), status(tab)) == (25, "1 to 25 of 40 crystals")
    click(tab, ".pager button", 1)
    assert column(tab, "Name") == [f"gen_{i}" for i in range(25, 40)]
    assert status(tab) == "26 to 40 of 40 crystals"

    energies = sorted(0.02 * (i % 9) - 0.03 for i in range(40) if i % 10 != 9)
    shown = [f"{value:.3f}".replace("-", "−") for value in energies]
    click(tab, ".crystals [data-column=e_above_hull] button")
    assert column(tab, "Above hull, eV/atom") == shown[:25]
    click(tab, ".crystals [data-column=e_above_hull] button")
    assert column(tab, "Above hull, eV/atom") == shown[::-1][:25], "what is missing comes last both ways"
    assert tab.run("document.querySelector('[data-column=e_above_hull]').ariaSort") == "descending"
    click(tab, ".crystals [data-column=name] button")
    assert column(tab, "Name")[:11] == [f"gen_{i}" for i in range(11)], "2 comes before 10"

    enter(tab, 0, "STRUCTURE no")
    assert column(tab, "Name") == ["gen_9", "gen_19", "gen_29", "gen_39"]
    assert status(tab) == "1 to 4 of 4 crystals, of 40 in the file"
    enter(tab, 0, "nowhere")
    assert status(tab) == "No crystal is like that."
    enter(tab, 0, "")
    enter(tab, 1, "na,Cl")
    assert set(column(tab, "Formula")) == {"Na4Cl4"}


def test_stable_unique_novel_filter(show):
    tab = show(one_file())
    tab.run(
        "(node => { node.selectedIndex = 1; node.dispatchEvent(new Event('change')); })"
        "(document.querySelector('.controls select'))"
    )
    expected = [row["name"] for row in map(example.record, range(40)) if row["unique"] and row["novel"]]
    expected = [name for name in expected if example.record(int(name[4:]))["e_above_hull"] <= 0.1]
    assert column(tab, "Name") == expected


def test_elements_count_and_filter(show):
    tab = show(one_file())
    potassium = sum(i % 4 == 1 and i % 10 != 9 for i in range(40))
    cell = '.element[aria-label^="Potassium:"]'
    assert tab.run(f"document.querySelector('{cell}').ariaLabel").startswith(f"Potassium: {potassium} crystals")
    assert tab.run("document.querySelectorAll('.element').length") == 118
    assert tab.run("document.querySelectorAll('button.element').length") == 7
    click(tab, cell)
    assert status(tab) == f"1 to {potassium} of {potassium} crystals, of 40 in the file"


def test_the_periodic_table_has_its_shape(show):
    """Places of elements, as rows and columns of 18."""
    tab = show(one_file())
    places = tab.run("Object.fromEntries(ELEMENTS.map(({ number, symbol }) => [symbol, placeOf(number)]))")
    assert len({tuple(place) for place in places.values()}) == 118
    expected = {"H": [1, 1], "He": [1, 18], "Be": [2, 2], "B": [2, 13], "Sc": [4, 3], "Hf": [6, 4], "Rn": [6, 18]}
    expected |= {"La": [9, 3], "Lu": [9, 17], "Ac": [10, 3], "Lr": [10, 17], "Rf": [7, 4], "Og": [7, 18]}
    assert {symbol: places[symbol] for symbol in expected} == expected


def test_facts_agree_with_pymatgen(show):
    from pymatgen.core import Element
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    tab = show(one_file())
    symbols, radii = tab.run("[ELEMENTS.map(one => one.symbol), ELEMENTS.map(one => one.radius)]")
    assert symbols == [Element.from_Z(z).symbol for z in range(1, 119)]
    assert (radii[7], radii[25]) == (0.66, 1.32)
    assert tab.run("ELEMENTS.every(one => /^#[0-9a-f]{6}$/.test(one.color))")
    groups = tab.run("SPACE_GROUPS")
    standard = [sg_symbol_from_int_number(number) for number in range(1, 231)]
    # Monoclinic groups have short symbols here: P2/m, not P12/m1.
    assert groups[:2] + groups[15:] == standard[:2] + standard[15:]
    assert [symbol[0] + symbol[1:].replace("1", "", 1)[:-1] for symbol in standard[2:15]] == groups[2:15]


def test_cells_look_complete(show):
    """Rock salt on the corners: 14 atoms of one kind, 13 of the other; 6 neighbours for the one in the middle."""
    tab = show(one_file())
    scene = "makeScene(FILES[0].gallery[0])"
    atoms = tab.run(f"{scene}.atoms.map(atom => atom.element.symbol)")
    assert (atoms.count("Na"), atoms.count("Cl")) == (14, 13)
    assert tab.run(f"{scene}.edges.length") == 12
    middle = "({ atoms, bonds }) => bonds.filter(pair => pair.some(atom => norm(atom.at) < 0.1)).length"
    assert tab.run(f"({middle})({scene})") == 6


def test_views_stay_rotations(show):
    """However far one turns, rows stay orthonormal; a view along a skew vector has it point at the reader."""
    tab = show(one_file())
    tab.run("globalThis.cell = [[3, 0.5, 0], [-1, 4, 0.2], [0.3, 1, 6]]")
    for axis in range(3):
        view = f"viewAlong(cell, {axis})"
        assert tab.run(f"{view}.map(row => dot(row, unit(cell[{axis}])))") == pytest.approx([0, 0, 1], abs=1e-12)
        tab.run(f"globalThis.view = {view}; for (let i = 0; i < 500; i++) view = turned(view, 0.3, -0.7)")
        gram = tab.run("view.map(a => view.map(b => dot(a, b)))")
        for i in range(3):
            assert gram[i] == pytest.approx([float(i == j) for j in range(3)], abs=1e-9)
        assert tab.run("dot(cross(view[0], view[1]), view[2])") == pytest.approx(1, abs=1e-9)


def test_crystals_turn(show):
    tab = show(one_file())
    assert tab.run("document.querySelectorAll('.crystal').length") == 12
    x, y = bring(tab)
    painted, start = picture(tab)
    assert painted > 5000
    tab.mouse(("mouseMoved", x, y), ("mouseMoved", x + 30, y))
    assert picture(tab)[1] == start, "without a button down, moving does nothing"
    tab.mouse(("mousePressed", x, y))
    tab.mouse(("mouseMoved", x + 50, y + 20), buttons=1)
    tab.mouse(("mouseReleased", x + 50, y + 20))
    dragged = picture(tab)[1]
    tab.mouse(("mouseMoved", x, y))
    assert picture(tab)[1] == dragged
    tab.mouse(("mouseWheel", x, y), deltaX=0, deltaY=-300)
    tab.wait(f"{PIXELS}(document.querySelector('.crystal canvas'))[1] !== {dragged}")
    zoomed, _ = picture(tab)
    assert zoomed > picture(tab, 1)[0]
    tab.press("0")
    assert picture(tab)[1] == start
    tab.press("ArrowLeft")
    assert picture(tab)[1] != start


def test_the_wheel_scrolls_past_crystals(show):
    """Only a crystal that was clicked takes the wheel from the page."""
    tab = show(one_file())
    x, y = bring(tab)
    before, place = picture(tab)[1], tab.run("scrollY")
    tab.mouse(("mouseWheel", x, y), deltaX=0, deltaY=-300)
    tab.wait(f"scrollY < {place}")
    assert picture(tab)[1] == before


def test_crystals_out_of_sight_are_not_drawn(show):
    tab = show(one_file())
    assert [picture(tab, i)[0] for i in (0, -1)] == [0, 0]
    bring(tab)
    assert picture(tab)[0] > 0
    tab.run("scrollTo({ top: 0, behavior: 'instant' })")
    time.sleep(0.3)
    drawn = "[...Viewer.all][0].drawn"
    count = tab.run(drawn)
    tab.run("[...Viewer.all][0].turn(1, 0)")
    picture(tab)
    assert tab.run(drawn) == count
    bring(tab)
    tab.wait(f"{drawn} > {count}")


def test_large_view(show):
    tab = show(one_file(), PHONE)
    bring(tab)
    click(tab, ".crystal .icon")
    tab.wait(f"{PIXELS}(document.querySelector('canvas.large'))[0]")
    painted, start = picture(tab, 0, "canvas.large")
    assert painted > 10_000
    facts = dict(zip(texts(tab, "dialog dt"), texts(tab, "dialog dd"), strict=True))
    assert facts["Space group"] == "225 Fm-3m"
    assert facts["a, b, c"] == "5.640, 5.640, 5.640\u202fÅ"
    assert facts["α, β, γ"] == "90.00, 90.00, 90.00\u202f°"
    assert facts["Volume"] == "179.41\u202fÅ³"
    click(tab, "dialog .check input")
    assert picture(tab, 0, "canvas.large")[1] != start, "bonds can be left out"
    click(tab, "dialog footer button", 1)
    assert texts(tab, "dialog h2") == ["Na4Br4"]
    assert tab.run("document.querySelector('dialog').scrollWidth <= innerWidth")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog').open")


def test_a_crystal_can_be_saved_as_cif(show, tmp_path):
    """What is saved reads back as the crystal that is drawn; a CIF that came with a crystal is saved as it is."""
    from pymatgen.core import Lattice, Structure

    cell = Lattice.from_parameters(3.1, 4.2, 5.3, 81, 95, 107)
    good = example.rock_salt("Na", "Cl")
    crystals = [
        good | {"cell": cell.matrix.tolist(), "name": "gen \n'1'"},
        good | {"cif": "data_mine\n"},
        good | {"species": ["Na+", *good["species"][1:]], "name": "../../x", "formula": None},
    ]
    tab = show(render_viewer(crystals))
    name, text = tab.download(tmp_path, "document.querySelectorAll('.crystal .cif')[0].click()")
    assert name == "Na4Cl4_gen_1.cif"
    read = Structure.from_str(text, fmt="cif")
    assert read.lattice.parameters == pytest.approx(cell.parameters, abs=1e-4)
    assert sorted(site.specie.symbol for site in read) == sorted(good["species"])
    assert read.matches(Structure(cell, good["species"], good["frac_coords"]), scale=False)
    assert tab.download(tmp_path, "document.querySelectorAll('.crystal .cif')[1].click()") == (
        "Na4Cl4_NaCl.cif",
        "data_mine\n",
    )
    click(tab, ".crystal .icon", 2)
    name, text = tab.download(tmp_path, "[...document.querySelectorAll('dialog .side button')].at(-1).click()")
    assert name == "x.cif"
    assert len(Structure.from_str(text, fmt="cif")) == 8


def test_a_cif_states_the_symmetry_of_a_standard_cell(show, tmp_path):
    """The asymmetric unit and the operations of the group; a primitive cell is written whole, and is the same."""
    import spglib
    from pymatgen.core import Lattice, Structure

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    crystals = [salt, rutile, salt.get_primitive_structure()]
    drawn = [as_drawn(one) | {"name": str(i), "formula": one.formula} for i, one in enumerate(crystals)]
    assert [one["sites"] for one in drawn[:2]] == [[[0, 4, "4a"], [4, 4, "4b"]], [[0, 2, "2a"], [2, 4, "4f"]]]
    assert [one["standard"] for one in drawn] == [True, True, False]
    tab = show(render_viewer(drawn))
    for i, crystal in enumerate(crystals):
        _, text = tab.download(tmp_path, f"document.querySelectorAll('.crystal .cif')[{i}].click()")
        assert text.count("1.000000") == 0 and text.splitlines()[0].startswith(f"# {i}: ")
        assert ("'Fm-3m'" in text, "'P4_2/mnm'" in text, "'P1'" in text) == (i == 0, i == 1, i == 2)
        read = Structure.from_str(text, fmt="cif")
        assert len(read) == len(crystal) and read.matches(crystal, scale=False)
        cell = (read.lattice.matrix, read.frac_coords, read.atomic_numbers)
        assert spglib.get_symmetry_dataset(cell).number == drawn[i]["space_group"]
    click(tab, ".crystal .icon", 1)
    assert texts(tab, "dialog .plain tbody tr") == ["2aTi0.00000.00000.0000", "4fO0.30500.30500.0000"]
    _, text = tab.download(tmp_path, "document.querySelector('main .save').click()")
    assert len(re.findall("^data_", text, re.MULTILINE)) == 3


def test_the_table_can_be_saved_as_csv(show, tmp_path):
    """What is listed, as it is sorted, with all columns, as `cfx eval -o` writes them."""
    rows = [example.record(i, name=f'a "{i}",\nb', e_above_hull=-i / 7) for i in range(30)]
    tab = show(one_file(crystals=30, records=rows))
    enter(tab, 1, "Na")
    click(tab, ".crystals [data-column=e_above_hull] button")
    name, text = tab.download(tmp_path, "document.querySelector('#crystals .save').click()")
    assert name == "a.cif.csv"
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = [row for row in reversed(rows) if row["formula"] and "Na" in row["formula"]]
    assert [row["name"] for row in read] == [row["name"] for row in expected]
    assert [float(row["e_above_hull"]) for row in read] == pytest.approx(
        [row["e_above_hull"] for row in expected], rel=1e-5
    )
    assert [row["valid"] for row in read] == [str(row["valid"]) for row in expected]
    assert set(read[0]) == {key for key in rows[0] if any(row[key] not in (None, "") for row in rows)}


@pytest.mark.parametrize("floor", [-0.2, -0.137])
def test_no_bin_straddles_a_threshold(show, floor):
    """Of crystals on the thresholds and beside them, and some far beyond: bins add up to the counts of the verdicts."""
    heights = [-0.45, floor - 0.001, floor + 0.001, -0.001, 0, 1e-9, 0.001, 0.0999, 0.1, 0.1001, 0.13, 0.33, 5, 11]
    rows = [example.record(0, e_above_hull=height) for height in heights]
    tab = show(one_file(crystals=len(rows), records=rows, floor=floor))
    edges, counts = tab.run(
        "(edges => [edges, countInto(edges, valuesOf(FILES[0], 'e_above_hull'), true)])"
        f"(hullEdges(ascending(valuesOf(FILES[0], 'e_above_hull')), [0, 0.1, {floor}]))"
    )
    for low, high, count in ((-9, floor, 2), (floor, 0, 4), (0, 0.1, 3), (0.1, 99, 5)):
        bins = [
            one for one, left, right in zip(counts, edges, edges[1:], strict=False) if low <= left and right <= high
        ]
        assert sum(bins) == count
    assert sum(counts) == len(heights) and edges[-1] <= 1
    assert f"{floor:.1f}: the floor".replace("-", "−") in texts(tab, "#distributions text.mark")
    assert "2 of 14 lie beyond the right end, up to 11.0\u202feV/atom" in texts(tab, "#distributions .note")[0]


BROKEN_WORDS = """(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const broken = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest("script, style, svg, .hidden, .skip, noscript, [hidden]")) continue;
    for (const match of node.data.matchAll(/[\\p{L}\\d.]{2,24}/gu)) {
      const range = new Range();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const tops = [...range.getClientRects()].map((box) => Math.round(box.top));
      if (new Set(tops).size > 1) broken.push(match[0]);
    }
  }
  return broken;
})()"""


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("width", [390, 1400])
def test_no_word_is_broken(show, width, files):
    """However narrow the screen, numbers of tables included; tables scroll."""
    kinds = {"frac_of_crystals": example.rate(120, 240), "frac_below_floor_structures": example.rate(100, 120)}
    classes = {name: kinds for name in ("intermetallic", "charge-neutral compounds")}
    summary = {
        "avg_hhi_production": {"value": 4062.68, "error": 118.7, "unit": "", "of": 282},
        "wdist_num_elements": {"value": 0.4, "unit": "elements", "of": 282},
        "avg_energy_above_hull_per_atom": {"value": 1.997, "error": 0.1, "unit": "eV/atom", "of": 300},
    }
    file = example.evaluated("a.cif", classes=classes, summary=summary)
    file["settings"]["reference"] = "/home/somebody/data/of_many/mp20_subset_train.csv.gz (15,482 crystals)"
    tab = show(render_report(example.result(*[file] * files)), width)
    tab.run("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert tab.run(BROKEN_WORDS) == []
    assert "4,063" in texts(tab, ".metrics td strong")


def test_galleries_say_their_order_and_what_is_wrong(show):
    good = example.rock_salt("Na", "Cl")
    flawed = {"valid": False, "unique": False, "duplicate_of": "gen_1", "novel": False, "matched": "mp-1"}
    low = {"e_above_hull": -0.4, "verdict": "below the floor"}
    gallery = [good | {"e_above_hull": -0.05}, good | flawed, good | low]
    tab = show(one_file(gallery=gallery))
    assert texts(tab, ".order") == [
        "3 of 36 crystals, sorted by energy above the hull, the lowest first; those below the floor come last."
    ]
    assert texts(tab, ".crystal .caption p:not(.faint):not(.warn)")[1::2] == [
        "0.050\u202feV/atom below the hull",
        "on the hull",
        "0.400\u202feV/atom below the hull",
    ]
    assert texts(tab, ".crystal .warn") == ["not valid", "as gen_1", "known: mp-1", tab.run("IMPLAUSIBLE")]
    unknown = [good | {"e_above_hull": None}]
    rows = [example.record(i, e_above_hull=None) for i in range(5)]
    tab = show(one_file(crystals=5, records=rows, gallery=unknown))
    assert texts(tab, ".order")[0].startswith("1 of 5 crystals: valid ones first")


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_a_shortlist_is_a_table_with_its_files(show, tmp_path, width):
    relaxed = {"e_above_hull_unrelaxed": 0.25, "space_group": 1, "space_group_unrelaxed": 225, "converged": False}
    judged = {
        "log_prob": -7.25,
        "second_e_above_hull": 0.07,
        "second_verdict": "metastable",
        "band_gap": 5.0123,
        "band_gap_std": 0.31,
    }
    first = {"rank": 1, "cif_file": "1_NaCl.cif", "cif": "data_1_NaCl\n"}
    crystals = [
        example.rock_salt("Na", "Cl") | relaxed | judged | first,
        example.rock_salt("K", "Br")
        | {"rank": 2, "cif_file": "2_KBr.cif", "cif": "data_2_KBr\n", "name": HOSTILE}
        | {"band_gap": 3.0, "band_gap_std": 1.5, "band_gap_extrapolated": True},
    ]
    file = example.evaluated("a.cif") | {"column": "log_prob", "properties": {"band_gap": "band gap (eV)"}}
    page = render_shortlist(file, crystals, f"2 of 40 {HOSTILE}", "rank,name\n1,x\n", "0.1.0")
    tab = show(page, width)
    assert texts(tab, "h1") == ["Shortlist of a.cif"] and texts(tab, "#heading p") == [f"2 of 40 {HOSTILE}"]
    assert "2 crystals are <b>below</b> the floor" in texts(tab, ".warnings")[0]
    headers = texts(tab, "#crystals thead th")
    assert headers[:5] == ["Rank", "Formula", "log_prob", "Above hull, eV/atom", "Band gap (eV)"]
    assert headers[5:7] == ["Before relaxing, eV/atom", "Above hull, second potential, eV/atom"]
    rows = [texts(tab, f"#crystals tbody tr:nth-child({row}) > *") for row in (1, 2)]
    assert rows[0][:8] == ["1", "Na4Cl4", "−7.250", "0.000", "5.01 ± 0.31", "0.250", "0.070", "1 P1"]
    assert rows[1][:8] == ["2", "K4Br4", "–", "0.000", "3.0, extrapolated", "–", "–", "225 Fm-3m"]
    assert {"no", "metastable"} < set(rows[0]) and HOSTILE in rows[1]
    assert texts(tab, ".crystal h3") == ["1. Na4Cl4", "2. K4Br4"]
    said = {"second potential: 0.070\u202feV/atom above the hull", "Band gap (eV): 5.01 ± 0.31"}
    assert said < set(texts(tab, ".caption p"))
    assert tab.run("getComputedStyle(document.querySelector('.more')).display") == "none"  # all are shown
    for order in (["2", "1"], ["1", "2"]):  # by formula: potassium, sodium; then the other way round
        click(tab, "#crystals [data-column=formula] button")
        assert texts(tab, "#crystals tbody th") == order
    for i, crystal in enumerate(crystals):
        saved = tab.download(tmp_path, f"document.querySelectorAll('#crystals .cif')[{i}].click()")
        assert saved == (crystal["cif_file"], crystal["cif"])
    buttons = "document.querySelectorAll('#crystals .buttons button')"
    assert tab.download(tmp_path, f"{buttons}[0].click()") == ("shortlist.cif", "data_1_NaCl\n\ndata_2_KBr\n")
    assert tab.download(tmp_path, f"{buttons}[1].click()") == ("shortlist.csv", "rank,name\n1,x\n")
    click(tab, "#crystals .link", 0)
    tab.wait("document.querySelector('dialog').open")
    facts = dict(zip(texts(tab, "dialog dt"), texts(tab, "dialog dd"), strict=True))
    assert (facts["Space group"], facts["Space group before relaxing"]) == ("1 P1", "225 Fm-3m")
    assert facts["Before relaxing"] == "0.250\u202feV/atom above the hull"
    assert facts["Remarks"] == "the relaxation did not converge" and facts["Band gap (eV)"] == "5.01 ± 0.31"
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog').open")


def test_three_files_on_a_phone(show):
    rows = [example.record(i, novel=None, e_above_hull=None, name=f"other_{i}") for i in range(20)]
    bare = example.evaluated("bare.csv", 20, records=rows, summary={}, reasons=[], reference=None, gallery=[])
    files = example.evaluated("a.cif"), bare, example.evaluated("a-file-with-a-name-longer-than-a-phone-is-wide.zip")
    tab = show(render_report(example.result(*files)), PHONE)
    assert texts(tab, "h1") == ["Comparison of generated crystals"]
    stages = dict(zip(texts(tab, ".funnel tbody th span"), texts(tab, ".funnel tbody td"), strict=True))
    assert stages["readable"].count("36 ") == 2
    for stage in ("novel", "metastable", "stable"):
        assert stages[stage].count("not evaluated") == 1
    assert texts(tab, ".metrics tbody tr:not(.group) td:nth-child(3)") == ["not evaluated"] * 4
    assert column(tab, "Name")[0] == "gen_0"
    click(tab, '.files input[value="1"]', 1)
    assert column(tab, "Name")[0] == "other_0"
    assert "Novel" not in texts(tab, ".crystals thead th")
    assert tab.run("[...document.querySelectorAll('.files input:checked')].every(input => input.value === '1')")


def test_hostile_names_are_shown_as_they_are(show):
    rows = [example.record(i, name=HOSTILE, formula=HOSTILE, reason=HOSTILE) for i in range(3)]
    crystal = example.rock_salt("Na", "Cl") | {"name": HOSTILE, "formula": HOSTILE, "species": [HOSTILE] * 8}
    reasons = [{"reason": HOSTILE, "count": 1, "example": HOSTILE}]
    file = example.evaluated(HOSTILE, 3, records=rows, gallery=[crystal], settings={HOSTILE: HOSTILE}, reasons=reasons)
    file["summary"][HOSTILE] = {"value": 0.5, "unit": HOSTILE}
    tab = show(render_report(example.result(file) | {"version": HOSTILE}), PHONE)
    assert tab.run("document.querySelectorAll('img, b:not(.bar b, .element b)').length") == 0
    assert column(tab, "Name") == column(tab, "Formula") == column(tab, "Reason") == [HOSTILE] * 3
    assert HOSTILE in tab.run("document.title")
    bring(tab)
    click(tab, ".crystal .icon")
    assert texts(tab, "dialog dd")[0] == HOSTILE


@pytest.mark.parametrize("result", [{}, {"files": [{}]}], ids=["no file", "a file of nothing"])
def test_pages_of_nothing(show, result):
    tab = show(render_report(result), PHONE)
    assert tab.run("document.querySelectorAll('.crystal, .plot').length") == 0


def test_cells_that_are_none_do_no_harm(show):
    """Flat, empty and immense cells, atoms far outside and on one place: no error, whatever they look like."""
    good = example.rock_salt("Na", "Cl")
    strange = [
        good | {"cell": [[0, 0, 0]] * 3},
        good | {"cell": [[1, 0, 0], [2, 0, 0], [0, 1, 0]]},
        good | {"cell": [[1e300, 0, 0], [0, 1e300, 0], [0, 0, 1e300]]},
        good | {"frac_coords": [[-7.5, 1e9, 0.5]] * 8},
        good | {"species": ["", "Xx", "D", "Fe3+", "Fe0.5Ni0.5", "42", "X0+", "\u2028"], "formula": None, "name": None},
    ]
    tab = show(render_viewer([*strange, good]))
    for i in range(len(strange)):
        tab.run(f"document.querySelectorAll('.crystal canvas')[{i}].scrollIntoView({{ behavior: 'instant' }})")
        tab.wait(f"[...Viewer.all][{i}].drawn")
        click(tab, ".crystal .icon", i)
        tab.run("document.querySelector('dialog').close()")
    symbols = tab.run("DATA.gallery[4].species.map(species => elementOf(species).symbol)")
    assert symbols == ["", "Xx", "D", "Fe", "Fe", "42", "X0+", "\u2028"]
    bring(tab, len(strange))
    assert picture(tab, len(strange))[0] > 5000


def test_ten_thousand_rows_are_a_page_at_a_time(show):
    tab = show(one_file(crystals=10_000))
    assert (len(column(tab, "Name")), status(tab)) == (25, "1 to 25 of 10,000 crystals")
    enter(tab, 0, "gen_9999")
    assert column(tab, "Name") == ["gen_9999"]


def test_viewer(show):
    crystals = [
        example.rock_salt("Na", "Cl"),
        example.rock_salt("K", "Br") | {"e_above_hull": None, "space_group": None},
    ]
    tab = show(render_viewer(crystals, title="two.cif"), PHONE)
    assert texts(tab, "h1") == [tab.run("document.title")] == ["two.cif"]
    assert texts(tab, ".crystal h3") == ["Na4Cl4", "K4Br4"]
    bring(tab)
    assert picture(tab)[0] > 5000


def test_a_gallery_grows_on_demand(show):
    tab = show(render_viewer([example.rock_salt("Na", "Cl")] * 30))
    counts = []
    for _ in range(3):
        counts.append(tab.run("document.querySelectorAll('.crystal').length"))
        click(tab, ".more")
    assert counts == [12, 24, 30]
    assert tab.run("document.querySelector('.more').hidden")
