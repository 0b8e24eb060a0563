"""Files of matgl: where they lie, what they may ask for, and by which convention their networks are run.

The files hold names of classes, and arguments to make them with. matgl imports and calls whatever they name, so they
are checked before. Arrays and arguments come through torch's restricted unpickler.

Files do not say by which convention they are to be read, and matgl has changed it. Up to version 2, messages along an
edge were summed at its target; since then, at its source. The two are the same network only if what an edge's message
is made of is exchanged, too. Networks of earlier files load without an error and predict something else.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from cfx.catalog import POTENTIAL, REWARD, Entry, HubAddress, find, find_by_repo, parse_address
from cfx.errors import CheckpointError, NetworkError, UnsafeError
from cfx.fetch.files import fetch_file
from cfx.fetch.names import fetch_parts
from cfx.fetch.record import digest_of
from cfx.io.files import parse_json
from cfx.reporter import Silent

FILES = ("model.json", "model.pt", "state.pt")
OWNER = "materialyze"
"""Owner of the published models on the hub."""

FORM = "say matgl:NAME, a name of huggingface.co/materialyze, or matgl:/directory with model.json"
HOMES = re.compile(r"matgl\.(models(\._\w+)?|apps\.pes|apps\._pes\w*)")
"""Modules whose classes a file may name."""


# Conventions.


@dataclass(frozen=True)
class Convention:
    """How a network was run when it was trained, as far as the installed matgl runs it otherwise.

    Attributes:
        at_target: the part of the network in which messages are summed at the target of an edge, not at its source:
            "all" up to matgl 2; "embedding" of TensorNet in matgl 2 without DGL; None as in matgl 4.
        iterations: of set2set, or None for what the file says.
    """

    at_target: Literal["all", "embedding"] | None = None
    iterations: int | None = None

    def __str__(self) -> str:
        """What differs, or "" where nothing does."""
        where = {None: "", "all": "messages summed at targets", "embedding": "embeddings summed at targets"}
        often = "" if self.iterations is None else f"{self.iterations} iterations of set2set"
        return ", ".join(part for part in (where[self.at_target], often) if part)


AS_IT_IS, EARLIER = Convention(), Convention("all")

CONVENTIONS: Mapping[str, tuple[Convention, ...]] = MappingProxyType(
    {
        # A published file states 3 iterations for weights that were trained with 2 (matgl, issue 657).
        "MEGNet": (AS_IT_IS, EARLIER, Convention("all", 2)),
        "M3GNet": (AS_IT_IS, EARLIER),
        "TensorNet": (AS_IT_IS, EARLIER, Convention("embedding")),
    }
)
"""By architecture, what a file whose digest is unknown may be."""


@dataclass(frozen=True)
class Published:
    """What is known of a published file: the property that it predicts, and its convention."""

    property: str
    convention: Convention


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        # MEGNet-MP-2019.4.1-BandGap-mfi
        "2927ab9646ec3e099a3e42b1358a3c477db7356e2413bfa540fe0106cde628f9": Published("band_gap", Convention("all", 2)),
        # MEGNet-MP-2018.6.1-Eform
        "35381368b17a2783f9ee09af5556cf1d84b74bf786b82d3fadd4acb38c51d040": Published("formation_energy", EARLIER),
        # M3GNet-MP-2018.6.1-Eform, as of July 2023
        "166d4dba4aadbc5feb27e8aa047145facbcdadb9c5de067768e00515be3b3c1f": Published("formation_energy", EARLIER),
    }
)
"""SHA-256 of state.pt -> what is known of it."""


def conventions_of(network: Any) -> tuple[Convention, ...]:
    """By which conventions a network may have been trained, the installed matgl's first."""
    inner = _inner(network)
    stated = getattr(getattr(inner, "node_s2s", None), "n_iters", None)
    possible = CONVENTIONS.get(type(inner).__name__, (AS_IT_IS,))
    return tuple(one for one in possible if one.iterations is None or one.iterations != stated)


def run_by(network: Any, convention: Convention) -> Any:
    """A copy of a network of matgl that is run by a convention.

    The copy's own methods change, not the class: other networks stay as they are.
    """
    network = copy.deepcopy(network)
    inner = _inner(network)
    if convention.at_target is not None:
        {"MEGNet": _megnet, "M3GNet": _m3gnet, "TensorNet": _tensornet}[type(inner).__name__](inner, convention)
    if convention.iterations is not None:
        for name in ("processing_steps", "n_iters"):
            setattr(inner.node_s2s, name, convention.iterations)
        inner.edge_s2s.n_iters = convention.iterations
    return network


