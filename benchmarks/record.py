"""What a figure is worth depends on the machine: benchmarks print their figures, and --json keeps both."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("cfx-crystal", "jax", "jaxlib", "numpy", "scipy", "pymatgen", "spglib", "torch", "typer")


def machine() -> dict[str, Any]:
    """Processor, cores, accelerators, versions and today's date."""
    processor = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    accelerators: list[str] = []
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        accelerators = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "load_average_at_end": [round(load, 2) for load in os.getloadavg()],
        "accelerators": accelerators,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json FILE."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, with the machine")


def keep(figures: dict[str, Any], asked: argparse.Namespace) -> None:
    """Prints figures; writes them with what was asked and the machine where --json says."""
    print(json.dumps(figures, indent=1))
    if asked.json is not None:
        options = {name: value for name, value in vars(asked).items() if name != "json"}
        kept = {"machine": machine(), "options": options, "figures": figures}
        asked.json.write_text(json.dumps(kept, indent=1, default=str) + "\n")
