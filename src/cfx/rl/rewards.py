"""What a reward is, and rewards made of rewards: shaped, summed, with what novelty and repetition add."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cfx.config.finetuning import UNSHAPED, Shape
from cfx.core import Structure
from cfx.errors import CfxError, RewardError
from cfx.evaluation.matching import find_duplicates
from cfx.evaluation.novelty import Reference, find_novel

DEFAULT_KL_COEF = 0.1
"""tau of rewards whose values are of order 1."""

EVALUATIONS = "evaluations"
"""The part of a reward that says how often a potential was asked for the forces of a crystal."""

NO_STRUCTURE = "its lattice closes no cell"
"""Why a crystal without a structure has no reward."""


@dataclass(frozen=True)
class RewardBatch:
    """What a reward says of n crystals, in the order in which they were given.

    Attributes:
        value: float64 [n], higher is better, NaN where not ok.
        ok: bool [n].
        reasons: why a crystal is not ok, on one line; "" where it is.
        metrics: what the value was made of, by name with its unit ("E_hull (eV/atom)"): float64 [n], NaN where unknown.
    """

    value: np.ndarray
    ok: np.ndarray
    reasons: list[str]
    metrics: dict[str, np.ndarray] = field(default_factory=dict)


class Reward(Protocol):
    """A reward.

    Attributes:
        name: as on the command line.
        about: what computes it, for whoever reads the numbers; one line.
        unit: of the value, "" if it has none.
        kl_coef: tau in the reward's unit, unless the user says another.
        failure: what a crystal without a value counts as.
    """

    name: str
    about: str
    unit: str
    kl_coef: float
    failure: float

    def evaluate(self, structures: Sequence[Structure | None], /) -> RewardBatch:
        """The rewards of crystals; one that cannot be evaluated gets a reason and leaves the others alone."""
        ...


@dataclass
class NamedReward:
    """A `Reward` made of a function."""

    name: str
    about: str
    unit: str
    failure: float
    evaluate: Callable[[Sequence[Structure | None]], RewardBatch]
    kl_coef: float = DEFAULT_KL_COEF


def make_batch(value: np.ndarray, reasons: Sequence[str], metrics: dict[str, np.ndarray] | None = None) -> RewardBatch:
    """A batch whose crystals are ok where nothing is wrong with them and the value is a finite number.

    Args:
        value: float [n].
        reasons: what is wrong with each, "" for nothing.
        metrics: see `RewardBatch`.
    """
    value = np.array(value, np.float64)
    reasons = [
        reason or ("" if np.isfinite(each) else "the reward is not a finite number")
        for reason, each in zip(reasons, value, strict=True)
    ]
    ok = np.array([not reason for reason in reasons], bool)
    return RewardBatch(np.where(ok, value, np.nan), ok, reasons, metrics or {})


def evaluate_checked(reward: Reward, structures: Sequence[Structure | None]) -> RewardBatch:
    """What a reward says of n crystals, which may be anything where it is somebody else's; it gets copies.

    Raises:
        RewardError: if it raises, or does not answer with n rewards.
    """
    try:
        with confined():
            batch = reward.evaluate([getattr(one, "copy", lambda: None)() or one for one in structures])
            wrong = _what_is_wrong(batch, len(structures))
    except CfxError:
        raise
    except ANYTHING as error:
        raise RewardError(
            f"the reward {reward.name} raised {described(error)}", "the traceback is shown with: cfx --debug"
        ) from error
    if wrong:
        raise RewardError(f"the reward {reward.name} {wrong}", "evaluate returns make_batch(value, reasons, metrics)")
    return batch


ANYTHING = (Exception, SystemExit, GeneratorExit, KeyboardInterrupt)
"""What the code of others may raise; with SystemExit it would end the run as if nothing had happened."""


def described(error: BaseException) -> str:
    """What an error of others' code says, in one line."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


@contextmanager
def confined() -> Iterator[None]:
    """Undoes what the code of others may set for all: the working directory, how numpy and JAX compute, warnings."""
    import jax

    directory, x64 = os.getcwd(), bool(jax.config.read("jax_enable_x64"))
    try:
        with np.errstate(), warnings.catch_warnings():
            yield
    finally:
        os.chdir(directory)
        jax.config.update("jax_enable_x64", x64)


def _what_is_wrong(batch: Any, num: int) -> str:
    """Why something is no RewardBatch of `num` crystals; "" if it is one."""
    if not all(hasattr(batch, name) for name in ("value", "reasons", "metrics")) or not isinstance(batch.metrics, dict):
        return f"returned {type(batch).__name__}, not a RewardBatch"
    if not all(isinstance(name, str) for name in batch.metrics):
        return "returned metrics whose names are no text"
    columns = {"values": batch.value, **{f"metrics {name!r}": column for name, column in batch.metrics.items()}}
    for name, column in columns.items():
        try:
            shape = np.asarray(column, np.float64).shape
        except (TypeError, ValueError):
            return f"returned {name} that are no numbers"
        if shape != (num,):
            return f"returned {name} of shape {shape} for {num} crystals"
    if len(batch.reasons) != num:
        return f"returned {len(batch.reasons)} reasons for {num} crystals"
    if not all(isinstance(reason, str) for reason in batch.reasons):
        return "returned reasons that are no text"
    return ""


