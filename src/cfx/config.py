"""Frozen configurations, and how they travel through JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from cfx.errors import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a CrystalFormer; the defaults are the published configuration (2403.15734, Table S1).

    Attributes:
        position: how a token knows its place: rotary (Alex-20 and its fine-tuned models) or absolute (MP-20).
        num_frequencies: Fourier frequencies of a coordinate (Nf).
        coord_components: von Mises components of a coordinate (Kx).
        lattice_components: Gaussian components of the lattice (Kl).
        n_max: Wyckoff slots, of which one at least stays a pad.
        first_hidden: hidden width of the network that draws the first letter (h0).
        num_layers: transformer blocks.
        num_heads: attention heads.
        key_size: width of one head.
        model_size: width of the residual stream.
        embed_size: width of the three embeddings.
        num_species: atomic numbers, with 0 for a pad.
        num_letters: Wyckoff letters, with 0 for a pad.
        widening: width of the block's MLP over model_size.
        sigma_min: smallest standard deviation of a lattice component, model frame.
    """

    position: Literal["rotary", "absolute"] = "rotary"
    num_frequencies: int = 5
    coord_components: int = 16
    lattice_components: int = 4
    n_max: int = 21
    first_hidden: int = 256
    num_layers: int = 16
    num_heads: int = 16
    key_size: int = 64
    model_size: int = 64
    embed_size: int = 32
    num_species: int = 119
    num_letters: int = 28
    widening: int = 4
    sigma_min: float = 1e-3

    def __post_init__(self):
        if self.position not in ("rotary", "absolute"):
            raise UsageError(f"position must be rotary or absolute, not {self.position!r}")
        for name, value in dataclasses.asdict(self).items():
            if name not in ("position", "sigma_min") and (type(value) is not int or value < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.sigma_min, int | float) or not 0 < self.sigma_min < math.inf:
            raise UsageError(f"sigma_min must be a positive number, not {self.sigma_min!r}")
        if self.position == "rotary" and self.key_size % 2:
            raise UsageError(f"rotary positions need an even key_size, not {self.key_size}")
        if self.output_size < max(self.num_letters, 3 * self.coord_components):
            raise UsageError("the output row is too narrow for its heads: fewer components, or more species")

    @property
    def output_size(self) -> int:
        """Width of an output row: species logits, then the lattice mixture."""
        return self.num_species + self.lattice_components * 13


