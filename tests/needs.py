"""Libraries that a module of tests needs."""

from importlib.util import find_spec

import pytest


def needs(name: str) -> None:
    """Skips a module where a library is not installed, without importing it: heavy ones take seconds to collect."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
