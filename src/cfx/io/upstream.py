"""Published checkpoints: pickles of {"params": Haiku tree, "opt_state": optax state}, read without trusting them."""

import re
from pathlib import Path
from typing import Any, Literal

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


HEAD_WIDTHS = {"none": 64, "required": 32, "optional": 32}
"""Width of an attention head in the published models, by what they do with a composition."""

NO_COMPOSITION = ("c_embedding_uncond", "c_embedding_unconditional")
"""Names of the embedding that CrystalFormer 0.6 has for no composition."""


def recognise(params: Params, num_heads: int | None = None, **sizes: Any) -> ModelConfig:
    """The architecture of published parameters, read off their shapes.

    Args:
        params: by published module names.
        num_heads: attention heads; by default they are 64 wide, or 32 in models that have a composition as input.
        **sizes: what shapes cannot tell: coord_components (16), n_max (21, where positions are rotary) and
            sigma_min (1e-3).

    Raises:
        CheckpointError: for another family of models.
    """
    embeddings = params.get("~", {})
    composition = _composition(embeddings)
    first, suffix = _naming(composition)
    try:
        num_species, embed_size = embeddings[f"a_{suffix}"].shape
        condition = embed_size * (1 if composition == "none" else 2)
        model_size = params[f"linear_{first + 2}"]["w"].shape[1]
        width = params["multi_head_attention/query"]["w"].shape[1]
        blocks = {name.split("/")[0] for name in params if re.match(r"multi_head_attention(_[1-9]\d*)?/", name)}
        num_layers = len(blocks)
        heads = num_heads or max(width // HEAD_WIDTHS[composition], 1)
        if width % heads:
            raise CheckpointError(f"{heads} heads do not divide the {width} columns of a query")
        positions = embeddings.get("positional_embeddings")
        if positions is not None:
            sizes = {"n_max": positions.shape[0] // 5} | sizes
        return ModelConfig(
            position="rotary" if positions is None else "absolute",
            composition=composition,
            num_frequencies=(params[f"linear_{first + 4}"]["w"].shape[0] - condition) // 2,
            lattice_components=(params[f"linear_{first + 7 + 2 * num_layers}"]["b"].shape[0] - num_species) // 13,
            first_hidden=params["linear"]["w"].shape[1],
            num_layers=num_layers,
            num_heads=heads,
            key_size=width // heads,
            model_size=model_size,
            embed_size=embed_size,
            num_species=num_species,
            num_letters=embeddings[f"w_{suffix}"].shape[0],
            widening=params[f"linear_{first + 7}"]["w"].shape[1] // model_size,
            **sizes,
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"not CrystalFormer parameters: {error} is missing or unknown") from error
    except UsageError as error:
        raise CheckpointError(f"not CrystalFormer parameters: {error.message}") from error


def _composition(embeddings: dict[str, np.ndarray]) -> Literal["none", "required", "optional"]:
    """What published parameters do with a composition; the models that read one call their embeddings tables."""
    if "g_embedding_table" not in embeddings:
        return "none"
    return "optional" if any(name in embeddings for name in NO_COMPOSITION) else "required"


def _naming(composition: str) -> tuple[int, str]:
    """The number of the linear layer that the first letter starts with, and the suffix of the embeddings."""
    # Haiku numbers layers in order of their calls; the head of the space group comes before all others.
    return (0, "embeddings") if composition == "none" else (2, "embedding_table")


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

    def stack(kind: str, suffix: str, name: str, start: int = 0, step: int = 1) -> np.ndarray:
        numbers = [start + step * layer for layer in range(config.num_layers)]
        return np.stack([take(f"{kind}_{i}{suffix}" if i else f"{kind}{suffix}", name) for i in numbers])

    first, table = _naming(config.composition)
    heads = (config.num_layers, config.model_size, config.num_heads, config.key_size)
    ours = {
        "~": {
            "space_group": take("~", f"g_{table}"),
            "letter": take("~", f"w_{table}"),
            "species": take("~", f"a_{table}"),
        },
        "blocks/block": {
            "value_w": stack("multi_head_attention", "/value", "w").reshape(heads),
            "value_b": stack("multi_head_attention", "/value", "b").reshape(heads[0], *heads[2:]),
        },
    }
    if config.position == "absolute":
        ours["~"]["position"] = take("~", "positional_embeddings")
    if config.composition == "optional":
        ours["~"]["no_composition"] = take(
            "~", next((name for name in NO_COMPOSITION if ("~", name) in left), NO_COMPOSITION[0])
        )
    linears = {"first_hidden": first, "first_output": first + 1}
    if config.composition != "none":
        linears |= {"group_hidden": 0, "group_output": 1}
    linears |= {f"token_{kind}": first + 2 + i for i, kind in enumerate(("letter", "species", "x", "y", "z"))}
    linears |= {"output": first + 7 + 2 * config.num_layers}
    for name, number in linears.items():
        ours[name] = {part: take(f"linear_{number}" if number else "linear", part) for part in ("w", "b")}
    ours["final_norm"] = {part: take(f"layer_norm_{2 * config.num_layers}", part) for part in ("scale", "offset")}
    for name, theirs in {"query": "/query", "key": "/key", "attention_output": "/linear"}.items():
        ours[f"blocks/block/{name}"] = {part: stack("multi_head_attention", theirs, part) for part in ("w", "b")}
    for i, name in enumerate(("mlp_hidden", "mlp_output")):
        ours[f"blocks/block/{name}"] = {part: stack("linear", "", part, first + 7 + i, 2) for part in ("w", "b")}
    for i, name in enumerate(("attention_norm", "mlp_norm")):
        ours[f"blocks/block/{name}"] = {part: stack("layer_norm", "", part, i, 2) for part in ("scale", "offset")}
    if left:
        raise CheckpointError("unknown parameters: " + ", ".join("/".join(key) for key in sorted(left)))
    return ours
