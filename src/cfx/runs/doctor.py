"""What is here to work with: versions, devices, cache, and what is missing for which command."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from cfx.catalog import MODEL
from cfx.errors import OutputError, install
from cfx.fetch.files import is_offline
from cfx.fetch.names import BUNDLED, CACHED, statuses
from cfx.io.files import cache_directory
from cfx.predictors.base import torch_devices


class Library(NamedTuple):
    """Something that cfx can use.

    Attributes:
        package: as pip knows it.
        module: as Python knows it.
        extra: of cfx, that installs it; "" for what cfx always needs.
        purpose: what it is for.
    """

    package: str
    module: str
    extra: str
    purpose: str


LIBRARIES = (
    Library("jax", "jax", "", "models"),
    Library("dm-haiku", "haiku", "", "models"),
    Library("optax", "optax", "", "train, rl"),
    Library("pymatgen", "pymatgen", "", "crystals"),
    Library("spglib", "spglib", "", "symmetry"),
    Library("moyopy", "moyopy", "", "symmetry"),
    Library("huggingface-hub", "huggingface_hub", "", "fetch"),
    Library("chgnet", "chgnet", "chgnet", "energies by CHGNet, also predict, discover, rl; bundled property models"),
    Library("orb-models", "orb_models", "orb", "energies by orb:NAME"),
    Library("matgl", "matgl", "matgl", "energies by matgl:NAME"),
    Library("torch", "torch", "chgnet", "chgnet, orb-models and matgl"),
    Library("smact", "smact", "eval", "eval, discover: validity of compositions"),
    Library("dask", "distributed", "dask", "eval and rl with --scheduler"),
    Library("pyarrow", "pyarrow", "parquet", "Parquet files"),
)
"""Libraries in the order in which they are listed."""


def examine() -> dict[str, Any]:
    """All there is to say, ready for JSON: cfx, python, platform, libraries, devices, cache, models, advice.

    `healthy` is False if something is missing without which no command works.
    """
    libraries = [_library(one) for one in LIBRARIES]
    here = {one["package"] for one in libraries if one["version"]}
    devices = {"jax": _jax_devices() if "jax" in here else [], "torch": torch_devices() if "torch" in here else []}
    cache = _cache()
    return {
        "cfx": version("cfx-crystal"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.platform()}, {os.cpu_count()} cores",
        "libraries": libraries,
        "devices": devices,
        "cache": cache,
        "models": [one.entry.name for one in statuses() if one.entry.kind == MODEL and one.cached in (BUNDLED, CACHED)]
        if cache["ok"]
        else [],
        "offline": "huggingface-hub" in here and is_offline(),
        "advice": _advice(libraries, devices, cache),
        "healthy": cache["ok"] and all(one["version"] for one in libraries if not one["extra"]),
    }


def _library(library: Library) -> dict[str, Any]:
    try:
        found = version(library.package) if find_spec(library.module) else None
    except PackageNotFoundError:
        found = None
    return {**library._asdict(), "version": found}


def _jax_devices() -> list[str]:
    import jax

    return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]


def _cache() -> dict[str, Any]:
    try:
        directory = cache_directory()
    except OutputError as error:
        return {"directory": "", "ok": False, "bytes": 0, "problem": error.message}
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    writable = os.access(directory, os.W_OK)
    return {
        "directory": str(directory),
        "ok": writable,
        "bytes": size,
        "problem": "" if writable else "cannot write there",
    }


def _advice(libraries: list[dict[str, Any]], devices: dict[str, list[str]], cache: dict[str, Any]) -> list[str]:
    """What to do about what is missing, one line each."""
    advice = [
        f"{one['package']} is missing: install cfx again"
        for one in libraries
        if not one["extra"] and not one["version"]
    ]
    for one in libraries:
        if one["extra"] and not one["version"] and one["package"] != "torch":
            advice.append(f"for {one['purpose']}: {install(one['extra'])}")
    gpu = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    if gpu and not any(name.startswith(("cuda", "gpu")) for name in devices["jax"]):
        advice.append(f"there is an NVIDIA GPU that JAX does not use: {install('cuda12')} (or cuda13)")
    if gpu and len(devices["torch"]) == 1:
        advice.append("torch was built without CUDA: see https://pytorch.org/get-started/locally for another build")
    if not cache["ok"]:
        advice.append(f"the cache: {cache['problem']}; set CFX_CACHE to a directory that you can write to")
    return advice
