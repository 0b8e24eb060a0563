"""cfx sample with the bundled model, as a process."""

from __future__ import annotations

import csv
import itertools
import json
import re
import signal
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.io.cif import CifParser
from pymatgen.symmetry.groups import SpaceGroup

import cfx as library
from cfx.core.lattice import is_physical
from cfx.data.encode import encode_structure
from cfx.data.read import parse_structure, read_records

# A batch this small is drawn by programs that compile soonest.
MINI = ["sample", "--model", "mini", "--batch-size", 16]


def blocks_of(text: str) -> list[str]:
    return ["data_" + block for block in text.split("data_")[1:]]


def field(block: str, key: str) -> str:
    return re.search(rf"^{key} +(.*)$", block, re.M).group(1)


def assert_same_text(one: str, other: str) -> None:
    """Equal up to the rounding of sums in another order."""
    for word, other_word in zip(*(re.split(r"[\s']+", text) for text in (one, other)), strict=True):
        assert word == other_word or float(word) == pytest.approx(float(other_word), abs=2e-3)


def structures_of(path) -> list[Structure]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [parse_structure(record) for record in read_records(path)]


@pytest.fixture
def sample(cfx, tmp_path):
    """sample(*options): the lines of `cfx sample -o NAME.jsonl` with the bundled model, and what the command said."""
    number = itertools.count()

    def run(*options: object) -> tuple[list[dict], str]:
        path = tmp_path / f"run{next(number)}.jsonl"
        result = cfx(*MINI, *options, "-o", path.name)
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in path.read_text().splitlines()], result.stderr

    return run


def rejected(stderr: str) -> tuple[int, int, Counter[str]]:
    """What a summary says: crystals, draws, and rejected draws by reason."""
    crystals, draws, text = re.search(r"^(\d+) crystals .* from (\d+) draws \((.*?)\)", stderr, re.M).groups()
    reasons = Counter({reason: int(count) for count, reason in re.findall(r"(\d+) ([^,]+)", text)})
    assert int(draws) == int(crystals) + reasons.total()
    return int(crystals), int(draws), reasons


@pytest.fixture(scope="module")
def model():
    return library.load_model("mini")


