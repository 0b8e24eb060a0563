"""The architecture of a CrystalFormer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cfx.config.fields import POSITIVE, Config, at_least, option
from cfx.errors import UsageError


def size(default: int, help: str) -> Any:
    """A number of something, one at least."""
    return option(default, help, at_least(1))


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The architecture of a CrystalFormer; the defaults are the published configuration (2403.15734, Table S1)."""

    position: Literal["rotary", "absolute"] = option(
        "rotary", "How a token knows its place: rotary (Alex-20 and its fine-tuned models) or absolute (MP-20)."
    )
    num_frequencies: int = size(5, "Fourier frequencies of a coordinate (Nf).")
    coord_components: int = size(16, "Von Mises components of a coordinate (Kx).")
    lattice_components: int = size(4, "Gaussian components of the lattice (Kl).")
    n_max: int = size(21, "Wyckoff slots, of which one at least stays a pad.")
    first_hidden: int = size(256, "Hidden width of the network that draws the first letter (h0).")
    num_layers: int = size(16, "Transformer blocks.")
    num_heads: int = size(16, "Attention heads.")
    key_size: int = size(64, "Width of one head.")
    model_size: int = size(64, "Width of the residual stream.")
    embed_size: int = size(32, "Width of the three embeddings.")
    num_species: int = size(119, "Atomic numbers, with 0 for a pad.")
    num_letters: int = size(28, "Wyckoff letters, with 0 for a pad.")
    widening: int = size(4, "Width of the block's MLP over model_size.")
    sigma_min: float = option(1e-3, "Smallest standard deviation of a lattice component, model frame.", POSITIVE)

    def __post_init__(self):
        super().__post_init__()
        if self.position == "rotary" and self.key_size % 2:
            raise UsageError(f"rotary positions need an even key size, not {self.key_size}")
        if self.output_size < max(self.num_letters, 3 * self.coord_components):
            raise UsageError("the output row is too narrow for its heads: fewer components, or more species")

    @property
    def output_size(self) -> int:
        """Width of an output row: species logits, then the lattice mixture."""
        return self.num_species + self.lattice_components * 13