def _check_types(config: Any) -> None:
    """Refuses a value of another type than the field's default; a whole number will do for a float."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), str if field.default is None else type(field.default)
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits and not (value is None and field.default is None):
            raise UsageError(f"{field.name} must be of type {kind.__name__}, not {value!r}")


def _check_choices(config: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """Refuses a value that is none of those a field may have."""
    for name, values in choices.items():
        if getattr(config, name) not in values:
            raise UsageError(f"{name} must be one of {', '.join(values)}, not {getattr(config, name)!r}")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        epochs: passes over the training data.
        batch_size: crystals in a batch on average; every batch has about as many tokens as that many average crystals.
        accumulate: batches a step.
        optimizer: adam, or adamw with `weight_decay`.
        learning_rate: its peak.
        schedule: constant; inverse, learning_rate / (1 + decay * step), as published; or cosine, a linear warm-up and
            then half a cosine to 1 % of the peak.
        warmup_steps: of the cosine schedule; a tenth of the run at most.
        decay: of the inverse schedule.
        weight_decay: decoupled, of the weights of linear layers and embeddings; for adamw.
        clip_norm: largest global norm of the gradient.
        dropout: rate after attention and after the MLP.
        attention_dropout: rate on the attention weights.
        ema_decay: of an exponential moving average of the weights, which is then validated and kept as the best; 0 for
            none.
        precision: of matrix products in training: float32, bfloat16 (sums and everything else in float32), or auto,
            bfloat16 on accelerators.
        seed: of the initial weights, the order of the data and dropout.
        log_steps: steps between two lines of metrics; the end of an epoch has one too.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many of the latest checkpoints stay on disk; the best stays apart from them.
    """

    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "inverse", "cosine"] = "cosine"
    warmup_steps: int = 200
    decay: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    ema_decay: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    log_steps: int = 100
    checkpoint_steps: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self):
        _check_types(self)
        for name in ("epochs", "batch_size", "accumulate", "log_steps", "checkpoint_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("dropout", "attention_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name in ("warmup_steps", "decay", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"the seed must be a non-negative 32-bit integer, not {self.seed}")
        choices = {
            "optimizer": ("adam", "adamw"),
            "schedule": ("constant", "inverse", "cosine"),
            "precision": ("auto", "float32", "bfloat16"),
        }
        _check_choices(self, choices)
        if self.weight_decay and self.optimizer == "adam":
            raise UsageError("adam has no weight decay", "use --optimizer adamw")
        if self.decay and self.schedule != "inverse":
            raise UsageError(f"the {self.schedule} schedule has no decay", "use --schedule inverse")


@dataclass(frozen=True)
class DataConfig:
    """What a model is trained on.

    Attributes:
        train: file of crystals, or None: not said yet.
        validation: another, to choose the best epoch by.
        symprec: tolerance of the symmetry search, angstrom.
    """

    train: str | None = None
    validation: str | None = None
    symprec: float = 0.01

    def __post_init__(self):
        _check_types(self)
        if not 0 < self.symprec < math.inf:
            raise UsageError(f"symprec must be a length in angstrom, not {self.symprec}")


@dataclass(frozen=True)
class Template:
    """A given arrangement of sites, in the order of their letters.

    Attributes:
        letters: Wyckoff letters, as ("a", "b", "e"); empty leaves them free.
        species: for each site the symbols it may take; an empty list, or none for a site, means all.
        tied: groups of sites (0 is the first) that share one species.
        frac_coords: of each site, kept instead of drawn; empty: drawn.
        lattice: a, b, c (angstrom), alpha, beta, gamma (degree), kept instead of drawn; empty: drawn.
    """

    letters: tuple[str, ...] = ()
    species: tuple[tuple[str, ...], ...] = ()
    tied: tuple[tuple[int, ...], ...] = ()
    frac_coords: tuple[tuple[float, float, float], ...] = ()
    lattice: tuple[float, ...] = ()


@dataclass(frozen=True)
class SampleConfig:
    """What to sample.

    Attributes:
        space_groups: numbers, 1 to 230; the crystals take turns among those that can meet the request.
        weights: for each of `space_groups`, how likely it is drawn; empty: they take turns.
        n: crystals wanted.
        seed: of all random draws.
        temperature: divides logits and concentrations, widens lattice components; 1 is the model itself.
        top_p: share of the probability kept in every categorical draw; 1 is the model itself.
        batch_size: crystals drawn at once, 64 at least; None chooses by device and request.
        shard: (k, m): only the k-th of m parts of the request.
        elements: symbols allowed; empty: all.
        exclude: symbols not allowed.
        radioactive: allow elements without a stable isotope.
        require: symbols that every crystal contains.
        formula: reduced composition as (symbol, count); empty: free.
        bias: (symbol, nats) added to the logit of an element.
        max_atoms: most atoms in the conventional cell.
        max_sites: most symmetry-inequivalent sites.
        template: an arrangement of sites to fill.
        exact: draw from the model itself and reject what the request does not allow, instead of masking the draws.
        refine: steps of Markov-chain Monte Carlo on species and coordinates after the draw.
        unique: no crystal twice.
        min_distance: smallest distance between atoms, angstrom.
        keep_invalid: keep crystals without a physical lattice or with atoms too close.
        max_attempts: at one crystal, before giving up.
    """

    space_groups: tuple[int, ...]
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int | None = None
    weights: tuple[float, ...] = ()
    shard: tuple[int, int] = (1, 1)
    elements: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    radioactive: bool = True
    require: tuple[str, ...] = ()
    formula: tuple[tuple[str, int], ...] = ()
    bias: tuple[tuple[str, float], ...] = ()
    max_atoms: int | None = None
    max_sites: int | None = None
    template: Template = Template()
    exact: bool = False
    refine: int = 0
    unique: bool = False
    min_distance: float = 0.0
    keep_invalid: bool = False
    max_attempts: int = 10_000

    def __post_init__(self):
        if not self.space_groups:
            raise UsageError("no space group", "space groups run from 1 to 230")
        if self.n > 2**32:
            raise UsageError(f"one request has at most 2^32 crystals, not {self.n}", "take another seed for more")
        for group in self.space_groups:
            if not 1 <= group <= 230:
                raise UsageError(f"there is no space group {group}", "space groups run from 1 to 230")
        if self.weights and (
            len(self.weights) != len(self.space_groups) or min(self.weights) < 0 or not max(self.weights) > 0
        ):
            raise UsageError("there must be one weight, not negative, for each space group, and one above zero")
        for name in ("n", "batch_size", "max_atoms", "max_sites", "max_attempts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1e-6 <= self.temperature <= 1e6:
            raise UsageError(f"the temperature must be between 1e-6 and 1e6, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed must be a non-negative 63-bit integer, not {self.seed}")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"there is no shard {self.shard[0]} of {self.shard[1]}", "write --shard 3/16")
        if self.refine < 0:
            raise UsageError(f"steps of refinement must not be negative, not {self.refine}")
        if not 0 <= self.min_distance < math.inf:
            raise UsageError(f"the smallest distance must be a length in angstrom, not {self.min_distance}")
        for symbol, value in self.bias:
            if not abs(value) <= 1e4:
                raise UsageError(f"the bias of {symbol} must be a number of nats, not {value}")
        for symbol, count in self.formula:
            if not 1 <= count <= 256:
                raise UsageError(f"a formula has 1 to 256 atoms of an element, not {count} of {symbol}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        if self.exact and (self.bias or self.template.frac_coords or self.template.lattice):
            raise UsageError("--exact filters what the model draws; a bias or a kept prototype is no filter")
        if self.keep_invalid and self.min_distance:
            raise UsageError("atoms too close are kept by --keep-invalid and refused by --min-distance")

    @property
    def numbers(self) -> range:
        """The numbers of the crystals in this shard of the request."""
        part, parts = self.shard
        return range(self.n * (part - 1) // parts, self.n * part // parts)


@dataclass(frozen=True)
class EvalConfig:
    """How crystals are judged.

    Attributes:
        reference: known crystals that novelty is judged against, as a file or a name; None: it is not judged.
        potential: interatomic potential that computes energies, see `cfx.potentials`; None: stability is not judged.
        hull: phases that stability is judged against, as a file or a name; None: the bundled hull of CHGNet's energies
            where the potential is chgnet, and else none; "none": only energies are computed.
        hull_scale: of the hull's energies where its file does not say: raw or mp2020.
        relax: judge the relaxed crystals, but for validity and space group.
        fmax: largest force of a relaxed crystal, eV/angstrom.
        steps: of a relaxation, at most.
        device: of the potential.
        workers: processes; -1 for all cores.
    """

    reference: str | None = None
    potential: str | None = None
    hull: str | None = None
    hull_scale: str | None = None
    relax: bool = False
    fmax: float = 0.05
    steps: int = 500
    device: str = "cpu"
    workers: int = -1

    def __post_init__(self):
        for name, needed in (("hull", "potential"), ("relax", "potential"), ("hull_scale", "hull")):
            if getattr(self, name) and not getattr(self, needed):
                raise UsageError(f"{name.replace('_', '-')} needs a {needed}", f"name one with --{needed}")
        if self.hull is None and self.potential == "chgnet":
            object.__setattr__(self, "hull", "chgnet-mp")
        if self.hull == "none":
            object.__setattr__(self, "hull", None)
        if self.fmax <= 0 or self.steps < 1:
            raise UsageError("a relaxation has a largest force above 0 and at least one step")


@dataclass(frozen=True)
class Shape:
    """What is done to the values of a reward before they are weighed.

    Attributes:
        clip: lowest and highest value; empty: none.
        log1p: take log(1 + value), with the value's sign.
        threshold: 1 for values from here on, 0 below; None: the values themselves.
    """

    clip: tuple[float, float] | tuple[()] = ()
    log1p: bool = False
    threshold: float | None = None

    def __post_init__(self):
        if self.clip and not self.clip[0] < self.clip[1]:
            raise UsageError(f"rewards cannot be clipped to {self.clip[0]:g},{self.clip[1]:g}", "write LOWEST,HIGHEST")
        if self.log1p and self.threshold is not None:
            raise UsageError("a threshold and log1p exclude each other")


@dataclass(frozen=True)
class RewardConfig:
    """What makes a crystal good.

    Attributes:
        reward: names and weights, as ehull:1,fom:0.2; see `cfx.rewards`.
        shape: of each reward's values.
        potential: of ehull, energy and force.
        hull: of ehull, as a file or a name.
        hull_scale: of its energies where the file does not say: raw or mp2020.
        e_hull_limit: up to which E_hull counts, eV/atom; a crystal without one counts as that.
        e_hull_floor: below which E_hull is not believed, eV/atom: that far under all known phases are gaps of the hull
            and errors of the potential.
        gap_model: of gap and fom: bundled, matgl:NAME or matgl:/directory.
        dielectric_model: of dielectric and fom, likewise.
        property_name: what the model of property:MODEL predicts.
        target: value that a property is to have; None: the larger the better.
        distance: from it: square or absolute.
        novelty_bonus: added for a crystal that is not in `reference`.
        duplicate_penalty: taken off for a crystal that matches an earlier one of its batch.
        composition_penalty: taken off for one of an earlier one's reduced composition, whatever its structure.
        reference: known crystals, as a file or a name.
        device: of potentials and models: cpu or cuda.
    """

    reward: str = "ehull"
    shape: Shape = Shape()
    potential: str = "chgnet"
    hull: str = "chgnet-mp"
    hull_scale: str | None = None
    e_hull_limit: float = 2.0
    e_hull_floor: float = -0.2
    gap_model: str = "bundled"
    dielectric_model: str = "bundled"
    property_name: str = "property"
    target: float | None = None
    distance: Literal["square", "absolute"] = "square"
    novelty_bonus: float = 0.0
    duplicate_penalty: float = 0.0
    composition_penalty: float = 0.0
    reference: str | None = None
    device: str = "cpu"

    def __post_init__(self):
        if self.distance not in ("square", "absolute"):
            raise UsageError(f"the distance from a target is square or absolute, not {self.distance!r}")
        if not 0 < self.e_hull_limit < math.inf:
            raise UsageError(f"the limit of E_hull must be positive, not {self.e_hull_limit}")
        if not -math.inf < self.e_hull_floor < 0:
            raise UsageError(f"the floor of E_hull must be negative, not {self.e_hull_floor}")
        if self.novelty_bonus and self.reference is None:
            raise UsageError("a bonus for novelty needs known crystals", "name them with --reference")
        for name in ("novelty_bonus", "duplicate_penalty", "composition_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', ' ')} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class RLConfig:
    """How a model is fine-tuned by reinforcement (2504.02367, Section "Method").

    Attributes:
        algorithm: ppo, or grpo, whose advantages are normalised in groups that share a space group.
        steps: rollouts.
        batch_size: crystals in a rollout.
        group_size: crystals in a group of grpo.
        inner_epochs: passes over a rollout.
        minibatches: updates in a pass.
        learning_rate: of Adam.
        clip_norm: largest global norm of the gradient.
        clip_range: epsilon of the clipped objective.
        kl_coef: tau, in units of the reward; None: the reward's own.
        baseline: ema, a moving average of the mean reward; group, one for each space group; or batch, the mean reward
            of the rollout.
        baseline_decay: of the moving average.
        likelihood: policy, the exact one of what is drawn, or published.
        target_kl: mean KL from the policy that drew the rollout at which its inner epochs end, nats; 0: never.
        max_kl: mean KL from the reference at which the run ends, nats; 0: never.
        max_failures: share of a rollout without reward at which the run stops.
        seed: of all draws.
        keep: crystals of highest reward that are kept.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many of the latest stay on disk.
    """

    algorithm: Literal["ppo", "grpo"] = "ppo"
    steps: int = 100
    batch_size: int = 128
    group_size: int = 16
    inner_epochs: int = 5
    minibatches: int = 1
    learning_rate: float = 1e-4
    clip_norm: float = 1.0
    clip_range: float = 0.2
    kl_coef: float | None = None
    baseline: Literal["ema", "group", "batch"] = "ema"
    baseline_decay: float = 0.95
    likelihood: Literal["policy", "published"] = "policy"
    target_kl: float = 0.0
    max_kl: float = 0.0
    max_failures: float = 0.5
    seed: int = 0
    keep: int = 100
    checkpoint_steps: int = 10
    keep_checkpoints: int = 2

    def __post_init__(self):
        names = ("steps", "batch_size", "group_size", "inner_epochs", "minibatches", "keep", "checkpoint_steps")
        for name in (*names, "keep_checkpoints"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "clip_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', ' ')} must be positive, not {getattr(self, name)}")
        for name in ("kl_coef", "target_kl", "max_kl"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', ' ')} must not be negative, not {getattr(self, name)}")
        choices = {"algorithm": ("ppo", "grpo"), "baseline": ("ema", "group", "batch")}
        _check_choices(self, choices | {"likelihood": ("policy", "published")})
        if not 0 <= self.baseline_decay < 1 or not 0 < self.max_failures <= 1:
            raise UsageError("the decay of the baseline is below 1, the share of failures between 0 and 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed must be a non-negative 63-bit integer, not {self.seed}")
        if self.algorithm == "grpo" and (self.group_size < 2 or self.batch_size % self.group_size):
            raise UsageError(
                f"a batch of {self.batch_size} does not divide into groups of {self.group_size}", "choose --group-size"
            )
        if self.minibatches > self.batch_size:
            raise UsageError(f"there cannot be {self.minibatches} minibatches of {self.batch_size} crystals")


@dataclass(frozen=True)
class DPOConfig:
    """How a model is fine-tuned on pairs of crystals (2305.18290).

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs in an update.
        beta: weight of the reference policy.
        learning_rate: of Adam.
        clip_norm: largest global norm of the gradient.
        seed: of the order of the pairs.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many of the latest stay on disk.
    """

    epochs: int = 10
    batch_size: int = 64
    beta: float = 0.1
    learning_rate: float = 1e-5
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 100
    keep_checkpoints: int = 2

    def __post_init__(self):
        _check_types(self)
        for name in (
            "epochs",
            "batch_size",
            "beta",
            "learning_rate",
            "clip_norm",
            "checkpoint_steps",
            "keep_checkpoints",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', ' ')} must be positive, not {getattr(self, name)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of a configuration, for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any], base: Any = None) -> Any:
    """Rebuilds a configuration, on top of `base` if there is one; an unknown field is an error rather than ignored.

    Raises:
        UsageError: on fields that `cls` does not have.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{cls.__name__} has no field {', '.join(unknown)}", f"its fields are: {', '.join(sorted(known))}"
        )
    return cls(**values) if base is None else dataclasses.replace(base, **values)
