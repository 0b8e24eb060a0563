"""What several commands parse alike."""

from __future__ import annotations

from cfx.config import PRESETS, ModelConfig
from cfx.errors import UsageError


def architecture_preset(name: str) -> ModelConfig:
    """An architecture by name.

    Raises:
        UsageError: listing the names there are.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no architecture {name!r}", f"choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]
