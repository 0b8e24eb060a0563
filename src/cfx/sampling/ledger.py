"""The ledger of a request: which crystal to draw next, which draws count, and in what order they come out.

Crystal i of a request is the first of its attempts (i, 0), (i, 1), ... that passes. Each attempt has random numbers of
its own, so that the crystals depend neither on the batch size nor on what is drawn beside them, and a part of a request
can be drawn by itself. Where duplicates are refused, crystal i also has to differ from all crystals before it.

A space group is exhausted once a crystal has used up its attempts: what was acceptable among them repeated earlier
crystals, or nothing was. This crystal and those after it then go to other space groups. It is decided when all crystals
before it have come out, so that it too depends on the request alone. A request whose last space group gives nothing
acceptable is an error.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.errors import NumericsError
from cfx.sampling.decode import Drawn
from cfx.sampling.pools import Job

AHEAD = 8192
"""How far beyond the first open crystal draws are started, or further for large batches; bounds what waits to come out
in order."""

PARALLEL = 64
"""Most attempts at one crystal under way at a time."""

DUPLICATE = "duplicate"
"""Why a crystal that repeats an earlier one is drawn again."""


@runtime_checkable
class Fingerprint(Protocol):
    """A crystal, as far as telling it from others needs it."""

    @property
    def key(self) -> Hashable:
        """What equal crystals share."""

    def same(self, other: Any) -> bool:
        """Whether another one of the same key is the same crystal."""
        ...


class Exhausted(NamedTuple):
    """A space group that gives nothing more.

    Attributes:
        space_group: its number.
        crystal: the one that used up its attempts.
        reasons: why each of them did not count.
    """

    space_group: int
    crystal: int
    reasons: Counter[str]


class Accepted(NamedTuple):
    """A crystal that counts.

    Attributes:
        job: the draw that made it.
        drawn: a batch of one (numpy).
    """

    job: Job
    drawn: Drawn


@dataclass
class _Entry:
    """What is known of an open crystal: attempts under way, attempts that failed, attempts that passed."""

    space_group: int
    started: int = 1
    first_open: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    passed: dict[int, Accepted] = field(default_factory=dict)

    @property
    def candidate(self) -> Accepted | None:
        """The first attempt that passed, once all those before it are known to have failed."""
        return self.passed.get(self.first_open)

    def fail(self, attempt: int, reason: str) -> None:
        """Notes a failure."""
        self.passed.pop(attempt, None)
        self.failures[attempt] = reason
        while self.first_open in self.failures:
            self.first_open += 1


class Ledger:
    """Hands out jobs, takes in draws, gives out crystals in the order of their numbers."""

    def __init__(
        self,
        numbers: range,
        space_group: Callable[[int], int],
        judge: Callable[[Drawn], list[str | None]],
        fingerprint: Callable[[CrystalBatch], Fingerprint] | None = None,
        max_attempts: int = 10_000,
        another_group: Callable[[int, Sequence[int]], int | None] | None = None,
        exhausted: Sequence[int] = (),
        ahead: int = AHEAD,
    ):
        """Opens the ledger of a request.

        Args:
            numbers: the crystals wanted.
            space_group: of a crystal by its number.
            judge: for each crystal of a batch, the reason why it does not count, or None.
            fingerprint: of a batch of one, to tell crystals apart; None lets them repeat.
            max_attempts: at one crystal, before giving up.
            another_group: of a crystal by its number, where the given space groups are exhausted; None if there is no
                other. Without it, a crystal that uses up its attempts is an error.
            exhausted: space groups that were found to be so in an earlier session, in order.
            ahead: how far beyond the first open crystal draws are started.
        """
        self.judge, self.fingerprint, self.max_attempts = judge, fingerprint, max_attempts
        self.rejected: Counter[str] = Counter()
        self.exhausted: list[Exhausted] = []
        self._space_group, self._another_group, self._ahead = space_group, another_group, ahead
        self._ended = list(exhausted)
        self._first, self._next, self._end = numbers.start, numbers.start, numbers.stop
        self._open: dict[int, _Entry] = {}
        self._again: list[Job] = []  # a heap: the sooner the first crystal is settled, the less is drawn in vain
        self._kept: dict[Hashable, list[Fingerprint]] = defaultdict(list)
        self._pending: dict[int, Fingerprint] = {}  # of candidates that differ from all that came out
        if self._ended and self._group(self._first) is None:
            self._end = self._first

    @property
    def is_complete(self) -> bool:
        """Whether all crystals have been handed out, or no space group gives more."""
        return self._first == self._end

    @property
    def ended(self) -> tuple[int, ...]:
        """The space groups that are exhausted, those of an earlier session included, in order."""
        return tuple(self._ended)

    @property
    def awaited(self) -> int:
        """The crystal that is next in order."""
        return self._first

    def rejected_so_far(self) -> Counter[str]:
        """Draws that did not count by reason, also those of crystals that have not come out."""
        return sum((Counter(entry.failures.values()) for entry in self._open.values()), Counter(self.rejected))

    def take(self, n: int) -> list[Job]:
        """At most n jobs: crystals that need another attempt, then new ones."""
        jobs = []
        while self._again and len(jobs) < n:
            job = heapq.heappop(self._again)
            if self._is_wanted(job):
                jobs.append(job)
        while len(jobs) < n and self._next < min(self._end, self._first + self._ahead):
            jobs.append(self._begin(self._next))
            self._next += 1
        return jobs

    def _begin(self, number: int) -> Job:
        """Opens a crystal; gives the first attempt at it."""
        group = self._group(number)
        assert group is not None, "a request without space groups is complete"
        self._open[number] = _Entry(group)
        return Job(number, 0, group)

    def _group(self, number: int) -> int | None:
        """The space group of a crystal; it depends on the exhausted ones and their order, not on when it is asked."""
        group: int | None = self._space_group(number)
        for count, ended in enumerate(self._ended, start=1):
            if group == ended and self._another_group is not None:
                group = self._another_group(number, self._ended[:count])
        return group

    def _is_wanted(self, job: Job) -> bool:
        return job.number in self._open and self._open[job.number].space_group == job.space_group

    def give_back(self, jobs: list[Job]) -> None:
        """Takes back jobs that could not be done."""
        for job in jobs:
            heapq.heappush(self._again, job)

    def remember(self, crystals: CrystalBatch) -> None:
        """Counts a crystal of an earlier session (a batch of one) among those that may not be repeated."""
        if self.fingerprint:
            own = self.fingerprint(crystals)
            self._kept[own.key].append(own)

    def put(self, jobs: list[Job], drawn: Drawn) -> None:
        """Takes in what the jobs gave.

        Raises:
            NumericsError: if a crystal has used up its attempts.
        """
        for row, (job, reason) in enumerate(zip(jobs, self.judge(drawn), strict=True)):
            if not self._is_wanted(job):
                continue  # an attempt that was not needed any more
            if reason is None:
                self._open[job.number].passed[job.attempt] = Accepted(job, one_of(drawn, row))
            else:
                self._fail(job, reason)
            self._consider(job.number)
        self.give_up()

    def release(self) -> Iterator[Accepted]:
        """The crystals that are next in order and settled; `give_up` looks at the one after them."""
        while self._first in self._open and (found := self._open[self._first].candidate) is not None:
            number = self._first
            # `_consider` has compared it with all that came out before it.
            self.rejected.update(self._open[number].failures[attempt] for attempt in range(found.job.attempt))
            del self._open[number]
            self._first += 1
            if self.fingerprint:
                self._keep(self._pending.pop(number))
            yield found

    def _consider(self, number: int) -> None:
        """Refuses candidates that repeat a crystal which has come out."""
        while self.fingerprint and number not in self._pending and (found := self._open[number].candidate) is not None:
            own = self.fingerprint(found.drawn.crystals)
            known = self._kept[own.key]
            if (match := next((i for i, kept in enumerate(known) if own.same(kept)), None)) is not None:
                known.insert(0, known.pop(match))  # what was drawn twice will be drawn again: compare with it first
                self._fail(found.job, DUPLICATE)
            else:
                self._pending[number] = own

    def _keep(self, own: Fingerprint) -> None:
        """Remembers a crystal that comes out, and refuses the candidates that repeat it."""
        self._kept[own.key].append(own)
        alike = [number for number, waiting in self._pending.items() if waiting.key == own.key]
        for number in sorted(alike):
            found = self._open[number].candidate
            if found is not None and self._pending[number].same(own):
                del self._pending[number]
                self._fail(found.job, DUPLICATE)
                self._consider(number)

    def _fail(self, job: Job, reason: str) -> None:
        entry = self._open[job.number]
        entry.fail(job.attempt, reason)
        if entry.passed:
            return
        # The more attempts have failed, the more are made at a time.
        parallel = min(2 ** min(len(entry.failures), 10), PARALLEL)
        for attempt in range(entry.started, min(len(entry.failures) + parallel, self.max_attempts)):
            heapq.heappush(self._again, Job(job.number, attempt, job.space_group))
            entry.started = attempt + 1

    def give_up(self) -> None:
        """Ends the space group of the crystal that is next in order, if it has used up its attempts.

        Raises:
            NumericsError: if none of them was acceptable and no other space group is left, or none may be taken.
        """
        entry = self._open.get(self._first)
        if entry is None or entry.first_open < self.max_attempts:
            return
        reasons, ended = Counter(entry.failures.values()), [*self._ended, entry.space_group]
        is_last = self._another_group is None or self._another_group(self._first, ended) is None
        if self._another_group is None or (is_last and not reasons[DUPLICATE]):
            said = ", ".join(f"{reason} {count} times" for reason, count in reasons.most_common())
            where = f"crystal {self._first} in space group {entry.space_group}"
            raise NumericsError(
                f"gave up after {entry.first_open} attempts at {where}: {said}",
                "relax the request, or raise `max_attempts`",
            )
        self.exhausted.append(Exhausted(entry.space_group, self._first, reasons))
        self.rejected.update(reasons)
        self._ended = ended
        if is_last:
            self._end = self._first
            self._open.clear()
            return
        for number in [number for number, other in self._open.items() if other.space_group == entry.space_group]:
            self._pending.pop(number, None)
            heapq.heappush(self._again, self._begin(number))


def one_of(drawn: Drawn, row: int) -> Drawn:
    """One crystal as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[row : row + 1], drawn)


def together(accepted: list[Accepted]) -> Drawn:
    """Crystals as one batch (numpy)."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *(each.drawn for each in accepted))
