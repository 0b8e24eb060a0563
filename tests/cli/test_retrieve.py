"""cfx retrieve as a user runs it: known crystals that models make again."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import warnings
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from cfx.data.read import parse_structure, read_records

from .test_eval import AU3CU, CLOSE, COPPER, CU3AU, GOLD, SALT, SILVER, write

KNOWN = {
    "mp-1": (COPPER, 0.5),
    "mp-2": (CU3AU, 2.5),
    "mp-3": (AU3CU, 1.5),
    "mp-4": (SILVER, 2.5),
    "mp-5": (SALT, 5.1),
    "mp-6": (CLOSE * (2, 2, 2), None),
}
PROPERTIES = Path(__file__).parents[2] / "src" / "cfx" / "resources" / "properties"


def table(path: Path, crystals: dict[str, tuple[Structure | str, float | None]]) -> Path:
    """A CSV as data sets have it."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["material_id", "score", "comment", "cif"])
        for name, (crystal, score) in crystals.items():
            cif = crystal if isinstance(crystal, str) else crystal.to(fmt="cif")
            rows.writerow([name, "" if score is None else score, "none", cif])
    return path


@pytest.fixture
def reference(tmp_path) -> Path:
    """With a row that is not a crystal in between, so that rows are not numbers of crystals."""
    rows = list(KNOWN.items())
    return table(tmp_path / "known.csv", dict([*rows[:2], ("bad", ("nonsense", 9.0)), *rows[2:]]))


@pytest.fixture
def before(tmp_path) -> Path:
    """Finds copper twice, and gold, which nobody knows; one row is not a crystal."""
    return write(tmp_path / "before.jsonl", a=COPPER * (2, 1, 1), b=GOLD, c=COPPER, d="nonsense")


@pytest.fixture
def after(tmp_path) -> Path:
    """Finds an alloy, strained as a whole, silver, and salt."""
    larger = CU3AU.copy()
    larger.scale_lattice(1.2 * larger.volume)
    return write(tmp_path / "after.jsonl", a=larger, b=SILVER, c=SALT, d=SILVER, e=GOLD)


def run(cfx, *arguments: object):
    result = cfx("retrieve", *arguments, "--workers", 1)
    assert result.returncode == 0, result.stderr
    return result


def test_files_before_and_after_side_by_side(cfx, reference, before, after, tmp_path):
    files = ["--from", before.name, "--from", after.name]
    arguments = ["--reference", reference.name, "--property", "score", "--top", "1,2,50", *files]
    result = json.loads(run(cfx, *arguments, "--json", "-o", "found.csv", "--plot", "found.svg").stdout)
    assert result["reference"] == {"name": "known.csv", "crystals": 6, "ranked": 5}
    assert result["property"] == {"name": "score", "about": "column score of known.csv", "unit": "", "best": "highest"}
    first, second = result["sources"]
    assert [first[key] for key in ("name", "sampled", "failed", "known", "distinct")] == ["before.jsonl", 4, 1, 2, 1]
    assert [second[key] for key in ("name", "sampled", "failed", "known", "distinct")] == ["after.jsonl", 5, 0, 4, 3]
    assert first["found"] == [
        {"rank": 5, "name": "mp-1", "row": 0, "formula": "Cu", "value": 0.5, "times": 2},
    ]
    # Of two crystals of one value, both have the better place; the one found more often comes first.
    assert [(one["rank"], one["name"], one["row"], one["times"]) for one in second["found"]] == [
        (1, "mp-5", 5, 1),
        (2, "mp-4", 4, 2),
        (2, "mp-2", 1, 1),
    ]
    assert [(one["k"], one["found"], one["of"]) for one in first["top"]] == [(1, 0, 1), (2, 0, 3), (50, 1, 5)]
    assert [(one["k"], one["found"], one["of"]) for one in second["top"]] == [(1, 1, 1), (2, 3, 3), (50, 3, 5)]
    assert result["settings"] == {}

    with open(tmp_path / "found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["name"], row["rank"], row["value"]) for row in rows] == [
        ("before.jsonl", "mp-1", "5", "0.5"),
        ("after.jsonl", "mp-5", "1", "5.1"),
        ("after.jsonl", "mp-4", "2", "2.5"),
        ("after.jsonl", "mp-2", "2", "2.5"),
    ]
    picture = (tmp_path / "found.svg").read_text()
    assert "before.jsonl" in picture and "after.jsonl" in picture and "known.csv by score" in picture

    text = run(cfx, *arguments).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert {
        "before.jsonl after.jsonl",
        "crystals 4 5",
        "of them known 2 4",
        "known crystals found 1 3",
        "of the top 1 0 of 1 1 of 1",
        "of the top 2 0 of 3 3 of 3",
        "of the top 50 1 of 5 3 of 5",
        "ranked by: column score of known.csv, highest first, 5 crystals",
        "before.jsonl: 1 could not be compared",
        "5 mp-1 Cu 0.5 2 times",
        "1 mp-5 NaCl 5.1",
    } <= set(lines)
    assert cfx("retrieve", *arguments, "-o", "found.csv").returncode == 8
    assert cfx("retrieve", *arguments, "--plot", "found.svg").returncode == 8