@pytest.mark.parametrize("group", [194, 62])
def test_cif_blocks_hold_the_space_group(cfx, tmp_path, group, model):
    # Without atoms on top of each other, which a CIF parser takes for one.
    result = cfx(*MINI, "--sg", group, "--n", 8, "--seed", 5, "--min-distance", 0.5, "-o", "out.cif")
    assert result.returncode == 0, result.stderr
    blocks = blocks_of((tmp_path / "out.cif").read_text())
    assert len(blocks) == 8 and not (tmp_path / "out.cif.partial").exists()
    crystals = model.sample(space_group=group, n=8, seed=5, batch_size=16, min_distance=0.5)
    log_prob = model.log_prob(crystals)
    for i, block in enumerate(blocks):
        assert int(field(block, "_space_group_IT_number")) == group
        assert len(re.findall(r"^\d+ '.*'$", block, re.M)) == SpaceGroup.from_int_number(group).order
        assert field(block, "_cfx_model") == "mini" and int(field(block, "_cfx_seed")) == 5
        assert int(field(block, "_cfx_draw")) == i and int(field(block, "_cfx_attempt")) >= 0
        assert float(field(block, "_cfx_log_prob")) == pytest.approx(float(log_prob.total[i]), abs=2e-3)
        assert all(
            len(number.split(".")[1]) >= 8 for number in re.findall(r"\d\.\d+(?= )", block.split("occupancy")[1])
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = CifParser.from_str(block).parse_structures(primitive=False)[0]
        expected = crystals[i : i + 1].to_structures()[0]
        assert structure.composition.reduced_formula == expected.composition.reduced_formula
        np.testing.assert_allclose(structure.lattice.parameters, expected.lattice.parameters, atol=1e-4)
    assert "8 crystals" in result.stderr and "draws" in result.stderr


def test_stdout_holds_the_crystals_and_nothing_else(cfx):
    result = cfx(*MINI, "--sg", 225, "-n", 3)
    assert result.stdout.startswith("data_") and len(blocks_of(result.stdout)) == 3
    assert result.stdout == cfx(*MINI, "--sg", 225, "-n", 3).stdout
    assert result.stdout != cfx(*MINI, "--sg", 225, "-n", 3, "--seed", 1).stdout


def test_the_batch_size_changes_no_crystal(cfx):
    """Equal up to the rounding of sums in another order."""
    outputs = [cfx("sample", "--sg", 62, "-n", 9, "--model", "mini", "--batch-size", size).stdout for size in (7, 128)]
    assert len(blocks_of(outputs[0])) == 9
    assert_same_text(*outputs)


def test_unseen_space_group_is_a_warning(cfx, model):
    unseen = next(group for group in range(1, 231) if model.trained_on(group) == 0)
    result = cfx(*MINI, "--sg", unseen, "-n", 1)
    assert result.returncode == 0 and f"never saw space group {unseen}" in result.stderr


def test_auto_is_a_named_model(cfx):
    assert "by model mini" in cfx("sample", "--sg", 221, "-n", 1, "--batch-size", 16).stderr


INTERRUPTIONS = {
    "SIGINT": (signal.SIGINT, 130, []),
    "SIGTERM": (signal.SIGTERM, 143, []),
    "SIGKILL": (signal.SIGKILL, -signal.SIGKILL, ["--unique"]),
}


@pytest.mark.parametrize("name", INTERRUPTIONS)
@pytest.mark.slow
def test_an_interrupted_run_keeps_its_work_and_goes_on(cfx, start_cfx, tmp_path, name):
    signum, code, options = INTERRUPTIONS[name]
    request = [*MINI, "--sg", "225,221", "-n", 150, *options]
    process = start_cfx(*request, "-o", "out.cif")
    partial, state, deadline = tmp_path / "out.cif.partial", tmp_path / "out.cif.partial.json", time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if state.exists() and json.loads(state.read_text())["progress"].get("num_crystals", 0) >= 20:
            break
        time.sleep(0.01)
    process.send_signal(signum)
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    assert not (tmp_path / "out.cif").exists() and "Traceback" not in stderr
    earlier = json.loads(state.read_text())["progress"]["num_crystals"]
    assert 20 <= earlier < 150
    if code > 0:
        kept = blocks_of(partial.read_text())
        assert f"stopped after {earlier} crystals" in stderr and "--resume" in stderr
        assert len(kept) == earlier and kept[-1].endswith("\n\n")
    if name == "SIGTERM":
        other = cfx(*request, "-o", "out.cif", "--resume", "--seed", 1)
        assert other.returncode == 2 and "different settings (seed)" in other.stderr
        return

    resumed = cfx(*request, "-o", "out.cif", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert rejected(resumed.stderr)[0] == 150 and f"({earlier} of them earlier)" in resumed.stderr
    assert [path.name for path in tmp_path.glob("out*")] == ["out.cif"]
    whole = cfx(*request, "-o", "whole.cif")
    assert_same_text((tmp_path / "out.cif").read_text(), (tmp_path / "whole.cif").read_text())
    assert rejected(whole.stderr) == rejected(resumed.stderr)


def test_space_groups_take_turns(sample):
    lines, stderr = sample("--sg", "2,14,225-227", "-n", 12)
    assert [line["space_group"] for line in lines] == ([2, 14, 225, 226, 227] * 3)[:12]
    assert [line["draw"] for line in lines] == list(range(12))
    assert "12 crystals of 5 space groups" in stderr


def test_space_groups_are_drawn_as_often_as_in_data(sample, tmp_path, model):
    rock_salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    caesium = Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "data.cif").write_text(rock_salt.to(fmt="cif") * 3 + caesium.to(fmt="cif"))
    drawn = Counter(line["space_group"] for line in sample("--sg", "data:data.cif", "-n", 16)[0])
    assert set(drawn) == {221, 225} and drawn[225] > drawn[221]

    groups = [line["space_group"] for line in sample("--sg", "data:model", "-n", 16)[0]]
    counts = {int(group): count for group, count in model.info["space_groups"].items()}
    assert all(counts.get(group, 0) > 0 for group in groups)
    assert np.mean([counts[group] for group in groups]) > 2 * np.mean(list(counts.values()))  # common ones are common

    groups = [line["space_group"] for line in sample("--sg", "uniform", "-n", 16)[0]]
    assert len(set(groups)) > 10 and groups != sorted(groups) and max(groups) > 115 > min(groups)


def test_elements_are_allowed_and_required(sample):
    lines, _ = sample("--sg", 123, "-n", 16, "--elements", "La,Ni,O", "--require", "Ni,O", "--max-sites", 3)
    for line in lines:
        assert {"Ni", "O"} <= set(line["species"]) <= {"La", "Ni", "O"} and len(line["species"]) <= 3
    assert any("La" in line["species"] for line in lines)


def test_elements_are_excluded_and_biased(sample):
    options = ["--sg", 62, "-n", 48, "--elements", "O,Si,S,Th,Ge", "--max-atoms", 16]
    free = {symbol for line in sample(*options)[0] for symbol in line["species"]}
    assert free == {"O", "Si", "S", "Th", "Ge"}
    lines, _ = sample(*options, "--no-radioactive", "--exclude", "S", "--bias", "Ge:-60")
    assert {symbol for line in lines for symbol in line["species"]} == {"O", "Si"}
    for line in lines:
        assert sum(int(n) for n in re.findall(r"[A-Z][a-z]?(\d+)", field(line["cif"], "_chemical_formula_sum"))) <= 16


def test_a_formula_is_met_exactly(sample, tmp_path):
    lines, stderr = sample("--sg", 221, "-n", 8, "--formula", "SrTiO3")
    assert len(lines) == 8
    for line in lines:
        composition = Composition(field(line["cif"], "_chemical_formula_sum").strip("'"))
        assert composition.reduced_composition == Composition("SrTiO3") and line["space_group"] == 221
    for structure in structures_of(tmp_path / "run0.jsonl"):
        assert structure.composition.reduced_formula == "SrTiO3"
    assert rejected(stderr)[0] == 8


def test_letters_and_sites_are_given(sample, tmp_path):
    """Site 1 takes the species of site 0, whatever its own list allows."""
    sites = {"atom_mask": [["Sr", "Ba", "La"], [], ["O", "F", "S"]], "constraints": [[0, 1]]}
    (tmp_path / "sites.json").write_text(json.dumps(sites))
    options = ["--sg", 62, "-n", 24, "--wyckoff", "a,c,c,d", "--sites", "sites.json"]
    lines, _ = sample(*options, "--temperature", 1.5)
    for line in lines:
        assert line["wyckoff"] == ["a", "c", "c", "d"]
        first, second, third, _ = line["species"]
        assert first == second and first in ("Sr", "Ba", "La") and third in ("O", "F", "S")
    assert len({tuple(line["species"]) for line in lines}) > 4


PROTOTYPE = Structure.from_spacegroup(
    "Pnma",
    Lattice.orthorhombic(7.1, 4.2, 8.3),
    ["Pb", "Cl", "Cl"],
    [[0.25, 0.25, 0.43], [0.86, 0.25, 0.07], [0.48, 0.25, 0.83]],
)


def test_a_prototype_keeps_its_arrangement(cfx, sample, tmp_path):
    PROTOTYPE.to(str(tmp_path / "cotunnite.cif"))
    given = encode_structure(PROTOTYPE)
    assert given.space_group == 62 and given.wyckoff.tolist() == [3, 3, 3]
    same = [[one == other for other in given.species] for one in given.species]
    refused = cfx(*MINI, "--from", "cotunnite.cif", "--sg", 62)
    assert refused.returncode == 2 and "--from uses the space group of its structure" in refused.stderr
    for redraw in ("", "coords", "coords,lattice"):
        lines, _ = sample("--from", "cotunnite.cif", "-n", 6, *(["--redraw", redraw] if redraw else []))
        assert len({tuple(line["species"]) for line in lines}) > 2
        for line in lines:
            assert line["space_group"] == 62 and line["wyckoff"] == ["c", "c", "c"]
            assert all(
                line["species"][i] == line["species"][j] for i, j in itertools.product(range(3), repeat=2) if same[i][j]
            )
            kept_coords = np.allclose(line["frac_coords"], given.frac_coords, atol=1e-6)
            kept_lattice = np.allclose(line["lattice"], given.lattice, rtol=1e-6)
            assert kept_coords == ("coords" not in redraw) and kept_lattice == ("lattice" not in redraw)


def test_shards_joined_are_the_request(cfx):
    request = [*MINI, "--sg", "2,14,225", "-n", 10, "--seed", 3]
    outputs = [cfx(*request, "--shard", f"{part}/3").stdout for part in (1, 2, 3)]
    assert [len(blocks_of(output)) for output in outputs] == [3, 3, 4]
    whole = blocks_of(cfx(*request).stdout)
    for one, other in zip(blocks_of("".join(outputs)), whole, strict=True):
        # The names of blocks count the crystals of a file.
        one, other = (re.sub(r"^(data_\w+)_\d+$", r"\1", block, flags=re.M) for block in (one, other))
        assert_same_text(one, other)


def test_no_crystal_comes_twice(sample, tmp_path):
    _, stderr = sample("--sg", 225, "-n", 10, "--elements", "Na,Cl,K", "--unique")
    assert rejected(stderr)[2]["duplicate"] > 0 and "yield: " in stderr
    matcher, structures = StructureMatcher(), structures_of(tmp_path / "run0.jsonl")
    assert len(structures) == 10
    assert not any(matcher.fit(one, other) for one, other in itertools.combinations(structures, 2))


def test_atoms_keep_their_distance(sample, tmp_path):
    _, stderr = sample("--sg", 225, "-n", 8, "--min-distance", 2.6)
    assert rejected(stderr)[2]["atoms too close"] > 0
    for structure in structures_of(tmp_path / "run0.jsonl"):
        assert not structure.get_neighbor_list(2.6 - 1e-4)[0].size


def test_invalid_crystals_are_drawn_again_or_kept(cfx, sample, tmp_path):
    request = ["--sg", 1, "-n", 16, "--temperature", 3, "--seed", 0]
    lines, stderr = sample(*request)
    again = rejected(stderr)[2]["unphysical lattice"]
    assert again > 0 and is_physical(np.array([line["lattice"] for line in lines])).all()
    assert max(line["attempt"] for line in lines) > 0

    result = cfx(*MINI, *request, "--keep-invalid", "-o", "kept.csv")
    assert rejected(result.stderr) == (16, 16, {})
    with open(tmp_path / "kept.csv", newline="") as file:
        physical = is_physical(np.array([json.loads(row["L"]) for row in csv.DictReader(file)]))
    assert [line["attempt"] == 0 for line in lines] == physical.tolist()


def test_exact_requests_filter_what_the_model_draws(sample):
    free, _ = sample("--sg", 225, "-n", 8)
    common = Counter(symbol for line in free for symbol in set(line["species"])).most_common(1)[0][0]
    lines, stderr = sample("--sg", 225, "-n", 8, "--exclude", common, "--exact")
    crystals, draws, reasons = rejected(stderr)
    assert set(reasons) <= {"against the constraints", "unphysical lattice"} and reasons["against the constraints"] > 0
    assert f"yield: {100 * crystals / draws:.1f} % of the draws count" in stderr
    for one, other in zip(lines, free, strict=True):
        assert common not in one["species"]
        assert (one["attempt"] == other["attempt"]) == (common not in other["species"])
        if common not in other["species"]:
            assert_same_text(one["cif"], other["cif"])


def test_force_replaces_a_file(cfx, tmp_path):
    (tmp_path / "out.cif").write_text("precious")
    result = cfx(*MINI, "--sg", 225, "-n", 2, "-o", "out.cif", "--force")
    assert result.returncode == 0 and len(blocks_of((tmp_path / "out.cif").read_text())) == 2


def test_a_name_without_a_suffix_is_a_directory(cfx, tmp_path):
    result = cfx(*MINI, "--sg", 225, "-n", 3, "-o", "poscars")
    assert result.returncode == 0, result.stderr
    assert {file.name for file in (tmp_path / "poscars").iterdir()} == {f"gen_{i}.vasp" for i in range(3)}
    assert [path.name for path in tmp_path.glob("poscars*")] == ["poscars"]


GROUPS = r"space groups by their probability: (.*); effective sample size (\d+) of (\d+) draws"


def test_a_formula_has_its_space_groups(cfx, tmp_path):
    """Drawn by their probability, which is said."""
    asked = [*MINI, "--formula", "CsCl", "--max-atoms", 4, "--max-sites", 3, "--n", 80, "--seed", 2]
    result = cfx(*asked, "-o", "whole.jsonl")
    assert result.returncode == 0, result.stderr
    said, effective, draws = re.search(GROUPS, result.stderr).groups()
    assert 20 < int(effective) <= int(draws)
    shares = {int(group): float(share) for group, share in re.findall(r"(\d+) ([\d.]+) %(?:,|$)", said)}
    lines = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert {each.composition.reduced_formula for each in structures_of(tmp_path / "whole.jsonl")} == {"CsCl"}
    drawn, likeliest = Counter(line["space_group"] for line in lines), max(shares, key=shares.__getitem__)
    assert len(drawn) > 1
    # Binomial, five standard deviations.
    share = shares[likeliest] / 100
    assert drawn[likeliest] == pytest.approx(80 * share, abs=5 * np.sqrt(80 * share * (1 - share)) + 0.5)
