"""Published checkpoints: pickles of {"params": Haiku tree, "opt_state": optax state}, read without trusting them."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import ModelConfig
from cfx.core.network import check_shapes
from cfx.errors import CheckpointError, UnsafeError, UsageError
from cfx.io import pickles
from cfx.io.checkpoint import check_finite

Params = dict[str, dict[str, np.ndarray]]


def load_pickle(path: Path, name: str | None = None) -> Params:
    """The parameters of a published checkpoint, by module and name; messages call the file `name`.

    Raises:
        CheckpointError: if the file is damaged or no CrystalFormer checkpoint; UnsafeError if it is hostile.
    """
    name = name or str(path)
    try:
        with open(path, "rb") as file:
            content = pickles.load(file)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: {name}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {name}: {error.strerror}") from error
    except pickles.Refused as error:
        raise UnsafeError(
            f"{name}: {error}", "published CrystalFormer checkpoints hold only arrays and optimiser states"
        ) from None
    except pickles.Damaged as error:
        raise CheckpointError(
            f"{name} is not a readable pickle, or is cut short ({error})", "download it again"
        ) from error
    params = content.get("params", content) if isinstance(content, dict) else None
    modules = {module: _arrays(arrays) for module, arrays in params.items()} if isinstance(params, dict) else {}
    found = {module: arrays for module, arrays in modules.items() if isinstance(module, str) and arrays is not None}
    if len(found) < len(modules) or not isinstance(params, dict):
        raise CheckpointError(f"{name} holds no Haiku parameters")
    for module, arrays in found.items():
        check_finite({f"{module}/{part}": array for part, array in arrays.items()}, name)
    return found


def _arrays(module: Any) -> dict[str, np.ndarray] | None:
    """The arrays of a module by name, or None if it is none."""
    arrays = (
        {part: pickles.array_of(array) for part, array in module.items()} if isinstance(module, dict) else {"": None}
    )
    named = {part: array for part, array in arrays.items() if isinstance(part, str) and array is not None}
    floats = len(named) == len(arrays) and all(array.dtype.kind == "f" for array in named.values())
    return named if floats else None


def recognise(params: Params, num_heads: int | None = None, **sizes: Any) -> ModelConfig:
    """The architecture of published parameters, read off their shapes.

    Args:
        params: by published module names.
        num_heads: attention heads; by default they are 64 wide.
        **sizes: what shapes cannot tell: coord_components (16), n_max (21, where positions are rotary) and
            sigma_min (1e-3).

    Raises:
        CheckpointError: for another family of models.
    """
    embeddings = params.get("~", {})
    if any("g_embedding_table" in name for module, arrays in params.items() for name in (module, *arrays)):
        raise CheckpointError(
            "this is a CrystalFormer-CSP checkpoint, which is a different family of models",
            "cfx loads CrystalFormer (MP-20, Alex-20) and CrystalFormer-RL checkpoints",
        )
    try:
        embed_size = embeddings["g_embeddings"].shape[1]
        num_species = embeddings["a_embeddings"].shape[0]
        model_size = params["linear_2"]["w"].shape[1]
        width = params["multi_head_attention/query"]["w"].shape[1]
        blocks = {name.split("/")[0] for name in params if re.match(r"multi_head_attention(_[1-9]\d*)?/", name)}
        num_layers = len(blocks)
        heads = num_heads or max(width // 64, 1)
        if width % heads:
            raise CheckpointError(f"{heads} heads do not divide the {width} columns of a query")
        positions = embeddings.get("positional_embeddings")
        if positions is not None:
            sizes = {"n_max": positions.shape[0] // 5} | sizes
        return ModelConfig(
            position="rotary" if positions is None else "absolute",
            num_frequencies=(params["linear_4"]["w"].shape[0] - embed_size) // 2,
            lattice_components=(params[f"linear_{7 + 2 * num_layers}"]["b"].shape[0] - num_species) // 13,
            first_hidden=params["linear"]["w"].shape[1],
            num_layers=num_layers,
            num_heads=heads,
            key_size=width // heads,
            model_size=model_size,
            embed_size=embed_size,
            num_species=num_species,
            num_letters=embeddings["w_embeddings"].shape[0],
            widening=params["linear_7"]["w"].shape[1] // model_size,
            **sizes,
        )
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"not CrystalFormer parameters: {error} is missing or unknown") from error
    except UsageError as error:
        raise CheckpointError(f"not CrystalFormer parameters: {error.message}") from error


def convert(params: Params, config: ModelConfig) -> Params:
    """Published parameters under cfx's names, layers stacked.

    Raises:
        CheckpointError: where a parameter is missing, left over, or of another shape.
    """
    try:
        ours = _rename(params, config)
    except ValueError as error:  # numpy's, on stacking or reshaping
        raise CheckpointError(f"parameter shapes that do not fit together: {error}") from error
    check_shapes(ours, config)
    return ours


def _rename(params: Params, config: ModelConfig) -> Params:
    left = {(module, name) for module, arrays in params.items() for name in arrays}

    def take(module: str, name: str) -> np.ndarray:
        if (module, name) not in left:
            raise CheckpointError(f"the checkpoint lacks the parameter {module}/{name}")
        left.remove((module, name))
        return params[module][name]

    def stack(kind: str, suffix: str, name: str, first: int = 0, step: int = 1) -> np.ndarray:
        numbers = [first + step * layer for layer in range(config.num_layers)]
        return np.stack([take(f"{kind}_{i}{suffix}" if i else f"{kind}{suffix}", name) for i in numbers])

    heads = (config.num_layers, config.model_size, config.num_heads, config.key_size)
    ours = {
        "~": {
            "space_group": take("~", "g_embeddings"),
            "letter": take("~", "w_embeddings"),
            "species": take("~", "a_embeddings"),
        },
        "blocks/block": {
            "value_w": stack("multi_head_attention", "/value", "w").reshape(heads),
            "value_b": stack("multi_head_attention", "/value", "b").reshape(heads[0], *heads[2:]),
        },
    }
    if config.position == "absolute":
        ours["~"]["position"] = take("~", "positional_embeddings")
    linears = {"first_hidden": "linear", "first_output": "linear_1"}
    linears |= {f"token_{kind}": f"linear_{2 + i}" for i, kind in enumerate(("letter", "species", "x", "y", "z"))}
    linears |= {"output": f"linear_{7 + 2 * config.num_layers}"}
    for name, theirs in linears.items():
        ours[name] = {part: take(theirs, part) for part in ("w", "b")}
    ours["final_norm"] = {part: take(f"layer_norm_{2 * config.num_layers}", part) for part in ("scale", "offset")}
    for name, theirs in {"query": "/query", "key": "/key", "attention_output": "/linear"}.items():
        ours[f"blocks/block/{name}"] = {part: stack("multi_head_attention", theirs, part) for part in ("w", "b")}
    for i, name in enumerate(("mlp_hidden", "mlp_output")):
        ours[f"blocks/block/{name}"] = {part: stack("linear", "", part, 7 + i, 2) for part in ("w", "b")}
    for i, name in enumerate(("attention_norm", "mlp_norm")):
        ours[f"blocks/block/{name}"] = {part: stack("layer_norm", "", part, i, 2) for part in ("scale", "offset")}
    if left:
        raise CheckpointError("unknown parameters: " + ", ".join("/".join(key) for key in sorted(left)))
    return ours
