"""cfx eval and cfx hull as a user runs them: real processes, real energies."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

EMT = "ase:ase.calculators.emt:EMT"


def fcc(symbol: str, a: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [symbol], [[0, 0, 0]])


def l12(one: str, three: str, a: float) -> Structure:
    return Structure(
        Lattice.cubic(a), [one, three, three, three], [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    )


COPPER, GOLD, SILVER = fcc("Cu", 3.59), fcc("Au", 4.06), fcc("Ag", 4.06)
CU3AU, AU3CU = l12("Au", "Cu", 3.72), l12("Cu", "Au", 3.95)
SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
PARTIAL = Structure(Lattice.cubic(4), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
CLOSE = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.001]])


def write(path: Path, **structures: Structure | str) -> Path:
    texts = {name: one if isinstance(one, str) else one.to(fmt="cif") for name, one in structures.items()}
    path.write_text("".join(json.dumps({"id": name, "cif": text}) + "\n" for name, text in texts.items()))
    return path


@pytest.fixture
def samples(tmp_path) -> Path:
    """Eight rows: two that are one crystal, and five that something is wrong with."""
    return write(
        tmp_path / "samples.jsonl",
        cu3au=CU3AU,
        again=CU3AU * (2, 1, 1),
        stretched=l12("Cu", "Au", 4.4),
        silver=SILVER,
        salt=SALT,
        partial=PARTIAL,
        close=CLOSE,
        nonsense="data_x\nnonsense",
    )


@pytest.fixture
def hull(cfx, tmp_path) -> Path:
    """Of copper, gold and their alloys, by EMT; silver is not in it."""
    write(tmp_path / "phases.jsonl", cu=COPPER, au=GOLD, cu3au=CU3AU, au3cu=AU3CU, bad=SALT)
    result = cfx("hull", "build", "phases.jsonl", "--potential", EMT, "-o", "emt.hull.npz")
    assert result.returncode == 0, result.stderr
    assert "left out 1 crystal: " in result.stderr and "4 phases" in result.stderr
    return tmp_path / "emt.hull.npz"


def test_from_a_file_to_sun(cfx, samples, hull, tmp_path):
    write(tmp_path / "known.jsonl", cu=COPPER, cu3au=CU3AU * (1, 1, 2))
    arguments = ["--reference", "known.jsonl", "--potential", EMT, "--hull", hull, "--workers", 1]
    result = cfx("eval", samples, *arguments, "-o", "records.csv", "--html", "report.html", "--json")
    assert result.returncode == 0, result.stderr
    [file] = json.loads(result.stdout)["files"]
    summary, rows = file["summary"], {row["name"]: row for row in file["records"]}
    assert list(rows) == ["cu3au", "again", "stretched", "silver", "salt", "partial", "close", "nonsense"]
    assert {name: summary[name]["count"] for name in (
        "avg_structure_validity", "frac_unique_structures", "frac_novel_structures", "frac_stable_structures",
        "frac_on_hull_structures", "frac_novel_unique_stable_structures")} == {
        "avg_structure_validity": 5, "frac_unique_structures": 5, "frac_novel_structures": 4,
        "frac_stable_structures": 2, "frac_on_hull_structures": 2, "frac_novel_unique_stable_structures": 0,
    }  # fmt: skip
    assert all(value["of"] == 8 for value in summary.values() if value and "count" in value)
    assert rows["again"]["matched"] == rows["cu3au"]["matched"] == "cu3au" and rows["silver"]["matched"] is None
    assert (rows["cu3au"]["class"], rows["salt"]["class"], rows["close"]["class"]) == (
        "intermetallic", "charge-neutral", "element")  # fmt: skip
    stable = {kind: one["frac_stable_structures"] for kind, one in file["classes"].items()}
    assert list(stable) == ["element", "intermetallic", "charge-neutral"]
    assert (stable["intermetallic"]["count"], stable["intermetallic"]["of"]) == (2, 3)
    assert stable["element"] is None  # none of silver and overlapping copper has an energy above this hull
    assert rows["again"]["duplicate_of"] == "cu3au" and rows["cu3au"]["unique"] and not rows["cu3au"]["novel"]
    assert rows["cu3au"]["e_above_hull"] == pytest.approx(0, abs=1e-6)
    assert rows["stretched"]["e_above_hull"] > 0.1
    assert (rows["cu3au"]["verdict"], rows["stretched"]["verdict"]) == ("stable", "unstable")
    assert rows["cu3au"]["decomposition"] == "Cu3Au" and rows["silver"]["verdict"] is None
    assert rows["cu3au"]["space_group"] == 221 and rows["cu3au"]["density"] == pytest.approx(CU3AU.density)
    for name, word in {
        "silver": "hull: the hull has no phase with Ag",
        "salt": "energy: ",
        "partial": "read: sites with partial or mixed occupancy",
        "close": "structure: atoms within 0.5 angstrom",
        "nonsense": "read: ",
    }.items():
        assert word in rows[name]["reason"], name
    assert summary["avg_rmsd_from_relaxation"] is None
    with open(tmp_path / "records.csv", newline="") as table:
        stored = list(csv.DictReader(table))
    assert [row["name"] for row in stored] == list(rows)
    assert float(stored[2]["e_above_hull"]) == rows["stretched"]["e_above_hull"]
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!") and "stretched" in page
    assert file["settings"]["hull"].startswith("emt ") and "EMT" in file["settings"]["potential"].upper()


def test_a_table_and_several_files(cfx, samples, tmp_path):
    write(tmp_path / "other.jsonl", cu=COPPER, au=GOLD)
    result = cfx("eval", samples, "other.jsonl", "--workers", 1, "-o", "both.parquet")
    assert result.returncode == 0, result.stderr
    lines = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert "samples.jsonl other.jsonl" in lines
    assert "crystals 8 2" in lines
    assert {"samples.jsonl, by class of composition:", "share of crystals"} <= lines
    assert "intermetallic 37.5 % (3 of 8)" in lines and "element 25.0 % (2 of 8)" in lines
    [unique] = [line for line in lines if line.startswith("unique ")]
    assert "5 of 8" in unique and "2 of 2" in unique
    missing = dict(line.split(": ") for line in lines if line.startswith("not evaluated"))
    assert missing["not evaluated"] == "space group as asked"
    assert missing["not evaluated without --reference"].startswith("novel; novel and unique; distance of densities")
    assert missing["not evaluated without --potential, --hull"] == (
        "metastable (0.1 eV/atom); stable (on the hull); below the floor; energy above hull"
    )
    assert missing["not evaluated without --potential, --relax"] == (
        "RMSD to relaxed; space group changed; relaxation converged"
    )
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "both.parquet").to_pylist()
    assert [row["file"] for row in table] == ["samples.jsonl"] * 8 + ["other.jsonl"] * 2


def test_what_cfx_samples_is_as_asked(cfx, tmp_path):
    result = cfx("sample", "--model", "mini", "--sg", "221", "--n", "4", "-o", "out.cif")
    assert result.returncode == 0, result.stderr
    result = cfx("eval", "out.cif", "--json", "--workers", 1)
    assert result.returncode == 0, result.stderr
    [file] = json.loads(result.stdout)["files"]
    assert [row["space_group_asked"] for row in file["records"]] == [221] * 4
    assert file["summary"]["frac_space_group_as_asked"]["of"] == 4


def test_libraries_keep_their_warnings(cfx, tmp_path):
    """Elements without an electronegativity, of which pymatgen warns wherever it prints or compares formulas."""
    noble = {f"{symbol}{a}": fcc(symbol, a) for symbol in ("He", "Ne", "Ar") for a in (4.2, 5.3)}
    write(tmp_path / "noble.jsonl", **noble)
    arguments = ["noble.jsonl", "--potential", EMT, "--workers"]
    for workers in (1, 2):
        result = cfx("eval", *arguments, workers, "--reference", "noble.jsonl")
        assert result.returncode == 0 and "arning" not in result.stderr, result.stderr
    result = cfx("relax", *arguments, 1, "-o", "out.cif")
    assert result.returncode == 0 and "arning" not in result.stderr, result.stderr


def test_reasons_are_said_once_and_counted(cfx, tmp_path):
    symbols = ("Fe", "Co", "Ti", "V", "Cr", "Mn", "Mo", "W", "Zr", "Hf")
    write(tmp_path / "metals.jsonl", **{symbol: fcc(symbol, 4.0) for symbol in symbols}, tiny=fcc("Cu", 0.3))
    result = cfx("eval", "metals.jsonl", "--potential", EMT, "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\nmetals.jsonl: 1 x ") == 8
    assert "and 4 other reasons" in result.stdout  # the tiny cell has two: as a structure, and for its density
    [file] = json.loads(cfx("eval", "metals.jsonl", "--json", "--workers", 1).stdout)["files"]
    assert file["records"][-1]["reason"] == "structure: a cell of at most 0.1 cubic angstrom"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("pyarrow", ["nowhere.cif", "-o", "x.parquet"]), ("smact", ["--reference", "empty.cif"])],
)
def test_what_is_not_installed_is_told_first(tmp_path, module, arguments):
    write(tmp_path / "good.jsonl", cu=COPPER)
    (tmp_path / "empty.cif").write_text("")
    code = f"import sys; sys.modules[{module!r}] = None; from cfx.cli import main; main()"
    command = [sys.executable, "-c", code, "eval", "good.jsonl", "--potential", EMT, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 6 and module in result.stderr.splitlines()[0], result.stderr
    assert "known crystals" not in result.stderr and result.stdout == ""


def test_a_hull_of_its_own_for_a_second_potential(cfx, tmp_path, monkeypatch):
    """From few structures, with the rest from the first potential's hull; as others would have it with EMT, shifted."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "shifted.py").write_text(
        "from ase.calculators.emt import EMT\nclass Shifted(EMT):\n"
        "    def calculate(self, *args, **kwargs):\n        super().calculate(*args, **kwargs)\n"
        "        self.results['energy'] += self.atoms.symbols.count('Cu') - 2 * self.atoms.symbols.count('Au')\n"
    )
    few = {"cu": COPPER, "au": GOLD, "cu3au": CU3AU, "cuau3": AU3CU}
    layers = Structure(Lattice.tetragonal(2.8, 3.7), ["Cu", "Au"], [[0] * 3, [0.5] * 3])
    write(tmp_path / "few.jsonl", **few, nickel=fcc("Ni", 3.5))
    write(tmp_path / "all.jsonl", **few, layers=layers, silver=SILVER, agcu3=l12("Ag", "Cu", 3.8))
    write(tmp_path / "judged.jsonl", layers=layers, cu3au=CU3AU)
    own = ["few.jsonl", "--potential", "ase:shifted:Shifted", "--fill-from", "first.npz"]
    assert cfx("hull", "build", "all.jsonl", "--potential", EMT, "-o", "first.npz").returncode == 0
    done = cfx("hull", "build", *own, "-o", "wide.npz")
    assert done.returncode == 0 and "phases of first with Ag were not added" in done.stderr, done.stderr
    assert "added 1 phases of first" in done.stderr and "fitted to 4 compositions that both have" in done.stderr
    done = cfx("hull", "build", *own, "--systems-of", "judged.jsonl", "-o", "second.npz")
    assert done.returncode == 0 and "were not added" not in done.stderr, done.stderr
    content = json.loads(cfx("hull", "show", "second.npz", "--json").stdout)
    assert (content["phases"], content["potential"]) == (5, "ase shifted:Shifted")  # without nickel
    assert content["phases_by_origin_of_energy"] == {"offset": 1, "structure": 4}
    arguments = ["judged.jsonl", "--potential", EMT, "--hull", "first.npz", "--workers", 1, "--json"]
    second = ["--second-potential", "ase:shifted:Shifted", "--second-hull", "second.npz"]
    result = cfx("eval", *arguments, *second)
    assert result.returncode == 0, result.stderr
    [file] = json.loads(result.stdout)["files"]
    assert [row["second_e_above_hull"] for row in file["records"]] == pytest.approx([0, 0], abs=0.01)
    assert file["summary"]["frac_verdicts_differ"]["of"] == 2
    nothing = cfx("hull", "build", "judged.jsonl", "--potential", EMT, "--fill-from", "first.npz", "-o", "x.npz")
    assert nothing.returncode == 3 and "too few compositions" in nothing.stderr
    corrected = cfx(
        "hull", "build", "few.jsonl", "--potential", f"{EMT}:mp2020", "--fill-from", "first.npz", "-o", "x.npz"
    )
    assert corrected.returncode == 2 and "cannot be compared with the raw energies" in corrected.stderr


