"""A model in memory: load it, draw from it, score with it."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfx.catalog import AUTO, MODELS
from cfx.config import ModelConfig, SampleConfig
from cfx.core import likelihood
from cfx.core.batches import iterate
from cfx.core.crystal import CrystalBatch, concatenate, validate
from cfx.core.decode import Drawn, decode
from cfx.core.lattice import is_physical
from cfx.core.likelihood import LogProb, init_params
from cfx.core.random import Sharpness
from cfx.errors import CheckpointError, NumericsError
from cfx.io import upstream
from cfx.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

HOPELESS = 5000
"""Unphysical draws in a row after which sampling gives up."""


@dataclass(frozen=True)
class Draws:
    """One batch of a request.

    Attributes:
        crystals: those with a physical lattice, in order of their draw number.
        log_prob: of these.
        numbers: int [B], their draw numbers.
        num_drawn: how many draws of the request have been used up so far.
        num_unphysical: how many of them were unphysical.
    """

    crystals: CrystalBatch
    log_prob: LogProb
    numbers: np.ndarray
    num_drawn: int
    num_unphysical: int


@dataclass(frozen=True)
class Model:
    """A CrystalFormer with weights.

    Attributes:
        name: what it was loaded as.
        config: architecture.
        params: weights, float32.
        info: what its checkpoint says of its training.
    """

    name: str
    config: ModelConfig
    params: Any
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def init(cls, config: ModelConfig, seed: int = 0) -> Model:
        """A model with random weights."""
        return cls("untrained", config, init_params(config, jax.random.key(seed)))

    def sample(
        self, space_group: int, n: int = 1, seed: int = 0, temperature: float = 1.0, top_p: float = 1.0
    ) -> CrystalBatch:
        """Draws `n` crystals with physical lattices.

        Args:
            space_group: 1 to 230.
            n: crystals.
            seed: the same seed gives the same crystals.
            temperature: below 1 sharpens every distribution, above 1 flattens it.
            top_p: share of the probability kept in every categorical draw.

        Raises:
            UsageError: for values out of range.
            NumericsError: if the model gives no physical lattice.
        """
        request = SampleConfig(space_group, n, seed, temperature, top_p)
        return concatenate([draws.crystals for draws in self.draws(request)])

    def draws(self, request: SampleConfig) -> Iterator[Draws]:
        """The crystals of a request, batch by batch.

        The request's draws are numbered 0, 1, 2, ...; the crystals are the first n with a physical lattice.
        """
        size = request.batch_size
        group = np.full(size, request.space_group, np.int32)
        sharpness = Sharpness(np.float32(request.temperature), np.float32(request.top_p))
        # jax.random.key(seed), without dropping the upper half of a seed beyond 32 bits.
        rng_key = jax.random.wrap_key_data(np.array([request.seed >> 32, request.seed & 0xFFFFFFFF], np.uint32))
        params = jax.tree.map(jnp.asarray, self.params)
        wanted, first, unphysical, barren = request.n, 0, 0, 0
        while wanted:
            numbers = np.arange(first, first + size, dtype=np.uint32)
            drawn: Drawn = jax.device_get(decode(params, self.config, rng_key, numbers, group, sharpness))
            good = is_physical(drawn.crystals.lattice) & np.isfinite(drawn.crystals.frac_coords).all((1, 2))
            keep = np.flatnonzero(good)[:wanted]
            last = keep[-1] + 1 if len(keep) == wanted else size
            unphysical += int((~good[:last]).sum())
            barren = 0 if len(keep) else barren + size
            if barren >= HOPELESS:
                raise NumericsError(
                    f"model {self.name}: {barren} draws in a row in space group {request.space_group} "
                    "gave no physical lattice",
                    "try a lower --temperature, or a trained model",
                )
            wanted -= len(keep)
            if len(keep):
                crystals, log_prob = jax.tree.map(operator.itemgetter(keep), (drawn.crystals, drawn.log_prob))
                yield Draws(crystals, log_prob, numbers[keep], first + int(last), unphysical)
            first += size

    def log_prob(self, batch: CrystalBatch, batch_size: int = 64) -> LogProb:
        """Published log-probability of crystals, nats, as numpy arrays.

        Args:
            batch: crystals in any number of slots up to n_max; plain arrays will do.
            batch_size: crystals scored at once.

        Raises:
            DataError: if they are no crystals the model can read.
        """
        batch = batch.numpy().with_slots(self.config.n_max)
        validate(batch, self.config.num_species)
        result = np.zeros((4, len(batch)), np.float32)
        for rows, part, _ in iterate(batch, batch_size):
            scored = _log_prob(self.params, self.config, part)
            result[:, rows] = np.stack(list(scored.parts().values()))[:, : len(rows)]
        return LogProb(*result)

    def save(self, path: str | Path, dtype: str | None = None) -> None:
        """Writes a checkpoint directory; `dtype` is the storage type, as "float16"."""
        save_checkpoint(Path(path), Checkpoint(self.config, self.params, self.info), dtype=dtype)

    @property
    def num_parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))

    def trained_on(self, space_group: int) -> int | None:
        """Crystals of a space group in the training data, or None if the checkpoint does not say."""
        counts = self.info.get("space_groups")
        return None if counts is None else counts.get(str(space_group), 0)


_log_prob = jax.jit(likelihood.log_prob, static_argnums=1)


def load_model(name: str | Path, num_heads: int | None = None, **sizes: int | float) -> Model:
    """Loads a model.

    Args:
        name: a name of the catalog, a checkpoint directory, or a published pickle.
        num_heads: for a pickle whose heads are not 64 wide.
        **sizes: for a pickle, what its shapes cannot tell: coord_components, n_max, sigma_min.

    Raises:
        CheckpointError: if there is no such model, or it cannot be trusted or read.
    """
    text = AUTO if str(name) == "auto" else str(name)
    if text in MODELS:
        return _load_entry(text)
    path = Path(text)
    if path.is_dir():
        checkpoint = load_checkpoint(path)
        return Model(text, checkpoint.config, checkpoint.params, checkpoint.info)
    if path.is_file():
        published = upstream.load_pickle(path)
        config = upstream.recognise(published, num_heads, **sizes)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        info = {"source": {"file": path.name, "sha256": digest, "format": "published pickle"}}
        return Model(text, config, upstream.convert(published, config), info)
    raise CheckpointError(
        f"there is no model {text!r}", f"give a directory, a .pkl file, or one of: auto, {', '.join(MODELS)}"
    )


def _load_entry(name: str) -> Model:
    entry = MODELS[name]
    if entry.resource is None:
        raise CheckpointError(
            f"{name} cannot be fetched by this version of cfx",
            f"download {entry.address} from Hugging Face and pass the file: --model epoch_....pkl",
        )
    checkpoint = load_checkpoint(Path(str(files("cfx.resources"))) / entry.resource)
    return Model(name, checkpoint.config, checkpoint.params, checkpoint.info)
