"""The ledger: its crystals are those of a simple loop, whatever comes back when."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb
from cfx.errors import NumericsError
from cfx.sampling.decode import Drawn
from cfx.sampling.ledger import AHEAD, DUPLICATE, PARALLEL, Ledger, together
from cfx.sampling.pools import Job

GROUPS = (14, 62, 194)


def space_group(number: int) -> int:
    return GROUPS[number % len(GROUPS)]


@dataclasses.dataclass(frozen=True)
class World:
    """What every attempt gives: a reason why it does not count, or a value; close values are the same crystal.

    As with real crystals, a ~ b and b ~ c does not mean a ~ c, and only crystals that share a key are compared.
    """

    reasons: dict[tuple[int, int], str]
    values: dict[tuple[int, int], int]

    def judge(self, drawn: Drawn) -> list[str | None]:
        """The reasons of a batch, whose lattices hold number and attempt."""
        return [self.reasons.get((int(row[0]), int(row[1]))) for row in drawn.crystals.lattice]

    def draw(self, jobs: list[Job]) -> Drawn:
        """The batch that a decoder would give for jobs."""
        lattice = np.ones((len(jobs), 6), np.float32)
        lattice[:, :3] = [(job.number, job.attempt, self.values.get((job.number, job.attempt), 0)) for job in jobs]
        sites = np.ones((len(jobs), 1), np.int32)
        group = np.array([job.space_group for job in jobs], np.int32)
        log_prob = LogProb(*np.zeros((4, len(jobs)), np.float32))
        return Drawn(CrystalBatch(group, lattice, np.zeros((len(jobs), 1, 3)), sites, sites), log_prob, log_prob)


@dataclasses.dataclass(frozen=True)
class Value:
    """A fingerprint."""

    value: int

    @property
    def key(self) -> int:
        return self.value // 8

    def same(self, other: Value) -> bool:
        return abs(self.value - other.value) <= 1


def fingerprint(crystals: CrystalBatch) -> Value:
    assert len(crystals) == 1
    return Value(int(crystals.lattice[0, 2]))


def settle(ledger: Ledger, world: World, jobs: list[Job]) -> list[tuple[int, int]]:
    """Puts results in, and returns number and attempt of what comes out."""
    if jobs:
        ledger.put(jobs, world.draw(jobs))
    return [(each.job.number, each.job.attempt) for each in ledger.release()]


def one_by_one(world: World, numbers: range, unique: bool) -> tuple[list[tuple[int, int]], Counter[str]]:
    """Accepted (number, attempt) and rejected reasons by the plainest loop there is."""
    accepted, rejected, kept = [], Counter(), []
    for number in numbers:
        attempt = 0
        while True:
            own, reason = Value(world.values[number, attempt]), world.reasons.get((number, attempt))
            if reason is None and unique and any(own.key == other.key and own.same(other) for other in kept):
                reason = DUPLICATE
            if reason is None:
                break
            rejected[reason] += 1
            attempt += 1
        accepted.append((number, attempt))
        kept.append(own)
    return accepted, rejected


def make_world(seed: int, numbers: range, failing: float, num_values: int, attempts: int = 400) -> World:
    random, keys = np.random.default_rng(seed), [(number, attempt) for number in numbers for attempt in range(attempts)]
    fails = random.random(len(keys)) < failing
    values = random.integers(num_values, size=len(keys))
    kind = random.choice(["unphysical lattice", "atoms too close"], len(keys))
    return World(
        {key: str(kind[i]) for i, key in enumerate(keys) if fails[i]},
        {key: int(values[i]) for i, key in enumerate(keys)},
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    unique=st.booleans(),
    failing=st.sampled_from([0.0, 0.5, 0.9]),
    first=st.sampled_from([0, 5]),
)
def test_any_order_of_results_gives_the_crystals_of_a_simple_loop(seed, unique, failing, first):
    numbers = range(first, first + 12)
    world = make_world(seed, numbers, failing, num_values=60)
    ledger = Ledger(numbers, space_group, world.judge, fingerprint if unique else None)
    random, under_way, accepted, seen, idle = np.random.default_rng(seed), [], [], set(), 0
    while not ledger.is_complete:
        taken = ledger.take(int(random.integers(1, 9)))
        assert all(job.space_group == space_group(job.number) for job in taken)
        assert not seen & set(taken), "a job was handed out twice"
        seen |= set(taken)
        under_way += taken
        random.shuffle(under_way)
        some = int(random.integers(0, len(under_way) + 1))
        lost = int(random.integers(0, len(under_way) - some + 1)) if random.random() < 0.2 else 0
        results, back, under_way = under_way[:some], under_way[some : some + lost], under_way[some + lost :]
        if back:
            ledger.give_back(back)
            seen -= set(back)
        if random.random() < 0.5 and results:
            ledger.put(results, world.draw(results))  # and nothing is taken out for now
        else:
            accepted += settle(ledger, world, results)
        idle = 0 if taken or results or back or under_way else idle + 1
        assert idle < 3, "nothing left to draw, and crystals missing"
    expected, rejected = one_by_one(world, numbers, unique)
    assert accepted == expected
    assert ledger.rejected == rejected
    assert ledger.take(100) == []


def test_the_worlds_of_that_test_hold_what_it_is_about():
    """Duplicates, failures, and chains in which the first and the last are different."""
    totals = Counter()
    for seed in range(20):
        world = make_world(seed, range(12), 0.5, num_values=60)
        totals += one_by_one(world, range(12), unique=True)[1]
    assert totals[DUPLICATE] > 20 and totals["unphysical lattice"] > 20 and totals["atoms too close"] > 20
    assert Value(1).same(Value(2)) and Value(2).same(Value(3)) and not Value(1).same(Value(3))


def test_crystals_come_out_in_order_and_not_before_the_first():
    world = World({}, {})
    ledger = Ledger(range(3, 7), space_group, world.judge)
    jobs = ledger.take(10)
    assert jobs == [Job(number, 0, space_group(number)) for number in range(3, 7)]
    assert settle(ledger, world, [jobs[3], jobs[1]]) == []
    assert settle(ledger, world, [jobs[0]]) == [(3, 0), (4, 0)]
    assert not ledger.is_complete
    assert settle(ledger, world, [jobs[2]]) == [(5, 0), (6, 0)]
    assert ledger.is_complete and ledger.take(10) == []


def test_what_comes_out_is_what_was_drawn():
    world = World({(1, 0): "no"}, {(0, 0): 7, (1, 1): 9})
    ledger = Ledger(range(2), space_group, world.judge)
    first = ledger.take(2)
    ledger.put(first[::-1], world.draw(first[::-1]))
    again = ledger.take(2)
    ledger.put(again, world.draw(again))
    crystals = together(list(ledger.release())).crystals
    np.testing.assert_array_equal(crystals.lattice[:, :3], [[0, 0, 7], [1, 1, 9]])
    np.testing.assert_array_equal(crystals.space_group, [space_group(0), space_group(1)])


def test_the_first_passing_attempt_wins_though_a_later_one_came_first():
    world = World({(0, 0): "zero", (0, 1): "one"}, {})
    ledger = Ledger(range(1), space_group, world.judge)
    settle(ledger, world, ledger.take(1))
    one, two = ledger.take(10)
    assert settle(ledger, world, [two]) == [] and not ledger.is_complete
    assert settle(ledger, world, [one]) == [(0, 2)]
    assert ledger.rejected == {"zero": 1, "one": 1}


def test_failures_after_the_attempt_that_counts_are_not_counted():
    world = World({(0, attempt): f"attempt {attempt}" for attempt in (0, 1, 3, 4)}, {})
    ledger = Ledger(range(1), space_group, world.judge)
    settle(ledger, world, ledger.take(1))
    one, two = ledger.take(10)
    assert settle(ledger, world, [one]) == []
    more = ledger.take(10)
    assert [job.attempt for job in more[:2]] == [3, 4]
    assert settle(ledger, world, more[:2]) == []
    assert [job.attempt for job in ledger.take(100)] == list(range(6, 20))  # 16 are under way again, with 2 and 5
    assert settle(ledger, world, [two]) == [(0, 2)]
    assert ledger.rejected == {"attempt 0": 1, "attempt 1": 1}


def test_attempts_double_until_there_are_many_at_a_time():
    world = World({(0, attempt): "no" for attempt in range(1000)}, {})
    ledger = Ledger(range(1), space_group, world.judge)
    under_way = ledger.take(1000)
    expected, waiting = 1, []
    for failures in range(1, 150):
        settle(ledger, world, [under_way.pop(0)])
        under_way += ledger.take(1000)
        expected = min(2 ** min(failures, 10), PARALLEL)
        waiting.append(len(under_way))
        assert len(under_way) == expected, failures
    assert waiting[:7] == [2, 4, 8, 16, 32, 64, 64] and set(waiting[6:]) == {64}
    assert [job.attempt for job in under_way] == list(range(149, 149 + 64))


def test_giving_up_says_why():
    world = World(
        {(4, attempt): "atoms too close" if attempt % 3 else "unphysical lattice" for attempt in range(9)}, {}
    )
    ledger = Ledger(range(4, 5), space_group, world.judge, max_attempts=5)
    seen = []
    with pytest.raises(NumericsError) as error:
        while jobs := ledger.take(100):
            seen += jobs
            ledger.put(jobs, world.draw(jobs))
    assert [job.attempt for job in seen] == [0, 1, 2, 3, 4]
    assert "gave up after 5 attempts at crystal 4 in space group 62" in error.value.message
    assert "atoms too close 3 times, unphysical lattice 2 times" in error.value.message
    assert "`max_attempts`" in error.value.hint


def test_duplicates_use_up_attempts():
    world = World({}, {(number, attempt): 8 for number in range(2) for attempt in range(9)})
    ledger = Ledger(range(2), space_group, world.judge, fingerprint, max_attempts=4)
    with pytest.raises(NumericsError, match=r"crystal 1 .*: duplicate 4 times"):
        while jobs := ledger.take(100):
            settle(ledger, world, jobs)


def test_the_last_attempt_counts_as_well():
    world = World({(0, attempt): "no" for attempt in range(4)}, {})
    ledger = Ledger(range(1), space_group, world.judge, max_attempts=5)
    while not ledger.is_complete:
        found = settle(ledger, world, ledger.take(100))
    assert found == [(0, 4)] and ledger.rejected == {"no": 4}


def test_an_open_crystal_holds_back_those_far_ahead_of_it():
    world = World({}, {})
    ledger = Ledger(range(10, 3 * AHEAD), space_group, world.judge)
    jobs = ledger.take(3 * AHEAD)
    assert [job.number for job in jobs] == list(range(10, 10 + AHEAD))
    assert settle(ledger, world, jobs[2:40]) == [] and ledger.take(5) == []
    assert settle(ledger, world, jobs[:1]) == [(10, 0)]
    assert [job.number for job in ledger.take(5)] == [10 + AHEAD]
    assert len(settle(ledger, world, jobs[1:2])) == 39
    assert [job.number for job in ledger.take(100)] == list(range(11 + AHEAD, 50 + AHEAD))


def test_jobs_given_back_are_the_next_ones():
    world = World({}, {})
    ledger = Ledger(range(8), space_group, world.judge)
    jobs = ledger.take(5)
    settle(ledger, world, jobs[:1])
    ledger.give_back(jobs)  # the first is done, and nobody needs it any more
    assert ledger.take(3) == jobs[1:4]
    assert ledger.take(3) == [jobs[4], *(Job(number, 0, space_group(number)) for number in (5, 6))]


def test_more_attempts_go_before_new_crystals():
    world = World({(0, 0): "no"}, {})
    ledger = Ledger(range(9), space_group, world.judge)
    settle(ledger, world, ledger.take(2))
    assert [job[:2] for job in ledger.take(4)] == [(0, 1), (0, 2), (2, 0), (3, 0)]


def test_results_nobody_waits_for_are_dropped():
    world = World({(0, 0): "no"}, {})
    ledger = Ledger(range(2), space_group, world.judge)
    settle(ledger, world, ledger.take(1))
    one, two = ledger.take(2)
    assert settle(ledger, world, [one]) == [(0, 1)]
    assert settle(ledger, world, [two]) == []
    assert ledger.rejected == {"no": 1}


def test_a_later_crystal_that_came_first_gives_way_to_an_earlier_one():
    """Crystal 1 arrives first and equals crystal 0: it is the one that is drawn again."""
    world = World({}, {(0, 0): 8, (1, 0): 9, (1, 1): 8, (1, 2): 10})
    ledger = Ledger(range(2), space_group, world.judge, fingerprint)
    zero, one = ledger.take(2)
    assert settle(ledger, world, [one]) == []
    assert settle(ledger, world, [zero]) == [(0, 0)]
    assert settle(ledger, world, ledger.take(9)) == [(1, 2)]  # 10 is not the same as 8
    assert ledger.rejected == {DUPLICATE: 2}


def test_equal_crystals_count_where_nothing_is_compared():
    world = World({}, {(0, 0): 8, (1, 0): 8})
    ledger = Ledger(range(2), space_group, world.judge)
    ledger.remember(world.draw([Job(0, 0, 1)]).crystals)
    assert settle(ledger, world, ledger.take(2)) == [(0, 0), (1, 0)]


def test_what_is_remembered_is_not_repeated():
    earlier = World({}, {(0, 0): 8, (1, 0): 33})
    world = World({}, {(2, 0): 33, (2, 1): 9, (2, 2): 20, (3, 0): 40})
    ledger = Ledger(range(2, 4), space_group, world.judge, fingerprint)
    for number in range(2):
        ledger.remember(earlier.draw([Job(number, 0, 1)]).crystals)
    accepted = settle(ledger, world, ledger.take(2))
    while not ledger.is_complete:
        accepted += settle(ledger, world, ledger.take(9))
    assert accepted == [(2, 2), (3, 0)]
    assert ledger.rejected == {DUPLICATE: 2}


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_request_in_two_sessions_is_the_request_in_one(cut):
    numbers = range(12)
    world = make_world(3, numbers, 0.5, num_values=60)
    expected, rejected = one_by_one(world, numbers, unique=True)

    def session(part: range, kept: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], Counter[str]]:
        ledger, accepted = Ledger(part, space_group, world.judge, fingerprint), []
        for number, attempt in kept:
            ledger.remember(world.draw([Job(number, attempt, 1)]).crystals)
        while not ledger.is_complete:
            accepted += settle(ledger, world, ledger.take(5)[::-1])
        return accepted, ledger.rejected

    first, rejected_first = session(numbers[:cut], [])
    second, rejected_second = session(numbers[cut:], first)
    assert first + second == expected
    assert rejected_first + rejected_second == rejected


# Space groups that are exhausted.


def to_others(number: int, ended) -> int | None:
    """Where crystals of exhausted groups go."""
    left = [group for group in GROUPS if group not in ended]
    return left[number // len(GROUPS) % len(left)] if left else None


@dataclasses.dataclass(frozen=True)
class FewCrystals(World):
    """A world in which a space group has so many crystals only, each a value for itself, and a barren one has none."""

    supply: dict[int, int] = dataclasses.field(default_factory=dict)
    barren: frozenset[int] = frozenset()

    def reason(self, job: Job) -> str | None:
        """Why an attempt does not count."""
        return "barren" if job.space_group in self.barren else self.reasons.get((job.number, job.attempt))

    def judge(self, drawn: Drawn) -> list[str | None]:
        """The reasons of a batch."""
        rows = zip(drawn.crystals.lattice, drawn.crystals.space_group, strict=True)
        return [self.reason(Job(int(row[0]), int(row[1]), int(group))) for row, group in rows]

    def value(self, job: Job) -> int:
        """The crystal that an attempt gives."""
        draw = np.random.default_rng([job.number, job.attempt, job.space_group]).integers(self.supply[job.space_group])
        return 8 * (1000 * GROUPS.index(job.space_group) + int(draw))

    def draw(self, jobs: list[Job]) -> Drawn:
        return World({}, {(job.number, job.attempt): self.value(job) for job in jobs}).draw(jobs)


def without_batches(world: FewCrystals, numbers: range, max_attempts: int) -> tuple[list[tuple], list[int], Counter]:
    """Accepted (number, attempt, group), exhausted groups and rejected draws, by the plainest loop.

    Where the last group is barren, it is neither exhausted nor are its draws counted: that is an error.
    """
    accepted, ended, rejected, kept = [], [], Counter(), set()
    for number in numbers:
        group, attempt = space_group(number), 0
        for count, gone in enumerate(ended, start=1):
            group = to_others(number, ended[:count]) if group == gone else group
        while group is not None:
            reason = world.reason(Job(number, attempt, group))
            value = world.value(Job(number, attempt, group))
            if reason is None and value not in kept:
                break
            if group in world.barren and to_others(number, [*ended, group]) is None:
                return accepted, ended, rejected
            rejected[reason or DUPLICATE] += 1
            attempt += 1
            if attempt == max_attempts:
                ended.append(group)
                group, attempt = to_others(number, ended), 0
        if group is None:
            break
        accepted.append((number, attempt, group))
        kept.add(value)
    return accepted, ended, rejected


def drawn_in_batches(
    ledger: Ledger, world: World, random: np.random.Generator, accepted: list[tuple[int, int, int]] | None = None
) -> list[tuple[int, int, int]]:
    """Number, attempt and space group of what comes out, added to a list; results return in any order, in parts."""
    accepted, under_way, idle = [] if accepted is None else accepted, [], 0
    while not ledger.is_complete:
        taken = ledger.take(int(random.integers(1, 12)))
        under_way += taken
        random.shuffle(under_way)
        some = int(random.integers(0, len(under_way) + 1))
        results, under_way = under_way[:some], under_way[some:]
        if results:
            ledger.put(results, world.draw(results))
        accepted += [tuple(each.job) for each in ledger.release()]
        ledger.give_up()
        idle = 0 if taken or results or under_way else idle + 1
        assert idle < 3, "nothing left to draw, and crystals missing"
    return accepted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    supply=st.tuples(*[st.integers(1, 8)] * 3),
    failing=st.sampled_from([0.0, 0.3]),
    max_attempts=st.sampled_from([3, 20]),
    barren=st.frozensets(st.sampled_from(GROUPS)),
)
def test_exhausted_groups_end_at_the_same_crystal_in_any_order_of_results(seed, supply, failing, max_attempts, barren):
    random = np.random.default_rng(seed)
    failed = {key: "atoms too close" for key in np.ndindex(24, 20) if key[1] % 3 and random.random() < failing}
    world = FewCrystals(failed, {}, dict(zip(GROUPS, supply, strict=True)), barren)
    ledger = Ledger(range(24), space_group, world.judge, fingerprint, max_attempts, to_others)
    expected, ended, rejected = without_batches(world, range(24), max_attempts)
    accepted: list[tuple[int, int, int]] = []
    if len(expected) < 24 and len(ended) == 2:  # the last group is barren
        with pytest.raises(NumericsError, match=f"crystal {len(expected)} .*: barren {max_attempts} times"):
            drawn_in_batches(ledger, world, random, accepted)
    else:
        drawn_in_batches(ledger, world, random, accepted)
        assert len(accepted) == 24 or set(ended) == set(GROUPS)
    assert accepted == expected and ledger.ended == tuple(ended)
    assert ledger.rejected == rejected
    assert [one.reasons.total() for one in ledger.exhausted] == [max_attempts] * len(ended)


@pytest.mark.parametrize("cut", [2, 9, 14])
def test_exhausted_groups_in_two_sessions_are_those_of_one(cut):
    world = FewCrystals({}, {}, {14: 2, 62: 9, 194: 4})
    expected, ended, _ = without_batches(world, range(24), 60)
    assert len(ended) == 3 and len(expected) == 15  # nothing is left in the end

    kept, before = expected[:cut], ()
    ledger = Ledger(range(24), space_group, world.judge, fingerprint, 60, to_others)
    accepted, random = [], np.random.default_rng(0)
    while len(accepted) < cut:
        jobs = ledger.take(3)
        ledger.put(jobs, world.draw(jobs))
        accepted += [tuple(each.job) for each in ledger.release()]
        before = ledger.ended
        ledger.give_up()
    resumed = Ledger(range(len(accepted), 24), space_group, world.judge, fingerprint, 60, to_others, before)
    for number, attempt, group in accepted:
        resumed.remember(world.draw([Job(number, attempt, group)]).crystals)
    assert kept == accepted[:cut]
    assert accepted + drawn_in_batches(resumed, world, random) == expected
    assert resumed.ended == tuple(ended)


def test_a_group_that_gives_nothing_acceptable_leaves_its_crystals_to_the_others():
    world = FewCrystals({}, {}, dict.fromkeys(GROUPS, 99), frozenset({62}))
    ledger = Ledger(range(6), space_group, world.judge, None, 4, to_others)
    accepted = drawn_in_batches(ledger, world, np.random.default_rng(0))
    assert [group for _, _, group in accepted] == [14, 14, 194, 14, 194, 194]
    assert [(one.space_group, one.crystal, one.reasons) for one in ledger.exhausted] == [(62, 1, {"barren": 4})]


def test_the_last_group_that_gives_nothing_acceptable_is_an_error():
    world = FewCrystals({}, {}, dict.fromkeys(GROUPS, 99), frozenset(GROUPS))
    ledger = Ledger(range(3), space_group, world.judge, fingerprint, 4, to_others)
    with pytest.raises(NumericsError, match="gave up after 4 attempts at crystal 0 in space group 194: barren 4 times"):
        drawn_in_batches(ledger, world, np.random.default_rng(0))
    assert ledger.ended == (14, 62)


def test_nothing_is_drawn_where_all_groups_were_exhausted_before():
    ledger = Ledger(range(5, 9), space_group, World({}, {}).judge, fingerprint, 4, to_others, GROUPS)
    assert ledger.is_complete and ledger.take(9) == [] and list(ledger.release()) == []


def test_the_first_crystal_is_settled_before_others_are_tried_again():
    """One that gives up must not wait for the attempts of all after it."""
    world = FewCrystals({}, {}, dict.fromkeys(GROUPS, 1))
    ledger, drawn = Ledger(range(3000), lambda number: 14, world.judge, fingerprint, 500, lambda number, ended: None), 0
    while not ledger.is_complete:
        jobs = ledger.take(100)
        drawn += len(jobs)
        ledger.put(jobs, world.draw(jobs))
        assert len(list(ledger.release())) <= 1
        ledger.give_up()
    assert ledger.ended == (14,) and drawn < 5000