def shape_values(value: np.ndarray, shape: Shape) -> np.ndarray:
    """Values as a `Shape` has them: clipped, then as sign(r) log(1 + |r|), or as 1 from a threshold on and 0 below."""
    value = np.asarray(value, float)
    if shape.clip:
        value = np.clip(value, *shape.clip)
    if shape.log1p:
        value = np.sign(value) * np.log1p(np.abs(value))
    if shape.threshold is not None:
        value = np.where(np.isnan(value), np.nan, (value >= shape.threshold).astype(float))
    return value


def weighted_sum(parts: Sequence[tuple[Reward, float]], shape: Shape = UNSHAPED) -> NamedReward:
    """A sum of shaped rewards; a crystal is ok if all of them have a value for it.

    Args:
        parts: rewards and their weights.
        shape: of each reward's values, before the weight.
    """

    def evaluate(structures: Sequence[Structure | None]) -> RewardBatch:
        total, reasons, metrics = np.zeros(len(structures)), [""] * len(structures), {}
        for reward, weight in parts:
            batch = evaluate_checked(reward, structures)
            checked = make_batch(batch.value, batch.reasons)
            total = total + weight * shape_values(checked.value, shape)
            reasons = [one or other for one, other in zip(reasons, checked.reasons, strict=True)]
            metrics |= batch.metrics
            if len(parts) > 1:
                metrics[f"{reward.name} reward"] = checked.value
        return make_batch(total, reasons, metrics)

    [(first, weight), *others] = parts
    keeps_unit = not others and weight == 1 and shape == Shape(clip=shape.clip)
    # Shaped values are of order 1, whatever the unit was.
    of_order_one = shape.log1p or shape.threshold is not None
    return NamedReward(
        name=",".join(reward.name + (f":{weight:g}" if weight != 1 else "") for reward, weight in parts),
        about="; ".join(f"{reward.name}: {reward.about}" for reward, _ in parts) if others else first.about,
        unit=first.unit if keeps_unit else "",
        failure=sum(float(shape_values(np.array(reward.failure), shape)) * weight for reward, weight in parts),
        evaluate=evaluate,
        kl_coef=DEFAULT_KL_COEF if of_order_one else sum(abs(weight) * reward.kl_coef for reward, weight in parts),
    )


@dataclass(frozen=True)
class Diversity:
    """What becomes of rewards so that the policy does not collapse onto one crystal, or onto known ones.

    Attributes:
        novelty_bonus: for a crystal that matches none of `reference`.
        duplicate_penalty: for a crystal that matches an earlier one of its batch; None: it counts as a failure does, so
            that of copies one is worth something, whatever the unit of the reward.
        composition_penalty: for a crystal that has the reduced composition of an earlier one of its batch.
        reference: known crystals.
    """

    novelty_bonus: float = 0.0
    duplicate_penalty: float | None = 0.0
    composition_penalty: float = 0.0
    reference: Reference | None = None

    def apply(
        self, value: np.ndarray, failure: float, structures: Sequence[Structure | None], repeated: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The rewards to learn from, float64 [n], and by name who is unique in the batch and who is novel (0, 1).

        Args:
            value: float64 [n], rewards as they are; failures count as `failure` already.
            failure: what a failure counts as.
            structures: n of them, None where there is none.
            repeated: bool [n], crystals that are known to be copies of earlier ones, which need not be compared.
        """
        compared = [None if copy else one for one, copy in zip(structures, repeated, strict=True)]
        unique = np.array([record.unique for record in find_duplicates(compared, 1)], float)
        copies = (unique == 0) & np.array([one is not None for one in structures])
        if self.duplicate_penalty is None:
            value = np.where(copies, failure, value)
        else:
            value = value - self.duplicate_penalty * copies
        if self.composition_penalty:
            value = value - self.composition_penalty * _repeats([one and one.composition for one in structures])
        found = {"unique": unique}
        if self.reference is not None:
            novel = np.array([bool(record.novel) for record in find_novel(structures, self.reference, 1)], float)
            found["novel"] = novel
            value = value + self.novelty_bonus * novel
        return value, found


def _repeats(compositions: Sequence) -> np.ndarray:
    """Whether an earlier one is the same up to a factor, float64 [n]; None never is."""
    seen, repeats = set(), np.zeros(len(compositions))
    for i, one in enumerate(compositions):
        formula = None if one is None else one.reduced_formula
        repeats[i] = formula is not None and formula in seen
        seen.add(formula)
    return repeats
