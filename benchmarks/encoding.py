"""What encoding costs: time, memory, and disk.

    python benchmarks/encoding.py DATA [--n 300] [--rows 1000] [--crystals 1300000]

DATA is anything `cfx train` reads that holds CIFs. Prints JSON:

- one_core: structures a second on one core, against pyxtal's object model in the same run, with the share that both
  encode to the same space group, letters, species and coordinates. Parsing is not counted: both start from pymatgen
  Structures.
- all_cores_1N, all_cores_4N: a CSV of N and of 4 N rows, those of DATA repeated, encoded on all cores from the file to
  the finished store, and the peak memory of the parent process (megabytes), JAX and all.
- store: a store of 1.3 million crystals, those of DATA repeated: size, time to write it; seconds and megabytes to open
  it with the numbers of sites and space groups of all crystals, then to take 1,000 random batches of 128 crystals in 21
  slots. Pages of mapped files are the system's cache and can be dropped at any time.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import re
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from record import add_json, keep

from cfx.core.elements import SYMBOLS
from cfx.data.encode import encode_structure
from cfx.data.read import parse_structure, read_records


def by_pyxtal(structure) -> list[tuple]:
    """(letter, x, y, z, atomic number) of every site, sorted, by pyxtal."""
    from pyxtal import pyxtal

    crystal = pyxtal()
    crystal.from_seed(structure, tol=0.01)
    sites = []
    for site in crystal.atom_sites:
        letter = 27 if site.wp.letter == "A" else ord(site.wp.letter) - 96
        species = site.specie if isinstance(site.specie, int) else SYMBOLS.index(str(site.specie))
        sites.append((letter, *(np.array(site.position) % 1.0), species))
    return [(crystal.group.number,), *sorted(sites)]


def by_cfx(structure) -> list[tuple]:
    """The same by cfx."""
    crystal = encode_structure(structure, max_sites=10_000)
    sites = zip(crystal.wyckoff, *crystal.frac_coords.T, crystal.species, strict=True)
    return [(crystal.space_group,), *sorted(tuple(map(float, site)) for site in sites)]


def timed(encode, structures: list) -> tuple[list, float]:
    """Results, and structures a second; the first structure is encoded once before the clock starts."""
    encode(structures[0])
    start = time.perf_counter()
    results = [encode(structure) for structure in structures]
    return results, len(structures) / (time.perf_counter() - start)


def agree(ours: list[tuple], theirs: list[tuple]) -> bool:
    """Whether two encodings are the same, coordinates to 1e-3 and modulo 1."""
    if [site[0] for site in ours] != [site[0] for site in theirs]:
        return False
    if [site[-1] for site in ours] != [site[-1] for site in theirs]:
        return False
    coords = [np.array([site[1:4] for site in sites[1:]]) for sites in (ours, theirs)]
    difference = coords[0] - coords[1]
    return bool((np.abs(difference - np.rint(difference)) < 1e-3).all())


def repeat_rows(source: Path, target: Path, count: int) -> None:
    """Writes a CSV of `count` rows, those of `source` (CIFs only) again and again."""
    records = [record for record in read_records(source) if record.format == "cif"]
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "cif"])
        for i, record in zip(range(count), itertools.cycle(records), strict=False):
            writer.writerow([f"{i}-{record.name}", record.text])


def measure(function, *arguments) -> dict:
    """What a function returns when a process of its own runs it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def megabytes(field: str) -> float:
    """VmHWM (peak of resident memory), VmRSS or RssAnon (without mapped files) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def encode_file(path: Path, cache: Path) -> dict:
    """Encodes a file on all cores."""
    os.environ["CFX_CACHE"] = str(cache)
    from cfx.data.dataset import load_dataset

    start = time.perf_counter()
    data = load_dataset(path)
    seconds = time.perf_counter() - start
    rows = len(data) + data.num_failures
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "seconds_per_10000": round(seconds / rows * 1e4, 1),
        "peak_rss_of_parent_mb": round(megabytes("VmHWM"), 1),
        "directory": str(data.directory),
    }


def write_store(encoded: Path, target: Path, count: int) -> dict:
    """Writes a store of `count` crystals, those of `encoded` again and again, as an encoding does."""
    from cfx.data.dataset import EncodedDataset
    from cfx.data.store import Part, StoreWriter

    state = json.loads((encoded / "dataset.json").read_text())
    data = EncodedDataset(encoded, state)
    part = Part(len(data), np.array(data._crystals), np.array(data._sites), data.names, [])
    target.mkdir()
    start = time.perf_counter()
    writer = StoreWriter(target, {key: state[key] for key in ("digest", "source", "symprec", "n_max")})
    while writer.rows < count:
        kept = min(len(data), count - writer.rows)
        sites = int(part.crystals["num_sites"][:kept].sum())
        writer.append(Part(kept, part.crystals[:kept], part.sites[:sites], part.names[:kept], []))
        writer.commit()
    return {"seconds_to_write": round(time.perf_counter() - start, 1)}


def use_store(directory: Path) -> dict:
    """Opens a store, and takes 1,000 random batches of 128 from it."""
    from cfx.data.dataset import EncodedDataset

    rng, before = np.random.default_rng(0), {field: megabytes(field) for field in ("VmRSS", "RssAnon")}
    start = time.perf_counter()
    data = EncodedDataset(directory, json.loads((directory / "dataset.json").read_text()))
    counts, num_sites = data.space_group_counts(), data.num_sites
    opened = time.perf_counter()
    after = {field: megabytes(field) - before[field] for field in before}
    for _ in range(1000):
        data.take(rng.integers(len(data), size=128), data.n_max)
    return {
        "crystals": int(counts.sum()),
        "sites": int(num_sites.sum()),
        "megabytes_on_disk": round(sum(file.stat().st_size for file in directory.iterdir()) / 1e6, 1),
        "seconds_to_open": round(opened - start, 3),
        "mb_open": round(after["RssAnon"], 1),
        "mb_open_with_mapped_files": round(after["VmRSS"], 1),
        "seconds_for_1000_batches_of_128": round(time.perf_counter() - opened, 2),
        "mb_after_batches": round(megabytes("RssAnon") - before["RssAnon"], 1),
        "mb_after_batches_with_mapped_files": round(megabytes("VmRSS") - before["VmRSS"], 1),
    }


def one_core(data: Path, count: int) -> dict:
    """cfx and pyxtal on the same structures."""
    warnings.simplefilter("ignore")
    structures = [parse_structure(record) for record in itertools.islice(read_records(data), count)]
    ours, our_rate = timed(by_cfx, structures)
    theirs, their_rate = timed(by_pyxtal, structures)
    same = sum(agree(one, other) for one, other in zip(ours, theirs, strict=True))
    return {
        "structures": len(structures),
        "cfx_per_second": round(our_rate, 1),
        "pyxtal_per_second": round(their_rate, 1),
        "ratio": round(our_rate / their_rate, 2),
        "share_identical": round(same / len(structures), 4),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--n", type=int, default=300, help="structures on one core, against pyxtal; 0 for none")
    arguments.add_argument("--rows", type=int, default=1000, help="N; a quarter of the rows encoded on all cores")
    arguments.add_argument("--crystals", type=int, default=1_300_000, help="in the synthetic store")
    add_json(arguments)
    options = arguments.parse_args()
    report: dict = {"one_core": one_core(options.data, options.n)} if options.n else {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for factor in (1, 4):
            path = directory / f"rows{factor}.csv"
            repeat_rows(options.data, path, factor * options.rows)
            report[f"all_cores_{factor}N"] = measure(encode_file, path, directory / "cache")
        encoded = [Path(report[f"all_cores_{factor}N"].pop("directory")) for factor in (1, 4)]
        written = measure(write_store, encoded[1], directory / "store", options.crystals)
        report["store"] = {**written, **measure(use_store, directory / "store")}
    keep({"cores": os.cpu_count(), **report}, options)


if __name__ == "__main__":
    main()
