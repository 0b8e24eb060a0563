"""The architecture of a CrystalFormer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from cfx.config.fields import at_least, check_fields, positive
from cfx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a CrystalFormer; the defaults are the published configuration (2403.15734, Table S1).

    Attributes:
        position: how a token knows its place: rotary (Alex-20 and its fine-tuned models) or absolute (MP-20).
        num_frequencies: Fourier frequencies of a coordinate (Nf).
        coord_components: von Mises components of a coordinate (Kx).
        lattice_components: Gaussian components of the lattice (Kl).
        n_max: Wyckoff slots, of which one at least stays a pad.
        first_hidden: hidden width of the network that draws the first letter (h0).
        num_layers: transformer blocks.
        num_heads: attention heads.
        key_size: width of one head.
        model_size: width of the residual stream.
        embed_size: width of the three embeddings.
        num_species: atomic numbers, with 0 for a pad.
        num_letters: Wyckoff letters, with 0 for a pad.
        widening: width of the block's MLP over model_size.
        sigma_min: smallest standard deviation of a lattice component, model frame.
    """

    position: Literal["rotary", "absolute"] = "rotary"
    num_frequencies: int = 5
    coord_components: int = 16
    lattice_components: int = 4
    n_max: int = 21
    first_hidden: int = 256
    num_layers: int = 16
    num_heads: int = 16
    key_size: int = 64
    model_size: int = 64
    embed_size: int = 32
    num_species: int = 119
    num_letters: int = 28
    widening: int = 4
    sigma_min: float = 1e-3

    def __post_init__(self):
        check_fields(self)
        at_least(self, 1, *(field.name for field in dataclasses.fields(self) if field.type == "int"))
        positive(self, "sigma_min")
        if self.position == "rotary" and self.key_size % 2:
            raise UsageError(f"rotary positions need an even key size, not {self.key_size}")
        if self.output_size < max(self.num_letters, 3 * self.coord_components):
            raise UsageError("the output row is too narrow for its heads: fewer components, or more species")

    @property
    def output_size(self) -> int:
        """Width of an output row: species logits, then the lattice mixture."""
        return self.num_species + self.lattice_components * 13
