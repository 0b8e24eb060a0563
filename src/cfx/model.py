"""A model in memory: load it, draw from it, score with it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.catalog import MODEL, find, is_hub_address, model_names
from cfx.config import ModelConfig, SampleConfig, texts
from cfx.config.fields import sorted_out
from cfx.config.symbols import ALL_SPACE_GROUPS
from cfx.core import likelihood
from cfx.core.batches import scoring_batches
from cfx.core.crystal import CrystalBatch, all_settings, validate
from cfx.core.known_prototypes import KnownPrototype, likeliest, typical_crystals
from cfx.core.likelihood import LogProb, init_params
from cfx.errors import CheckpointError, UsageError
from cfx.fetch import models
from cfx.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cfx.io.files import resource_directory
from cfx.progress import reporting
from cfx.reporter import Reporter
from cfx.sampling import policy, posterior, prototypes, sampler
from cfx.sampling.ledger import Ledger
from cfx.sampling.posterior import SpaceGroupPosterior, SpaceGroupsOfHead
from cfx.sampling.prototypes import PrototypeDraws
from cfx.sampling.request import PreparedRequest, prepare, told_composition
from cfx.sampling.sample import Sample, as_sample
from cfx.sampling.sampler import Draws, Resumed


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

    def __repr__(self) -> str:
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        return f"Model({self.name!r}, {size / 1e6:.2g} million parameters)"

    @classmethod
    def init(cls, config: ModelConfig, seed: int = 0) -> Model:
        """A model with random weights."""
        return cls("untrained", config, init_params(config, jax.random.key(seed)))

    def sample(
        self,
        space_group: int | str | Sequence[int | str] | None = None,
        n: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        progress: bool | None = None,
        **constraints: Any,
    ) -> Sample:
        """Draws `n` crystals, or with `unique` fewer, and warns, if the space groups give no more new ones.

        Args:
            space_group: 1 to 230, a symbol as "P6_3/mmc", "1-230" or "uniform"; of several, the crystals take turns.
                With a formula it can be left out: groups are then drawn by their probability, see
                `space_group_posterior`.
            n: crystals.
            seed: the same seed gives the same crystals.
            temperature: below 1 sharpens every distribution, above 1 flattens it.
            top_p: share of the probability kept in every categorical draw.
            progress: whether a bar is shown; by default in notebooks.
            **constraints: any other field of `SampleConfig`; texts stand for what they do on the command line, as
                elements="La,Ni,O" or formula="SrTiO3".

        Returns:
            The crystals, in n_max slots, with their log-probabilities.

        Raises:
            TypeError: for a name that is no constraint.
            UsageError: for values out of range, and constraints that cannot be met.
            NumericsError: if the model gives no acceptable crystal.
        """
        own = ("space_group", "n", "seed", "temperature", "top_p", "progress")
        [constraints] = sorted_out("sample", constraints, SampleConfig, own=own, without=("space_groups",))
        if space_group is None and not constraints.get("formula"):
            raise UsageError("no space group", "give one, or a `formula` for the space groups that are likely for it")
        groups: Any = ALL_SPACE_GROUPS if space_group is None else space_group  # what `SampleConfig` makes numbers of
        request = SampleConfig(space_groups=groups, n=n, seed=seed, temperature=temperature, top_p=top_p, **constraints)
        if space_group is None:
            request = self.likely_space_groups(request).narrow(request)
        total, drawn, found = len(request.numbers), [], 0
        with reporting(progress) as reporter, reporter.progress("crystals", total) as bar:
            bar.update(0, "compiling")
            for draws in self.draws(request):
                drawn.append(draws)
                found += len(draws)
                bar.update(found)
        if found < total:
            warnings.warn(f"{found} of {total} crystals: the space groups give no more new ones", stacklevel=2)
        return as_sample(drawn, self.config.n_max, self.name)

    def draws(
        self,
        request: SampleConfig,
        prepared: PreparedRequest | None = None,
        resumed: Resumed | None = None,
        stop: Callable[[], bool] = lambda: False,
        watch: Callable[[Ledger], None] = lambda ledger: None,
    ) -> Iterator[Draws]:
        """The crystals of a request, in order, as they are ready; see `sampling.sampler.draw`."""
        return sampler.draw(self.params, self.config, request, prepared, resumed, stop, watch)

    def rank_prototypes(self, known: Sequence[KnownPrototype]) -> list[KnownPrototype]:
        """Known prototypes of a composition, the likeliest first, see `core.known_prototypes.likeliest`.

        Raises:
            DataError: if a prototype has more sites than the model reads.
        """
        found = self.log_prob(typical_crystals(known, self.config.n_max))
        return [known[row] for row in likeliest(known, found.wyckoff + found.species)]

    def draw_prototypes(
        self, known: Sequence[KnownPrototype], n_each: int = 1, seed: int = 0, **options: Any
    ) -> PrototypeDraws:
        """Crystals of known prototypes (see `prototypes_of`), as `sampling.prototypes.draw_prototypes`.

        Letters and elements are those of the prototypes, coordinates and lattice the model's. `options` are its
        temperature, top_p and min_distance.

        Raises:
            UsageError: for values out of range, or a prototype with more sites than the model draws.
        """
        return prototypes.draw_prototypes(self.params, self.config, known, n_each, seed, **options)

    def space_group_posterior(
        self,
        formula: Any,
        max_atoms: int | None = None,
        draws: int = posterior.DRAWS,
        seed: int = 0,
        space_groups: Any = None,
        **constraints: Any,
    ) -> SpaceGroupPosterior:
        """How likely each space group is for a formula, in cells of any number of formula units.

        Args:
            formula: exact reduced composition, as "SrTiO3".
            max_atoms: most atoms in the conventional cell; None for 20 in the primitive cell.
            draws: at most so many are made, but at least one of every possible space group.
            seed: the same seed gives the same result.
            space_groups: among which to choose, as `sample` takes them; None for all.
            **constraints: any other constraint of `SampleConfig`, as max_sites=6.

        Raises:
            UsageError: for values out of range, if no space group that the model saw can hold the formula, and for a
                model with a head that tells this, see `space_group_log_prob`.
            NumericsError: if no draw ended with the formula.
        """
        groups = ALL_SPACE_GROUPS if space_groups is None else space_groups
        request = SampleConfig(space_groups=groups, formula=formula, max_atoms=max_atoms, seed=seed, **constraints)
        return self.posterior(request, draws)

    def likely_space_groups(
        self, request: SampleConfig, draws: int = posterior.DRAWS, watch: Callable[[int], None] = lambda made: None
    ) -> SpaceGroupPosterior | SpaceGroupsOfHead:
        """The space groups of a request that has a formula, by their probability.

        A head that was trained on p(space group | formula) is taken at its word; other models make draws, see
        `posterior`.

        Raises:
            UsageError: if no space group can meet the request.
            NumericsError: if no draw met it.
        """
        if not self.has_space_group_head:
            return self.posterior(request, draws, watch)
        return SpaceGroupsOfHead.of(self.space_group_log_prob(request.formula), request, self.config)

    def posterior(
        self, request: SampleConfig, draws: int = posterior.DRAWS, watch: Callable[[int], None] = lambda made: None
    ) -> SpaceGroupPosterior:
        """How likely each space group of a request is under its constraints; see `sampling.posterior`."""
        if self.has_space_group_head:
            raise UsageError(
                f"model {self.name} tells the space groups of a formula itself",
                "see `space_group_log_prob`, or `likely_space_groups` for those that can meet a request",
            )
        counts = self.info.get("space_groups") or {}
        frequencies = {int(group): float(count) for group, count in counts.items()} or None
        return posterior.space_group_posterior(self.params, self.config, request, frequencies, draws, watch)

    def policy_log_prob(self, batch: CrystalBatch, request: SampleConfig, batch_size: int = 64) -> LogProb:
        """Log-probability, nats (numpy), of drawing crystals in their order of sites under a request.

        The constraints, temperature and top-p of the request are in force; with a formula, its space groups must be
        those of the crystals. See `log_prob` for the rest.

        Raises:
            UsageError: if the request cannot be met.
        """
        in_force = prepare(request, self.config).policy
        return self._score(batch, batch_size, lambda part: _policy_log_prob(self.params, self.config, part, in_force))

    def log_prob(self, batch: CrystalBatch, batch_size: int = 64) -> LogProb:
        """Published log-probability of crystals, nats, as numpy arrays.

        A model that reads a composition is given each crystal's own.

        Args:
            batch: crystals in any number of slots up to n_max; plain arrays will do.
            batch_size: crystals scored at once, if they have 5 sites; more of shorter ones, fewer of longer ones.

        Raises:
            DataError: if they are not crystals that the model can read.
        """
        return self._score(batch, batch_size, lambda part: _log_prob(self.params, self.config, part))

    @property
    def has_space_group_head(self) -> bool:
        """Whether the model itself tells the space groups of a composition, see `space_group_log_prob`."""
        return self.config.composition != "none"

    def space_group_log_prob(self, formula: str | Sequence[tuple[str, int]] = ()) -> np.ndarray:
        """log p(space group | composition), nats, float32 [230], by the model's own head (2512.18251).

        Args:
            formula: "SrTiO3", or symbols and numbers of atoms, of any number of formula units. Without one, a model
                that can do without gives its log p(space group).

        Raises:
            UsageError: if the model has no such head, needs a composition, or there is no such element.
        """
        if not self.has_space_group_head:
            raise UsageError(
                f"model {self.name} does not tell the space groups of a composition",
                "models of the CrystalFormer-CSP family do",
            )
        counts = texts.formula(formula) if isinstance(formula, str) else formula
        told = told_composition(counts, self.config)
        with jax.default_matmul_precision("float32"):
            return np.asarray(_space_group_log_prob(self.params, self.config, told[None]))[0]

    def settings_log_prob(self, batch: CrystalBatch, batch_size: int = 64) -> np.ndarray:
        """Log of the summed published probability of all distinct settings of each crystal, nats, float64 [B].

        What a model knows of a crystal whichever equivalent setting it is given in, see `core.crystal.all_settings`:
        it compares models that were trained in given settings with those of `cfx train --augment`. Arguments and
        errors are those of `log_prob`.
        """
        found, crystal = all_settings(batch)
        result = np.full(len(batch), -np.inf)
        np.logaddexp.at(result, crystal, self.log_prob(found, batch_size).total.astype(float))
        return result

    def _score(self, batch: CrystalBatch, batch_size: int, score: Callable[[CrystalBatch], LogProb]) -> LogProb:
        batch = batch.numpy().with_slots(self.config.n_max)
        validate(batch, self.config.num_species)
        result = np.zeros((4, len(batch)), np.float32)
        for rows, part, _ in scoring_batches(batch, self.config.n_max, batch_size):
            with jax.default_matmul_precision("float32"):  # by itself JAX would take less on some GPUs
                scored = score(part).parts()
            result[:, rows] = np.stack(list(scored.values()))[:, : len(rows)]
        return LogProb(*result)

    def save(self, path: str | Path, dtype: str | None = None) -> None:
        """Writes a checkpoint directory; `dtype` is the storage type, as "float16"."""
        save_checkpoint(Path(path), Checkpoint(self.config, self.params, self.info), dtype=dtype)

    def digest(self) -> str:
        """SHA-256 of the weights, by which a continued run knows its model."""
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            found.update(np.ascontiguousarray(leaf).tobytes())
        return found.hexdigest()

    def trained_on(self, space_group: int) -> int | None:
        """Crystals of a space group in the training data, or None if the checkpoint does not say."""
        counts = self.info.get("space_groups")
        return None if counts is None else counts.get(str(space_group), 0)


_log_prob = jax.jit(likelihood.log_prob, static_argnums=1)
_space_group_log_prob = jax.jit(likelihood.space_group_log_prob, static_argnums=1)
_policy_log_prob = jax.jit(policy.policy_log_prob, static_argnums=1)


def load_model(name: str | Path, num_heads: int | None = None, reporter: Reporter | None = None, **sizes: Any) -> Model:
    """Loads a model.

    Args:
        name: a name of the catalog, a checkpoint directory, a published pickle, or hf:owner/repo/path of one on the
            Hugging Face hub. Published models are fetched and converted once.
        num_heads: for a pickle whose heads are not 64 wide.
        reporter: receives progress and warnings; by default notebooks show bars, and warnings are Python's own.
        **sizes: for a pickle, what its shapes cannot tell: coord_components, n_max, sigma_min.

    Raises:
        CheckpointError: if there is no such model, or it cannot be trusted or read.
        NetworkError: if it has to be fetched, and cannot be.
        OutputError: if what is fetched cannot be written.
        UsageError: if an address of the hub, or the token for it, is malformed.
        DataError: if the record of what was fetched is damaged.
    """
    with reporting(None, reporter) as told:
        return _load(name, told, num_heads, sizes)


def given_model(model: Model | str | Path, reporter: Reporter) -> Model:
    """A model, or the one that `load_model` makes of a name."""
    return model if isinstance(model, Model) else load_model(model, reporter=reporter)


def _load(name: str | Path, reporter: Reporter, num_heads: int | None, sizes: dict[str, Any]) -> Model:
    text = models.choose_auto(reporter) if str(name) == "auto" else str(name)
    entry = find(text)
    if entry is not None and entry.kind != MODEL:
        raise CheckpointError(f"{text} is not a model ({entry.summary})", f"choose one of: {', '.join(model_names())}")
    if entry is not None and entry.resource is not None:
        directory = resource_directory(entry)
    elif entry is not None:
        directory = models.fetch_entry(entry, reporter, num_heads=num_heads, **sizes)
    elif is_hub_address(text):
        directory = models.fetch_model(text, reporter, num_heads=num_heads, **sizes)
    else:
        directory = Path(text)
    if directory.is_dir():
        checkpoint = load_checkpoint(directory)
    elif directory.is_file():
        checkpoint = models.read_published(directory, {}, num_heads, **sizes)
    else:
        raise CheckpointError(
            f"there is no model {text!r}",
            f"give a directory, a .pkl file, hf:owner/repo/path, or one of: auto, {', '.join(model_names())}",
        )
    return Model(entry.name if entry else text, checkpoint.config, checkpoint.params, checkpoint.info)
