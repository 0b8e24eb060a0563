"""Mutated files of every format, read in limited processes.

    python benchmarks/fuzz.py [--pickles 5000] [--others 500] [--seed 0] [--only csv,zip] [--json FILE]

Counts what must not happen: hangs, memory, crashes, errors that are not cfx's own, code that runs. Seeded; the same
numbers give the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from record import add_json, keep

SECONDS, MEGABYTES = 10, 500
FORMATS = {"pkl": "model.pkl", "cif": "a.cif", "poscar": "POSCAR", "extxyz": "a.extxyz", "jsonl": "a.jsonl"}
FORMATS |= {"csv": "a.csv", "zip": "a.zip", "npz": "hull.npz", "safetensors": "params.safetensors", "toml": "a.toml"}


def seeds(kind: str) -> bytes:
    """A good file of a format."""
    from pymatgen.core import Lattice, Structure

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    cif, buffer = salt.to(fmt="cif"), io.BytesIO()
    arrays = {f"linear_{i}": {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)} for i in range(3)}
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.cif", cif)
    elif kind == "npz":
        np.savez(buffer, header=np.frombuffer(b"{}", np.uint8), ids=np.zeros(3))
    elif kind == "safetensors":
        from safetensors.numpy import save

        buffer.write(save({name: part["w"] for name, part in arrays.items()}))
    lines = "".join(f"{site.specie} {' '.join(map(str, site.coords))}\n" for site in salt)
    texts = {
        "cif": cif,
        "poscar": salt.to(fmt="poscar"),
        "extxyz": f'8\nLattice="5.64 0 0 0 5.64 0 0 0 5.64" Properties=species:S:1:pos:R:3 pbc="T T T"\n{lines}',
        "jsonl": json.dumps({"id": "a", "structure": salt.as_dict()}, default=str) + "\n",
        "csv": 'id,cif\na,"' + cif.replace('"', '""') + '"\n',
        "toml": 'steps = 3\n[model]\nnum_layers = 2\nposition = "rotary"\n',
    }
    return pickle.dumps({"params": arrays}, 4) if kind == "pkl" else buffer.getvalue() or texts[kind].encode()


CANARY = b"cos\nsystem\n(S'touch CANARY'\ntR"
PIECES = [CANARY, b"\xff" * 8, b"99999999999", b"9" * 400, b"[" * 5000, b"'", b'"', b";\n", b"data_", b"\0", b"1e999"]
PIECES += [b"nan", b"r\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\x0f\0\0\0", b"(" * 3000, b"loop_\n", b"-1", b"\n\n"]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes changed, removed, repeated, or replaced by what often does harm."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at, size = int(rng.integers(0, max(len(data), 1))), int(rng.integers(1, 40))
        choice = int(rng.integers(5))
        piece = PIECES[int(rng.integers(len(PIECES)))]
        new = [rng.bytes(1), b"", bytes(data[at : at + size]) * 20, piece, piece][choice]
        data[at : at + (1, size, 0, 0, size)[choice]] = new
    return bytes(data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.1 else data)


def read(kind: str, path: Path) -> None:
    """Reads a file as the commands do; expected failures are cfx's own errors."""
    from cfx.errors import CfxError

    try:
        if kind == "pkl":
            from cfx.io.upstream import convert, load_pickle, recognise

            params = load_pickle(path)
            convert(params, recognise(params))
        elif kind == "safetensors":
            from cfx.io.checkpoint import load_checkpoint

            (path.parent / "checkpoint.json").write_text('{"format_version": 1, "model": {}}')
            load_checkpoint(path.parent)
        elif kind == "npz":
            from cfx.evaluation.hull_files import read_hull

            read_hull(path)
        elif kind == "toml":
            from cfx.config.training import read_toml

            read_toml(path)
        else:
            from cfx.data.read import encode_records, read_records

            encode_records(read_records(path), 0.01, 20)
    except CfxError:
        pass


def child(kind: str, seed: int, count: int) -> None:
    """Reads some files one after the other; a line on stdout for every fault, and one before every file."""
    import warnings

    warnings.simplefilter("ignore")
    good, directory = seeds(kind), Path.cwd()
    read(kind, _write(directory / FORMATS[kind], good))
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(seed, seed + count):
        print("file", number, flush=True)
        started = time.monotonic()
        try:
            read(kind, _write(directory / FORMATS[kind], mutated(good, np.random.default_rng(number))))
        except Exception as error:
            print("traceback", number, type(error).__name__, str(error)[:100].replace("\n", " "), flush=True)
        if time.monotonic() - started > SECONDS:
            print("hang", number, flush=True)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline > MEGABYTES * 1024:
            print("memory", number, flush=True)
            return
        if (directory / "CANARY").exists():
            print("code", number, flush=True)
            return


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def fuzz(kind: str, count: int, first: int = 0, batch: int = 250) -> tuple[Counter[str], list[str]]:
    """Numbers of faults by kind, and their lines; a process that ends early is a crash."""
    faults: Counter[str] = Counter()
    lines: list[str] = []
    for seed in range(first, first + count, batch):
        size = min(batch, first + count - seed)
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-P", os.path.abspath(__file__), "--child", kind, str(seed), str(size)]
            with subprocess.Popen(
                command,
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                preexec_fn=_limited,
            ) as process:
                found = (process.stdout or io.StringIO()).read().splitlines()
            if process.returncode:
                found.append(f"crash {process.returncode} after {found[-1] if found else 'nothing'}")
        faults.update(line.split()[0] for line in found)
        lines += [f"{kind}: {line}" for line in found if not line.startswith("file")]
    return faults, lines


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)  # XLA reserves addresses that it does not use
    resource.setrlimit(resource.RLIMIT_CPU, (600, 600))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pickles", type=int, default=5000)
    parser.add_argument("--others", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first file; every further one adds 1")
    parser.add_argument("--only", default=",".join(FORMATS), help="formats: a,b,c")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    add_json(parser)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], int(asked.child[1]), int(asked.child[2]))
        return
    figures = {}
    for kind in asked.only.split(","):
        faults, lines = fuzz(kind, asked.pickles if kind == "pkl" else asked.others, asked.seed)
        figures[kind] = {name: faults[name] for name in ("file", "hang", "memory", "crash", "traceback", "code")}
        print(kind, figures[kind], *lines[:20], sep="\n  ", flush=True)
    keep(figures, asked)


if __name__ == "__main__":
    main()
