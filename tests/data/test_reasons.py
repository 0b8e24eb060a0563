"""Reasons counted: what differs only in numbers is one."""

from cfx.data.store import Failure, Reason, count_reasons, describe


def failures(*reasons: str) -> list[Failure]:
    return [Failure(i, f"name-{i}", reason) for i, reason in enumerate(reasons, start=1)]


def test_numbers_become_ranges():
    found = count_reasons(
        failures(
            "25 symmetry-inequivalent sites, more than 20",
            "no atoms",
            "9 symmetry-inequivalent sites, more than 20",
            "101 symmetry-inequivalent sites, more than 20",
        )
    )
    assert found == [
        Reason("9 to 101 symmetry-inequivalent sites, more than 20", 3, "name-1"),
        Reason("no atoms", 1, "name-2"),
    ]


def test_digits_in_words_are_no_numbers():
    reasons = ["Fe2O3 is strange", "Fe3O4 is strange", "1.5 and 2", "1.50 and 10", "tolerance 0.1.", "tolerance 0.2."]
    assert [(reason.text, reason.rows) for reason in count_reasons(failures(*reasons))] == [
        ("1.5 and 2 to 10", 2),
        ("tolerance 0.1 to 0.2.", 2),
        ("Fe2O3 is strange", 1),
        ("Fe3O4 is strange", 1),
    ]


def test_described_on_one_line():
    reasons = count_reasons(failures("a", "b", "a", "c", "d"))
    assert describe(reasons, most=2) == "2 x a (name-1, ...); 1 x b (name-2); 2 for other reasons"
    assert describe([]) == ""