def test_the_lowest_may_be_the_best(cfx, reference, before):
    arguments = ["--reference", reference.name, "--property", "score", "--top", "1", "--from", before.name]
    [source] = json.loads(run(cfx, *arguments, "--lowest", "--json").stdout)["sources"]
    assert source["top"] == [{"k": 1, "found": 1, "of": 1}] and source["found"][0]["rank"] == 1


def test_known_crystals_without_a_value_have_no_rank(cfx, before, tmp_path):
    table(tmp_path / "known.csv", {"cu": (COPPER, None), "au": (GOLD, 1.0), "ag": (SILVER, 2.0)})
    arguments = ["--reference", "known.csv", "--property", "score", "--top", "1,9", "--from", before.name]
    [source] = json.loads(run(cfx, *arguments, "--json").stdout)["sources"]
    assert [(one["name"], one["rank"], one["value"]) for one in source["found"]] == [("au", 2, 1.0), ("cu", None, None)]
    assert [(one["k"], one["found"], one["of"]) for one in source["top"]] == [(1, 0, 1), (9, 1, 2)]


def test_without_a_property_nothing_is_ranked(cfx, reference, after):
    arguments = ["--reference", reference.name, "--from", after.name]
    result = json.loads(run(cfx, *arguments, "--json").stdout)
    [source] = result["sources"]
    assert [(one["name"], one["rank"], one["value"], one["times"]) for one in source["found"]] == [
        ("mp-4", None, None, 2), ("mp-2", None, None, 1), ("mp-5", None, None, 1)
    ]  # fmt: skip
    assert source["top"] == [] and result["reference"]["ranked"] == 0
    lines = run(cfx, *arguments).stdout.splitlines()
    assert "mp-4  Ag  2 times" in lines and not any("top" in line or "ranked" in line for line in lines)


def test_nothing_is_found(cfx, reference, tmp_path):
    write(tmp_path / "gold.jsonl", gold=GOLD)
    arguments = ["--reference", reference.name, "--property", "score", "--from", "gold.jsonl"]
    result = run(cfx, *arguments, "-o", "found.csv", "--plot", "found.png")
    assert "gold.jsonl: no known crystal found" in result.stdout
    assert (tmp_path / "found.csv").read_text() == "source,rank,name,row,formula,value,times\n"
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    [source] = json.loads(run(cfx, *arguments, "--json").stdout)["sources"]
    assert (source["distinct"], source["found"]) == (0, [])
    assert [(one["k"], one["found"], one["of"]) for one in source["top"]] == [(10, 0, 5), (50, 0, 5), (100, 0, 5)]
    run(cfx, *arguments, "-o", "found.parquet")
    from pyarrow import parquet

    found = parquet.read_table(tmp_path / "found.parquet")
    assert (found.num_rows, found.column_names[:2]) == (0, ["source", "rank"])


