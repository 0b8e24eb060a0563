"""Space groups as text and back."""

from __future__ import annotations

import pytest

from cfx.cli import values
from cfx.errors import UsageError


@pytest.mark.parametrize("text", ["194", "2,14,62", "1-230", "2,14,62-65,221-230", "230,1"])
def test_space_groups_and_their_text(text):
    groups, weights = values.space_groups(text)
    assert values.space_group_text(groups) == text and weights == ()


@pytest.mark.parametrize("text", ["0", "0-3", "231", "225-231", "3-1", "p", "data:"])
def test_no_space_groups(text):
    with pytest.raises(UsageError):
        values.check_space_groups(text)


def test_data_sets_are_read_later():
    values.check_space_groups("data:no-such-file.csv")
