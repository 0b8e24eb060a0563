"""cfx sample: crystals from a model."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import SYMPREC, SampleConfig
from cfx.config.texts import space_groups
from cfx.core.crystal import CrystalBatch
from cfx.core.lattice import cell_vectors, is_physical
from cfx.data.dataset import read
from cfx.data.encode import find_space_group
from cfx.errors import NumericsError, OutputError, UsageError
from cfx.io.files import sole_writer
from cfx.io.formats import OutputRecord
from cfx.io.outputs import GrowingOutput, Output, StandardOutput, check_output
from cfx.model import Model
from cfx.reporter import Interrupted, Reporter, StopRequest, counted, speed
from cfx.runs.space_groups import find_space_groups
from cfx.sampling.ledger import DUPLICATE, Ledger
from cfx.sampling.request import left_out, prepare
from cfx.sampling.sampler import Draws, Resumed

SILENCE = 10.0
"""Seconds without a crystal after which it is said why."""


@dataclass
class SampleResult:
    """What a request gave.

    Attributes:
        num_crystals: in the output.
        rejected: attempts that did not count, by reason.
        asked: space group as asked -> number of crystals.
        as_asked: crystals in which a symmetry search finds the space group that was asked.
        found: other space groups that it finds (None: nothing) -> number of crystals.
        accepted_moves: share of Monte Carlo moves accepted in this session, or None without refinement.
        exhausted: space groups that gave nothing more, in the order in which they ended.
        resumed: crystals that an earlier session had written.
        seconds: wall time of drawing and writing.
    """

    num_crystals: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    asked: Counter[int] = field(default_factory=Counter)
    as_asked: int = 0
    found: Counter[int | None] = field(default_factory=Counter)
    accepted_moves: float | None = None
    exhausted: tuple[int, ...] = ()
    resumed: int = 0
    seconds: float = 0.0

    @property
    def num_drawn(self) -> int:
        """Attempts that the crystals took."""
        return self.num_crystals + self.rejected.total()

    def progress(self) -> dict[str, Any]:
        """What a later session needs to go on, as JSON can hold it."""
        return {
            "num_crystals": self.num_crystals,
            "rejected": dict(self.rejected),
            "asked": list(self.asked.items()),
            "as_asked": self.as_asked,
            "found": list(self.found.items()),
            "exhausted": list(self.exhausted),
        }

    @classmethod
    def of(cls, progress: dict[str, Any]) -> SampleResult:
        """The result that `progress` describes; {} is a new start."""
        result = cls(progress.get("num_crystals", 0), Counter(progress.get("rejected", {})))
        result.asked.update(dict(progress.get("asked", [])))
        result.found.update(dict(progress.get("found", [])))
        result.as_asked, result.resumed = progress.get("as_asked", 0), result.num_crystals
        result.exhausted = tuple(progress.get("exhausted", ()))
        return result


def sample(
    model: Model,
    request: SampleConfig,
    output: Path | None,
    reporter: Reporter,
    force: bool = False,
    resume: bool = False,
    clock: Callable[[], float] = time.monotonic,
    by_probability: bool = False,
) -> SampleResult:
    """Draws crystals and writes each batch as soon as it is there.

    Where none is to be repeated, the result has fewer than were wanted if the space groups give no more new ones.

    Args:
        output: a file or directory, or None for stdout.
        force: overwrite `output`.
        resume: continue OUTPUT.partial.
        clock: seconds, by which a long wait for a crystal is reported.
        by_probability: draw the space groups of the request by their probability, see `sampling.posterior`.

    Raises:
        UsageError: if the request cannot be met, or differs from the one to be continued.
        OutputError: if `output` cannot be written.
        Interrupted: after a signal; the crystals so far are in OUTPUT.partial.
    """
    with sole_writer(output):
        check_output(output, force, request.keep_invalid, resume)
        extra = {"by_probability": True} if by_probability else {}
        if by_probability:
            request = _by_probability(model, request, output, reporter, resume)
        return _sample(model, request, output, reporter, resume, clock, extra)


def _by_probability(
    model: Model, request: SampleConfig, output: Path | None, reporter: Reporter, resume: bool
) -> SampleConfig:
    """The request with its space groups weighted; if its output is continued, as they were then.

    They are not found again, since another machine may round their weights otherwise.
    """
    earlier = GrowingOutput(output, {}).earlier_request() if resume and output is not None else None
    if earlier is None:
        return find_space_groups(model, request, reporter).narrow(request)
    if not earlier.get("by_probability"):
        return request  # `_open` says what differs
    return replace(request, space_groups=tuple(earlier["space_groups"]), weights=tuple(earlier["weights"]))


def _sample(
    model: Model,
    request: SampleConfig,
    output: Path | None,
    reporter: Reporter,
    resume: bool,
    clock: Callable[[], float],
    extra: dict[str, Any],
) -> SampleResult:
    prepared = prepare(request, model.config)
    _warn(model, request, prepared.impossible, reporter)
    target, result, done = _open(model, request, output, resume, extra)
    start, total = time.perf_counter(), len(request.numbers)
    notes: set[str] = set()
    watch = _Watch(reporter, clock)
    with StopRequest() as stop, reporter.progress("crystals", total) as progress, _naming(output, result):
        progress.update(result.num_crystals, "compiling")
        for draws in model.draws(request, prepared, done, lambda: bool(stop), watch):
            for note in sorted(set(draws.notes) - notes):
                reporter.warning(note)
            notes.update(draws.notes)
            records = _records(model, request, draws, result)
            result.rejected, result.accepted_moves = draws.rejected, draws.accepted_moves
            result.exhausted = draws.exhausted
            target.write(records, result.progress())
            result.seconds = time.perf_counter() - start
            rate = (result.num_crystals - result.resumed) / result.seconds
            progress.update(result.num_crystals, speed(rate))
        if stop.signum is not None and result.num_crystals < total:
            raise Interrupted(stop.signum, f"stopped after {result.num_crystals} crystals{_where(output)}")
    target.close()
    if result.num_crystals < total and watch.ledger is not None:
        result.rejected, result.exhausted = watch.ledger.rejected, watch.ledger.ended
        reporter.warning(f"{result.num_crystals} of {total} crystals: the space groups give no more new ones")
    return result


class _Watch:
    """Tells of space groups that are exhausted, and of a long wait for the next crystal."""

    def __init__(self, reporter: Reporter, clock: Callable[[], float]):
        """A wait is told after SILENCE seconds of `clock`, and again after as many."""
        self._reporter, self._clock = reporter, clock
        self.ledger: Ledger | None = None
        self._awaited, self._ended, self._since, self._told = -1, 0, 0.0, 0.0

    def __call__(self, ledger: Ledger) -> None:
        for group, crystal, reasons in ledger.exhausted[self._ended :]:
            nothing = "nothing new" if reasons[DUPLICATE] else "nothing acceptable"
            self._reporter.warning(
                f"space group {group} is exhausted: {reasons.total()} draws of crystal {crystal} gave {nothing} "
                f"({_counts(reasons)}); the crystals still to come are of other space groups, if there are any; "
                "`max_attempts` allows more draws"
            )
        self.ledger, self._ended, now = ledger, len(ledger.exhausted), self._clock()
        if ledger.awaited != self._awaited:
            self._awaited, self._since, self._told = ledger.awaited, now, now
        elif now - self._told >= SILENCE and not ledger.is_complete:
            rejected, self._told = ledger.rejected_so_far(), now
            if rejected:  # otherwise what takes long is compiling, which the progress says
                self._reporter.message(
                    f"crystal {ledger.awaited} has been awaited for {now - self._since:.0f} s; "
                    f"{counted(rejected.total(), 'draw')} rejected so far: {_counts(rejected)}"
                )


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"


def _where(output: Path | None) -> str:
    return f"; they are in {output}.partial; continue with `resume`" if output else ""


@contextmanager
def _naming(output: Path | None, result: SampleResult) -> Iterator[None]:
    """Adds to a NumericsError where the crystals so far are."""
    try:
        yield
    except NumericsError as error:
        raise NumericsError(
            f"{error.message}; {result.num_crystals} crystals before{_where(output)}", error.hint
        ) from error


def _warn(model: Model, request: SampleConfig, impossible: dict[int, str], reporter: Reporter) -> None:
    if impossible:
        reporter.warning(left_out(impossible))
    unseen = [group for group in dict.fromkeys(request.space_groups) if model.trained_on(group) == 0]
    if len(unseen) == 1:
        reporter.warning(f"model {model.name} never saw space group {unseen[0]} in training")
    elif unseen:
        reporter.warning(f"model {model.name} never saw {len(unseen)} of these space groups in training")
    wanted = dict.fromkeys(
        [*request.elements, *request.require, *request.any_of, *(symbol for symbol, _ in request.formula)]
    )
    if "elements" in model.info and (strange := [symbol for symbol in wanted if symbol not in model.info["elements"]]):
        reporter.warning(f"model {model.name} never saw {', '.join(strange)} in training; leave out with `exclude`")


def _open(
    model: Model, request: SampleConfig, output: Path | None, resume: bool, extra: dict[str, Any]
) -> tuple[Output, SampleResult, Resumed]:
    """The output, the result so far, and what the sampler must know of it; `extra` is kept with the request."""
    if output is None and resume:
        raise UsageError("stdout cannot be continued", "name the output with -o")
    if output is None:
        return StandardOutput(), SampleResult(), Resumed()
    asked = {key: value for key, value in asdict(request).items() if key not in ("batch_size", "max_attempts")}
    header = json.loads(json.dumps({"model": model.digest(), **asked, **extra}))  # as it will be read again
    target = GrowingOutput(output, header, keep=request.unique)
    if not resume:
        target.begin()
        return target, SampleResult(), Resumed()
    result = SampleResult.of(target.resume())
    if result.num_crystals != target.count:
        raise OutputError(f"cannot continue {target.partial}: its count is damaged", "start again with `force`")
    kept = target.kept(result.num_crystals, model.config.n_max) if request.unique and result.num_crystals else None
    batches = tuple(kept[row : row + 1] for row in range(len(kept))) if kept is not None else ()
    return target, result, Resumed(result.num_crystals, result.rejected, batches, result.exhausted)


def _records(model: Model, request: SampleConfig, draws: Draws, result: SampleResult) -> list[OutputRecord]:
    """The crystals of a batch, counted and described."""
    records = []
    for row, job in enumerate(draws.jobs):
        crystals = draws.crystals[row : row + 1]
        found = find_space_group(_conventional_cell(crystals)) if is_physical(crystals.lattice)[0] else None
        result.asked[job.space_group] += 1
        if found == job.space_group:
            result.as_asked += 1
        else:
            result.found[found] += 1
        parts = {f"log_prob_{name}": float(value[row]) for name, value in draws.log_prob.parts().items()}
        remarks = {
            "model": model.name,
            "seed": request.seed,
            "draw": job.number,
            "attempt": job.attempt,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "log_prob": float(draws.log_prob.total[row]),
            **parts,
            "policy_log_prob": float(draws.policy_log_prob.total[row]),
            "space_group_found": "none" if found is None else found,
        }
        records.append(OutputRecord(result.num_crystals, crystals, remarks))
        result.num_crystals += 1
    return records


def _conventional_cell(crystal: CrystalBatch) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Row vectors (angstrom), coordinates [n, 3] and atomic numbers [n] of all atoms of a batch of one."""
    coords, site = crystal.atoms(0)
    return cell_vectors(np.asarray(crystal.lattice, float))[0], coords, crystal.species[0][site].tolist()


def space_group_counts(model: Model, name: str, reporter: Reporter) -> dict[int, int]:
    """Crystals by space group of a data set, or of what a model was trained on (name "model").

    Raises:
        UsageError: if the model does not say.
    """
    if name == "model":
        counts = model.info.get("space_groups")
        if not counts:
            raise UsageError(
                f"model {model.name} does not say what it was trained on", "name a data set: `space_group=data:FILE`"
            )
        return {int(group): int(count) for group, count in counts.items()}
    data = read(name, model.config.n_max, reporter, SYMPREC, os.cpu_count() or 1)
    return {group: int(count) for group, count in enumerate(data.space_group_counts(), start=1) if count}


def drawn_space_groups(text: str, model: Model, reporter: Reporter) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Space groups and weights of a text as --sg takes it; of data:NAME, as often as they are in a data set.

    Raises:
        UsageError: if it names none, or for data:model, if the model does not say.
        DataError: if the data set cannot be read.
    """
    if not text.startswith("data:"):
        return space_groups(text)
    counts = space_group_counts(model, text.removeprefix("data:"), reporter)
    found = {group: count for group, count in sorted(counts.items()) if count}
    return tuple(found), tuple(float(count) for count in found.values())
