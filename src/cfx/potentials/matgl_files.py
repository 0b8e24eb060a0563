"""Models of matgl from their three files, published or in a directory; nothing but matgl's own classes is made of them.

The files hold names of classes, and arguments to make them with. matgl imports and calls whatever they name, so they
are looked at before. Arrays and arguments come through torch's restricted unpickler.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfx.catalog import POTENTIAL, REWARD, find
from cfx.errors import CheckpointError, DependencyError, NetworkError, UnsafeError
from cfx.io.addresses import HubAddress, parse
from cfx.io.fetch import fetch_file
from cfx.reporter import Silent

FILES = ("model.json", "model.pt", "state.pt")
OWNER = "materialyze"
"""On the hub, of the models that matgl publishes."""

FORM = "say matgl:NAME, a name of huggingface.co/materialyze, or matgl:/directory with model.json"
HOMES = re.compile(r"matgl\.(models(\._\w+)?|apps\.pes|apps\._pes\w*)")
"""Modules whose classes a file may name."""


def load_files(text: str):
    """The model of a name or a directory, on the CPU.

    Args:
        text: a directory; a name of the catalog; NAME or OWNER/NAME of the hub.

    Raises:
        DependencyError: without matgl.
        CheckpointError: if the files are not there, damaged, or made by something else.
        UnsafeError: if they ask for anything but matgl's classes and numbers.
        NetworkError: if they have to be fetched, and cannot be.
    """
    try:
        import matgl
    except ImportError as error:
        raise DependencyError(f"matgl cannot be imported: {error}", "pip install 'cfx-crystal[matgl]'") from error
    _hush_warp()
    directory = _directory(text)
    with _known_globals():
        _check_classes(directory, text)
        try:
            return matgl.load_model(directory)
        except (ValueError, RuntimeError) as error:
            # matgl wraps whatever happened; the innermost error says it.
            while error.__cause__ is not None:
                error = error.__cause__
            raise _unreadable(text, error) from error


def model_name(text: str) -> str:
    """What a model is called: its directory, or its repository on the hub."""
    if (path := Path(text).expanduser()).exists():
        return path.name
    entry = find(text, REWARD, POTENTIAL)
    if entry is not None and isinstance(address := parse(entry.address), HubAddress):
        return address.repo.partition("/")[2]
    return text


def _hush_warp() -> None:
    """Keeps Warp, with which matgl finds neighbours where it is, from telling stdout what it does: results go there."""
    with contextlib.suppress(ImportError):
        import warp

        if hasattr(warp.config, "log_level"):
            warp.config.log_level = warp.LOG_WARNING
        else:
            warp.config.quiet = True


def _directory(text: str) -> Path:
    """Where the three files lie; they are fetched if they are published."""
    path = Path(text).expanduser()
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        if missing := [name for name in FILES if not (path / name).is_file()]:
            raise CheckpointError(f"there is no {missing[0]} in {text}", FORM)
        return path
    entry = find(text, REWARD, POTENTIAL)
    repo = text if "/" in text else f"{OWNER}/{text}"
    addresses = list(entry.files.values()) if entry is not None else [f"hf:{repo}/{name}" for name in FILES]
    try:
        paths = [fetch_file(address, Silent(), announce=False) for address in addresses]
    except NetworkError as error:
        raise NetworkError(f"matgl finds no {text}: {error.message}", error.hint or FORM) from error
    return paths[0].parent if paths[0].is_file() else _only_model(paths[0], text)


def _only_model(folder: Path, text: str) -> Path:
    """Where in a folder there is a model."""
    places = [file.parent for file in sorted(folder.rglob(FILES[0]))]
    found = [place for place in places if all((place / name).is_file() for name in FILES)]
    if len(found) != 1:
        raise CheckpointError(f"{text} holds {len(found)} models of matgl, not one", FORM)
    return found[0]


@contextlib.contextmanager
def _known_globals() -> Iterator[None]:
    """Lets torch rebuild what property models keep besides arrays: how their targets were scaled."""
    import numpy as np
    import torch
    from matgl.data.transformer import LogTransformer, Normalizer

    scalar = np._core.multiarray.scalar
    known = [Normalizer, LogTransformer, scalar, (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(known):
        yield


def _check_classes(directory: Path, text: str) -> None:
    """Makes sure that files name no classes but matgl's models."""
    import torch

    try:
        content = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        arguments = torch.load(directory / "model.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UnsafeError(f"{text} asks for {asked[1]}, which is no part of a model", FORM) from error
        raise _unreadable(text, error) from error
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise _unreadable(text, error) from error
    if not isinstance(content, dict) or "@module" not in content:
        raise CheckpointError(f"{text} is no model of matgl", FORM)
    for module, name in (*_classes({key: content.get(key) for key in ("@module", "@class")}), *_classes(arguments)):
        if not _is_model(module, name):
            raise UnsafeError(f"{text} asks for {module}.{name}, which is no model of matgl", FORM)


def _classes(content: Any) -> Iterator[tuple[str, str]]:
    """All classes that something names, at any depth."""
    if isinstance(content, dict):
        if "@module" in content:
            yield str(content["@module"]), str(content.get("@class"))
        for value in content.values():
            yield from _classes(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _classes(value)


def _is_model(module: str, name: str) -> bool:
    from matgl.utils.io import IOMixIn

    if not HOMES.fullmatch(module):
        return False
    public = "matgl.models" if module.startswith("matgl.models") else "matgl.apps.pes"
    found = getattr(importlib.import_module(public), name, None)
    return isinstance(found, type) and issubclass(found, IOMixIn)


def _unreadable(text: str, error: BaseException) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"matgl cannot load {text}: {reason}", FORM)
