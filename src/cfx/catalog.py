"""What cfx knows by name: facts only, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelEntry:
    """A model with a name.

    Attributes:
        name: as in `--model NAME`.
        resource: directory within the package's resources, for a bundled model.
        address: where a published checkpoint lies (Hugging Face repository and file).
        summary: one line.
    """

    name: str
    summary: str
    resource: str | None = None
    address: str | None = None


MODELS = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "mini",
            "bundled; 0.9 M parameters, trained on 15,482 crystals of MP-20",
            resource="models/mini",
        ),
        ModelEntry(
            "alex20",
            "published; 4.8 M parameters, trained on Alex-20",
            address="zdcao/CrystalFormer alex20/PBE/epoch_005500.pkl",
        ),
        ModelEntry(
            "alex20-rl-ehull",
            "published; alex20 fine-tuned for energy above the hull",
            address="zdcao/CrystalFormer alex20/RL-ehull/epoch_000195.pkl",
        ),
        ModelEntry(
            "alex20-rl-dielectric",
            "published; alex20 fine-tuned for a dielectric figure of merit",
            address="zdcao/CrystalFormer alex20/RL-dielectric/epoch_000100.pkl",
        ),
        ModelEntry(
            "mp20",
            "published; 4.8 M parameters, absolute positions, trained on MP-20",
            address="zdcao/CrystalFormer mp20/epoch_003800.pkl",
        ),
    )
}

AUTO = "mini"
"""What `--model auto` means until published models can be fetched."""
