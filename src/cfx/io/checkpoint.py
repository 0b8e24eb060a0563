"""Checkpoint directories: params.safetensors, opt_state.safetensors and checkpoint.json, no pickle anywhere."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.config import ModelConfig, from_dict
from cfx.core.network import check_shapes
from cfx.errors import CheckpointError, UsageError
from cfx.io.files import parse_json, replace_atomically

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A model at rest.

    Attributes:
        config: its architecture.
        params: nested dictionaries of arrays; float32 in memory, whatever the file holds.
        info: everything else of checkpoint.json: step, run configuration, data provenance, where it came from.
    """

    config: ModelConfig
    params: dict[str, dict[str, Any]]
    info: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint, opt_state: Any = None, dtype: str | None = None) -> None:
    """Writes a checkpoint directory in the place of an older one; it appears whole or not at all.

    `opt_state` is any pytree of arrays, `dtype` the storage type of the parameters, as "float16", if not their own.

    Raises:
        OutputError: if it cannot be written.
    """
    from safetensors.numpy import save

    def write(directory: Path) -> None:
        directory.mkdir(parents=True)
        params = {name: np.asarray(value) for name, value in flatten(checkpoint.params).items()}
        if dtype is not None:
            params = {name: value.astype(dtype) for name, value in params.items()}
        (directory / "params.safetensors").write_bytes(save(params))
        if opt_state is not None:
            state = {name: np.asarray(value) for name, value in flatten(opt_state).items()}
            (directory / "opt_state.safetensors").write_bytes(save(state))
        content = {"format_version": FORMAT_VERSION, "model": asdict(checkpoint.config), **checkpoint.info}
        (directory / "checkpoint.json").write_text(json.dumps(content, indent=1) + "\n")

    replace_atomically(Path(path), write)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint directory.

    Raises:
        CheckpointError: if it is missing, damaged, or newer than this program.
    """
    path = Path(path)
    try:
        content = parse_json((path / "checkpoint.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint directory (checkpoint.json is missing)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}/checkpoint.json: {error}") from error
    if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
        raise CheckpointError(f"{path} has an unknown checkpoint format", "a newer version of cfx may read it")
    try:
        config = from_dict(ModelConfig, content.pop("model"))
    except (KeyError, TypeError, UsageError) as error:
        raise CheckpointError(f"{path}/checkpoint.json describes no model: {error}") from error
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, value in _read(path / "params.safetensors").items():
        module, _, parameter = name.rpartition("/")
        params.setdefault(module, {})[parameter] = value.astype(np.float32)
    try:
        check_shapes(params, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from None
    return Checkpoint(config, params, content)


def load_opt_state(path: Path, template: Any) -> Any:
    """The optimiser state of a checkpoint, in the structure of `template`.

    Raises:
        CheckpointError: if it is missing or of another optimiser.
    """
    arrays = _read(Path(path) / "opt_state.safetensors")
    names = flatten(template)
    if set(names) != set(arrays) or any(arrays[name].shape != np.shape(value) for name, value in names.items()):
        raise CheckpointError(
            f"{path} holds the state of another optimiser", "resume with the options of the first run"
        )
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in names])


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by path, as 'blocks/block/query/w'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_finite(arrays: Mapping[str, np.ndarray], source: Path | str) -> None:
    """Refuses weights that are not numbers: every draw of such a model fails, after a long time.

    Raises:
        CheckpointError: naming the first array that holds one.
    """
    for name, values in arrays.items():
        if values.dtype.kind not in "fiub":
            raise CheckpointError(f"{source}: {name} holds {values.dtype}, which are not numbers")
        if not np.isfinite(values).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite numbers", "the training may have diverged")


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # on types that numpy lacks
        raise CheckpointError(f"cannot read {path}: a tensor of a type that numpy lacks ({error})") from error
    check_finite(arrays, path)
    return arrays
