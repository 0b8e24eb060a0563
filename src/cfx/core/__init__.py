"""Pure functions on arrays, JAX and numpy: no files, no clock, no printing.

Annotations give shapes in the notation of jaxtyping, here and in `cfx.sampling`. `Array` is JAX's, `np.ndarray`
numpy's, `AnyArray` either. A name of an axis means the same everywhere; "..." are leading axes that broadcast:

    B  crystals of a batch        T  tokens                       H  attention heads
    N  slots of a crystal         C  components of a mixture      K  size of a key
    W  letters, the pad included  S  species, the pad included    D  size of the model
    E  elements of a formula      R  rows of a data set           M  points or operations of an orbit

Where nothing else is said, `params` are the weights of the network, `config` is its architecture, and `rng_key` is a
random key, in every function here and in `cfx.sampling`.

Tests check all these annotations at every call (`pyproject.toml`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymatgen.core import Structure as Structure
else:
    Structure = Any  # pymatgen takes half a second to import, and is needed by what makes structures only

AnyArray = Any
"""An array of JAX or of numpy. No union of both, so that reading a chemical symbol does not import JAX."""

Params = Mapping[str, Mapping[str, AnyArray]]
"""Weights by module and name, as Haiku has them."""