def test_a_model_makes_again_what_it_made(cfx, tmp_path):
    """Some of a model's own crystals, in other cells, are known; so it finds these and nothing else."""
    drawn = ["--sg", "225", "--n", "24", "--seed", "3"]
    assert cfx("sample", "--model", "mini", *drawn, "-o", "own.cif").returncode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = [parse_structure(record) for record in read_records(tmp_path / "own.cif")]
    formulas = [one.composition.reduced_formula for one in own]
    chosen = [i for i in range(24) if formulas.count(formulas[i]) == 1][:4]
    assert len(chosen) == 4
    known = {f"own-{i}": (own[i].get_primitive_structure(), float(i)) for i in chosen}
    table(tmp_path / "known.csv", {"gold": (GOLD, 100.0), **known})
    arguments = ["--reference", "known.csv", "--property", "score", "--top", "2"]
    result = json.loads(run(cfx, "mini", *arguments, *drawn, "--from", "own.cif", "--json").stdout)
    model, file = result["sources"]
    assert (model["name"], file["name"]) == ("mini", "own.cif")
    assert [one["name"] for one in model["found"]] == [f"own-{i}" for i in reversed(chosen)]
    assert [one["rank"] for one in model["found"]] == [2, 3, 4, 5]
    assert {key: model[key] for key in model if key != "name"} == {key: file[key] for key in file if key != "name"}
    assert model["sampled"] == 24 and model["top"] == [{"k": 2, "found": 1, "of": 2}]
    assert result["settings"] == {"n": 24, "space_groups": "225", "seed": 3, "temperature": 1.0}


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl", ".parquet"])
def test_other_tables(cfx, before, tmp_path, suffix):
    path = tmp_path / f"known{suffix}"
    rows = [{"id": name, "cif": one.to(fmt="cif"), "score": score} for name, (one, score) in KNOWN.items()]
    if suffix == ".csv.gz":
        path.write_bytes(gzip.compress(table(tmp_path / "known.csv", KNOWN).read_bytes()))
    elif suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    arguments = ["--reference", path.name, "--property", "score", "--from", before.name, "--json"]
    [source] = json.loads(run(cfx, *arguments).stdout)["sources"]
    assert [(one["name"], one["rank"], one["times"]) for one in source["found"]] == [("mp-1", 5, 2)]


@pytest.mark.skipif(not PROPERTIES.is_dir(), reason="no bundled models of properties")
@pytest.mark.parametrize(("property", "ranked"), [("band_gap", 3), ("fom", 3)])
def test_predicted_properties(cfx, tmp_path, property, ranked):
    """All but the crystal whose atoms are too close; copper, a metal, has no gap and comes last."""
    pytest.importorskip("chgnet", reason="chgnet is not installed")
    lithium = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.083), ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    write(tmp_path / "known.jsonl", cu=COPPER, salt=SALT, lif=lithium, close=CLOSE)
    write(tmp_path / "made.jsonl", a=SALT, b=lithium, c=COPPER)
    arguments = ["--reference", "known.jsonl", "--property", property, "--top", "1", "--from", "made.jsonl"]
    result = run(cfx, *arguments, "--json")
    found = json.loads(result.stdout)
    [source] = found["sources"]
    assert [one["name"] for one in source["found"]] == ["lif", "salt", "cu"]
    assert found["property"]["unit"] == "eV" and "band gap" in found["property"]["about"]
    assert f"{4 - ranked} of 4 known crystals have no {property}" in result.stderr
    assert found["reference"]["ranked"] == ranked == sum(one["rank"] is not None for one in source["found"])
    assert source["found"][0]["value"] > 5