def test_a_hull_and_what_it_lacks(cfx, hull, tmp_path):
    (tmp_path / "list.csv").write_text("formula,e\nCu3Au,0\nCuAu,0\nAg,0\nCuAu,0\n")
    result = cfx("hull", "show", hull, "--reference", "list.csv", "--json")
    content = json.loads(result.stdout)
    assert (content["phases"], content["elements"], content["scale"]) == (4, 2, "raw")
    assert content["missing"] == ["CuAu", "Ag"]
    assert "missing: 2: CuAu, Ag" in cfx("hull", "show", hull, "--reference", "list.csv").stdout


def test_a_chemical_system_of_a_hull(cfx, hull, tmp_path):
    (tmp_path / "list.csv").write_text("formula\nCu3Au\nCuAu\nAgAu\nAu2\n")
    result = cfx("hull", "show", hull, "--system", "Cu-Au", "--reference", "list.csv", "--json")
    content = json.loads(result.stdout)
    assert content["system"] == "Cu-Au" and content["missing"] == ["CuAu"]  # AgAu is of another system
    phases = {one["formula"]: one for one in content["phases_of_the_system"]}
    assert list(phases) == ["Au", "Cu", "Cu3Au", "CuAu3"]
    assert [one["id"] for one in phases.values()] == ["au", "cu", "cu3au", "au3cu"]
    assert {one["origin"] for one in phases.values()} == {"structure"}
    assert phases["Cu3Au"]["formation_energy_per_atom"] == pytest.approx(
        phases["Cu3Au"]["energy_per_atom"]
        - 0.75 * phases["Cu"]["energy_per_atom"]
        - 0.25 * phases["Au"]["energy_per_atom"]
    )
    assert phases["Cu"]["e_above_hull"] == pytest.approx(0) and phases["Cu"]["formation_energy_per_atom"] == 0
    shown = {" ".join(line.split()) for line in cfx("hull", "show", hull, "--system", "Cu").stdout.splitlines()}
    assert "phases of Cu, energies in eV/atom:" in shown and "energy formation energy above the hull id origin" in shown
    assert f"Cu {phases['Cu']['energy_per_atom']:.3f} 0.000 0.000 cu structure" in shown
    wrong = cfx("hull", "show", hull, "--system", "Cu-Xy")
    assert wrong.returncode == 2 and "'Xy' is not an element" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["nowhere.cif"], 3, "no such file"),
        (["good.jsonl", "nowhere.cif", "--reference", "empty.cif"], 3, "nowhere.cif"),  # before anything is read
        (["empty.cif"], 3, "holds no crystals"),
        (["bad.jsonl"], 3, "none of the 2 crystals"),
        (["good.jsonl", "--hull", "x.npz"], 2, "potential"),
        (["good.jsonl", "--relax"], 2, "potential"),
        (["good.jsonl", "--potential", EMT, "--fix-symmetry"], 2, "--fix-symmetry is for relaxations"),
        (["good.jsonl", "--potential", EMT, "--structures", "x.cif"], 2, "--structures is for relaxed crystals"),
        (["good.jsonl", "--potential", EMT, "--relax", "--structures", "x.csv"], 2, "x.csv"),
        (["good.jsonl", "--potential", EMT, "--relax", "--structures", "good.cif"], 8, "good.cif exists"),
        (["good.jsonl", "--second-hull", "x.npz"], 2, "a second hull needs a second potential"),
        (["good.jsonl", "--second-potential", EMT], 2, "a second potential needs a first one"),
        (["good.jsonl", "--potential", "chgnet", "--second-potential", EMT], 2, "--second-hull"),
        (["good.jsonl", "--potential", "magic"], 2, "magic"),
        (["good.jsonl", "--potential", EMT, "--hull", "nowhere.npz"], 3, "nowhere.npz"),
        (["good.jsonl", "--potential", EMT, "--hull", "good.jsonl"], 3, "good.jsonl"),
        (["good.jsonl", "--reference", "empty.cif"], 3, "empty.cif"),
        (["good.jsonl", "-o", "records.txt"], 2, "records.txt"),
        (["good.jsonl", "-o", "good.csv"], 8, "good.csv exists"),
        (["good.jsonl", "--html", "no/such/place.html"], 8, "place.html"),
        (["good.jsonl", "--scheduler", "tcp://127.0.0.1:1"], 5, "Dask"),
    ],
)
def test_errors_are_one_line(cfx, tmp_path, arguments, code, word):
    write(tmp_path / "good.jsonl", cu=COPPER)
    write(tmp_path / "bad.jsonl", partial=PARTIAL, nonsense="x")
    (tmp_path / "empty.cif").write_text("")
    (tmp_path / "good.csv").write_text("mine")
    (tmp_path / "good.cif").write_text("mine")
    result = cfx("eval", *arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert lines[0].startswith("error: ") and word in lines[0]
    assert (tmp_path / "good.csv").read_text() == (tmp_path / "good.cif").read_text() == "mine"


def test_a_corrected_potential_needs_a_corrected_hull(cfx, hull, samples):
    result = cfx("eval", samples, "--potential", f"{EMT}:mp2020", "--hull", hull)
    assert result.returncode == 2 and "corrected energies (mp2020)" in result.stderr


def test_the_scale_is_proven_or_taken_on_trust(cfx, tmp_path):
    """A hull by something else than the potential that judges."""
    write(tmp_path / "alloys.jsonl", cu3au=CU3AU)
    entries = [{"composition": {symbol: 1}, "energy": 0.0, "correction": 0.0} for symbol in ("Cu", "Au")]
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    arguments = ["eval", "alloys.jsonl", "--hull", "entries.json", "--hull-scale", "raw", "--workers", 1]
    result = cfx(*arguments, "--potential", EMT)
    assert result.returncode == 0 and "could not be tested" in result.stderr, result.stderr
    assert "below the hull" not in result.stderr
    entries[0]["energy"] = 1.0  # a phase that anything beats
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    assert "1 of 1 crystals are more than 0.1 eV/atom below the hull" in cfx(*arguments, "--potential", EMT).stderr


def test_below_the_floor_nothing_is_stable(cfx, tmp_path):
    """A hull whose copper and gold are far too high: alloys are below it, but that is no merit."""
    write(tmp_path / "alloys.jsonl", cu3au=CU3AU, au3cu=AU3CU, cu=COPPER)
    entries = [{"composition": {symbol: 1}, "energy": energy, "correction": 0.0}
               for symbol, energy in (("Cu", 0.0), ("Au", 1.0))]  # fmt: skip
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    arguments = ["eval", "alloys.jsonl", "--hull", "entries.json", "--hull-scale", "raw", "--potential", EMT]
    result = cfx(*arguments, "--workers", 1, "--json", "--html", "report.html")
    [file] = json.loads(result.stdout)["files"]
    assert [row["verdict"] for row in file["records"]] == ["below the floor", "below the floor", "stable"]
    assert "hull: more than 0.2 eV/atom below it: in a gap" in file["records"][0]["reason"]
    assert file["records"][0]["decomposition"] == "0.75 Cu + 0.25 Au"
    counts = {name: value["count"] for name, value in file["summary"].items() if value and "count" in value}
    assert counts["frac_below_floor_structures"] == 2
    assert counts["frac_on_hull_structures"] == counts["frac_stable_structures"] == 1
    assert file["gallery"][0]["name"] == "cu" and len(file["gallery"]) == 3
    [warning] = [line for line in file["warnings"] if "below the floor of -0.2 eV/atom" in line]
    assert warning.startswith("2 of 3 crystals") and warning in result.stderr
    assert any("could not be tested" in line for line in file["warnings"])
    assert warning in (tmp_path / "report.html").read_text()
    result = cfx(*arguments, "--workers", 1, "--e-hull-floor", -2)
    assert "3 of 3" in next(line for line in result.stdout.splitlines() if line.startswith("stable "))


def test_two_potentials(cfx, samples, hull, tmp_path):
    """The bundled hull is CHGNet's own, and no hull of another."""
    pytest.importorskip("chgnet", reason="chgnet is not installed")
    arguments = ["eval", samples, "--potential", EMT, "--hull", hull, "--second-potential", "chgnet", "--workers", 1]
    result = cfx(*arguments, "--json", "-o", "records.csv", "--html", "report.html")
    assert result.returncode == 0, result.stderr
    [file] = json.loads(result.stdout)["files"]
    rows, summary = {row["name"]: row for row in file["records"]}, file["summary"]
    for row in rows.values():
        first, second = row["e_above_hull"], row["second_e_above_hull"]
        known = None not in (first, second)
        assert row["e_above_hull_difference"] == (pytest.approx(second - first) if known else None)
    assert rows["silver"]["e_above_hull"] is None and rows["silver"]["second_verdict"] is not None
    assert rows["silver"]["second_decomposition"] == "Ag"
    assert rows["cu3au"]["second_e_above_hull"] == pytest.approx(0, abs=0.02)
    assert rows["stretched"]["second_verdict"] == "unstable"
    assert summary["frac_confirmed_stable_structures"]["count"] == 2  # cu3au, twice
    assert summary["avg_e_above_hull_difference"]["of"] == 2
    assert summary["median_abs_e_above_hull_difference"]["of"] == 3  # with the stretched one, unstable to both
    assert file["settings"]["second hull"].startswith("chgnet-mp")
    assert "second_decomposition" in (tmp_path / "records.csv").read_text().partition("\n")[0].split(",")
    assert file["gallery"][0]["second_e_above_hull"] is not None
    table = cfx(*arguments).stdout
    assert "metastable by both" in table and "verdicts differ" in table
    refused = cfx("eval", samples, "--potential", "chgnet", "--second-potential", EMT, "--second-hull", "chgnet-mp")
    assert refused.returncode == 2 and "needs one of its own" in refused.stderr and "--fill-from" in refused.stderr


@pytest.mark.slow
def test_an_interrupt(start_cfx, tmp_path, monkeypatch):
    """While energies are computed one by one."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    crystals = {f"c{i}": l12("Cu", "Au", 3.9 + i / 10000) * (3, 3, 3) for i in range(1200)}
    write(tmp_path / "many.jsonl", **crystals)
    (tmp_path / "told.py").write_text(
        "from pathlib import Path\nfrom ase.calculators.emt import EMT\nclass Told(EMT):\n"
        "    def calculate(self, *args, **kwargs):\n        Path('begun').touch()\n"
        "        super().calculate(*args, **kwargs)\n"
    )
    outputs = ["-o", "out.csv", "--shortlist", "best", "--sort", "density"]
    process = start_cfx("eval", "many.jsonl", "--potential", "ase:told:Told", "--workers", 1, *outputs)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and "error: stopped evaluating many.jsonl" in stderr
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob("best*"))


def test_on_a_dask_cluster(cfx, samples, tmp_path):
    distributed = pytest.importorskip("distributed")
    write(tmp_path / "known.jsonl", cu=COPPER, cu3au=CU3AU)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        arguments = [samples, "--reference", "known.jsonl", "--json"]
        there = cfx("eval", *arguments, "--scheduler", cluster.scheduler_address)
    assert there.returncode == 0, there.stderr
    here = cfx("eval", *arguments, "--workers", 1)
    assert json.loads(there.stdout)["files"] == json.loads(here.stdout)["files"]