def _inner(network: Any) -> Any:
    """The network without the scaling of its target."""
    return getattr(network, "model", network)


def _megnet(network: Any, convention: Convention) -> None:
    for block in network.blocks:  # the update of nodes knows edges only by where their messages are summed
        block.conv.node_update_ = _with_edges_reversed(block.conv.node_update_)


def _m3gnet(network: Any, convention: Convention) -> None:
    for layer in network.graph_layers:
        layer.conv.node_update_ = _summed_at_targets(layer.conv)


def _tensornet(network: Any, convention: Convention) -> None:
    message = network.tensor_embedding.message

    def reversed_message(*, x_i: Any, x_j: Any, Aij: Any, **others: Any) -> Any:
        """That of the edge from target to source, along which only the antisymmetric part changes its sign."""
        return message(x_i=x_j, x_j=x_i, Aij=-Aij, **others)

    network.tensor_embedding.message = reversed_message
    if convention.at_target == "all":  # with DGL, layers summed the target's own features at the target
        for layer in network.layers:
            layer.message = _with_edges_reversed(layer.message)


def _with_edges_reversed(function: Callable) -> Callable:
    """A function of edges [2, n] and more, to which they are given from target to source."""
    return lambda edge_index, *others: function(edge_index.flip(0), *others)


def _summed_at_targets(conv: Any) -> Callable:
    """M3GNet's update of atoms (doi:10.1038/s43588-022-00349-3, equation 5), over the edges that end at an atom."""
    import torch
    from matgl.utils.maths import scatter_add

    def update(edge_index: Any, edge_feat: Any, node_feat: Any, rbf: Any, u_per_edge: Any, num_nodes: int) -> Any:
        source, target = edge_index
        states = [u_per_edge] if conv.include_state else []
        inputs = torch.hstack([node_feat[source], node_feat[target], edge_feat, *states])
        messages = conv.node_update_func(inputs) * conv.node_weight_func(rbf)
        return scatter_add(messages, target, dim_size=num_nodes, dim=0)

    return update