def test_another_model_of_the_gap(cfx, tmp_path):
    """A network of matgl that has learnt a few gaps; its name goes before a column of that name."""
    pytest.importorskip("matgl", reason="matgl is not installed")
    from ..predictors.test_matgl_properties import megnet, save_taught

    directory = save_taught(megnet(), "band_gap", tmp_path / "taught")
    table(tmp_path / "known.csv", {"cu": (COPPER, 9.0), "salt": (SALT, 0.0), "close": (CLOSE, 5.0)})
    content = (tmp_path / "known.csv").read_text().replace("score", "band_gap", 1)
    (tmp_path / "known.csv").write_text(content)
    write(tmp_path / "made.jsonl", a=SALT, b=COPPER)
    arguments = ["--reference", "known.csv", "--property", "band_gap", "--top", "1", "--from", "made.jsonl", "--json"]
    column = json.loads(run(cfx, *arguments).stdout)
    assert [one["name"] for one in column["sources"][0]["found"]] == ["cu", "salt"]
    result = run(cfx, *arguments, "--gap-model", f"matgl:{directory}")
    predicted = json.loads(result.stdout)
    assert [one["name"] for one in predicted["sources"][0]["found"]] == ["salt", "cu"]
    assert predicted["property"]["about"].startswith("band gap (eV) by matgl") and predicted["property"]["unit"] == "eV"
    assert "1 of 3 known crystals have no band_gap" in result.stderr
    assert predicted["sources"][0]["found"][0]["value"] == pytest.approx(5.15, abs=0.5)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mini", "--sg", "225", "--property", "hardness"], 3, "has no column hardness"),
        (["mini", "--sg", "225", "--property", "comment"], 3, "the column comment of known.csv holds no numbers"),
        (["nobody", "--sg", "225"], 4, "there is no model 'nobody'"),
        (["mini"], 2, "--sg is required"),
        (["mini", "--sg", "231"], 2, "no space group 231"),
        (["mini", "--sg", "225", "--n", "0"], 2, "n must be at least 1"),
        (["mini", "mini", "--sg", "225"], 2, "mini is named twice"),
        (["mini", "--sg", "225", "--top", "ten"], 2, "is not a list of numbers of crystals"),
        (["mini", "--sg", "225", "--top", "0"], 2, "is not a list of numbers of crystals"),
        ([], 2, "there is nothing to compare"),
        (["--from", "before.jsonl", "--sg", "225"], 2, "no model is named"),
        (["--from", "nowhere.cif"], 3, "no such file"),
        (
            ["--from", "before.jsonl", "--gap-model", "matgl:x", "--property", "score"],
            2,
            "the model of band_gap is not needed",
        ),
        (["--from", "before.jsonl", "-o", "found.txt"], 2, "cannot write found.txt"),
        (["--from", "before.jsonl", "--plot", "found.png"], 2, "nothing is ranked"),
        (["--from", "before.jsonl", "--plot", "found.txt", "--property", "score"], 2, "unknown suffix"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant(cfx, reference, before, arguments, code, words):
    result = cfx("retrieve", *arguments, "--reference", reference.name, "--workers", 1)
    assert result.returncode == code, result.stderr
    error = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and words in error[0] and result.stdout == ""


def test_a_reference_that_is_none(cfx, before, tmp_path):
    (tmp_path / "bad.csv").write_text("id,cif,score\na,nonsense,1\n")
    for name, words in (("nowhere.csv", "no such file"), ("bad.csv", "contains no crystals to compare with")):
        for more in ([], ["--property", "score"]):
            result = cfx("retrieve", "--from", before.name, "--reference", name, *more, "--workers", 1)
            assert result.returncode == 3 and words in result.stderr


@pytest.mark.slow
def test_a_signal_ends_it(start_cfx, reference, tmp_path):
    process = start_cfx("retrieve", "mini", "--sg", "225", "--n", 100_000, "--reference", reference.name)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("sampling mini"):
            os.kill(process.pid, signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait() == 130, "".join(lines) + rest
    assert "error: stopped after" in rest and "Traceback" not in rest