# Files.


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        text: how the user named them.
        name: what the model is called: its directory, or its repository on the hub.
        directory: where they lie.
    """

    text: str
    name: str
    directory: Path

    def published(self) -> Published | None:
        """What is known of the weights, if they are published ones."""
        return PUBLISHED.get(digest_of(self.directory / "state.pt").sha256)

    def is_of_earlier_version(self) -> bool:
        """Whether a version number or an argument shows that an earlier matgl wrote them; if not, it still may have."""
        content = parse_json((self.directory / "model.json").read_text(encoding="utf-8"))
        return any(map(_is_of_earlier_version, _described(content)))

    def network(self) -> Any:
        """The network, on the CPU, run as the installed matgl runs it.

        Raises:
            CheckpointError: if the files are damaged, or made by something else.
            UnsafeError: if they ask for anything but matgl's classes and numbers.
        """
        import matgl

        _silence_warp()
        with _known_globals():
            _check_classes(self.directory, self.text)
            try:
                with _with_present_names(self.directory) as directory:
                    return matgl.load_model(directory)
            except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
                innermost: BaseException = error  # matgl wraps whatever happened
                while innermost.__cause__ is not None:
                    innermost = innermost.__cause__
                raise _unreadable(self.text, innermost) from error


def find_files(text: str) -> ModelFiles:
    """The files of a name or a directory; they are fetched if they are published.

    Args:
        text: a directory; a name of the catalog; NAME or OWNER/NAME of the hub, an earlier name too.

    Raises:
        CheckpointError: if there is no model.
        NetworkError: if it has to be fetched, and cannot be.
    """
    path = Path(text).expanduser()
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        if missing := [name for name in FILES if not (path / name).is_file()]:
            raise CheckpointError(f"there is no {missing[0]} in {text}", FORM)
        return ModelFiles(text, path.name, path)
    repo = text if "/" in text else f"{OWNER}/{text}"
    entry = _entry(text) or find_by_repo(repo, REWARD, POTENTIAL)
    try:
        if entry is not None:
            paths = fetch_parts(entry, list(entry.files), Silent(), announce=False)
        else:
            addresses = [f"hf:{repo}/{name}" for name in FILES]
            paths = {address: fetch_file(address, Silent(), announce=False) for address in addresses}
    except NetworkError as error:
        raise NetworkError(f"matgl cannot find {text}: {error.message}", error.hint or FORM) from error
    address, file = next(iter(paths.items()))
    name = text if entry is None else _repo_name(address) or text
    return ModelFiles(text, name, file.parent if file.is_file() else _only_model(file, text))


def model_name(text: str) -> str:
    """What a model of the catalog is called on the hub; any other, as it is named."""
    entry = _entry(text)
    return text if entry is None else _repo_name(entry.address) or text


def _entry(name: str) -> Entry | None:
    """What is of matgl in the catalog."""
    entry = find(name, REWARD, POTENTIAL)
    return entry if entry is not None and entry.needs == "matgl" else None


def _repo_name(address: str) -> str | None:
    """The repository of an address, without its owner; None of what is elsewhere."""
    where = parse_address(address)
    return where.repo.partition("/")[2] if isinstance(where, HubAddress) else None


@contextlib.contextmanager
def _with_present_names(directory: Path) -> Iterator[Path]:
    """The directory of a model, or a copy of it in which arrays have the names by which matgl knows them now."""
    import torch

    state = torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
    renamed = {name.replace("readout.set2set.", "readout."): array for name, array in state.items()}
    if renamed.keys() == state.keys():
        yield directory
        return
    with tempfile.TemporaryDirectory() as copied:
        for name in FILES[:2]:
            shutil.copy(directory / name, copied)
        torch.save(renamed, Path(copied) / FILES[2])
        yield Path(copied)


def _silence_warp() -> None:
    """Keeps Warp, with which matgl finds neighbours if it is installed, from writing to stdout, where results go."""
    with contextlib.suppress(ImportError):
        import warp

        if hasattr(warp.config, "log_level"):
            warp.config.log_level = warp.LOG_WARNING
        else:
            warp.config.quiet = True


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
    import torch
    from matgl.data.transformer import LogTransformer, Normalizer

    scalar = np.float64(0).__reduce__()[0]  # numpy's private constructor of pickled scalars
    known = [Normalizer, LogTransformer, scalar, (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(known):
        yield


def _check_classes(directory: Path, text: str) -> None:
    """Makes sure that files name no classes but matgl's models."""
    import torch

    try:
        content = parse_json((directory / "model.json").read_text(encoding="utf-8"))
        arguments = torch.load(directory / "model.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UnsafeError(f"{text} asks for {asked[1]}, which is not part of a model", FORM) from error
        raise _unreadable(text, error) from error
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise _unreadable(text, error) from error
    if not isinstance(content, dict) or "@module" not in content:
        raise CheckpointError(f"{text} is not a model of matgl", FORM)
    for described in ({key: content.get(key) for key in ("@module", "@class")}, *_described(arguments)):
        if _class_of(described) is None:
            asked = f"{described['@module']}.{described.get('@class')}"
            raise UnsafeError(f"{text} asks for {asked}, which is not a model of matgl", FORM)


def _described(content: Any) -> Iterator[dict]:
    """What the content of a file names a class for, at any depth."""
    if isinstance(content, dict):
        if "@module" in content:
            yield content
        for value in content.values():
            yield from _described(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _described(value)


def _class_of(described: dict) -> type | None:
    """The class of matgl that is named, if it is one of a model."""
    from matgl.utils.io import IOMixIn

    module, name = str(described["@module"]), str(described.get("@class"))
    if not HOMES.fullmatch(module):
        return None
    public = "matgl.models" if module.startswith("matgl.models") else "matgl.apps.pes"
    found = getattr(importlib.import_module(public), name, None)
    return found if isinstance(found, type) and issubclass(found, IOMixIn) else None


def _is_of_earlier_version(described: dict) -> bool:
    """Whether a class has a higher version than what is described, or lacks one of its arguments."""
    found = _class_of(described)
    if found is None:
        return False
    arguments = described.get("init_args", described.get("kwargs")) or {}
    is_older = getattr(found, "__version__", 0) > described.get("@model_version", 0)
    return is_older or bool(arguments.keys() - inspect.signature(found).parameters.keys())


def _unreadable(text: str, error: BaseException) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"matgl cannot load {text}: {reason}", FORM)
