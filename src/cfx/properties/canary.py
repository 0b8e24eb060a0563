"""Whether a property model predicts what is known: textbook crystals tell, before anything is judged by it.

Upgrades of libraries have changed the predictions of published models without a word.
"""

from __future__ import annotations

from cfx.errors import CheckpointError
from cfx.properties.base import PropertyModel
from cfx.properties.known import CANARIES

HINT = "take weights made for the installed version of its library, or the model that comes with cfx: bundled"


def prove(model: PropertyModel) -> None:
    """Holds a model against the known crystals of its property; of a property without any, nothing can be proven.

    Crystals with elements that the model does not know are left out.

    Raises:
        CheckpointError: if it misses one of them, or can evaluate none.
    """
    crystals = CANARIES.get(model.property, ())
    if not crystals:
        return
    batch = model.evaluate([crystal.structure() for crystal in crystals])
    if not batch.ok.any():
        raise CheckpointError(
            f"{model.name} can evaluate none of the crystals whose {model.property} is known: {batch.reasons[0]}", HINT
        )
    misses = [
        (abs(float(found) - crystal.value) / crystal.tolerance, crystal, float(found))
        for crystal, found, ok in zip(crystals, batch.value, batch.ok, strict=True)
        if ok
    ]
    worst, crystal, found = max(misses, key=lambda miss: miss[0])
    if worst > 1:
        missed = sum(share > 1 for share, _, _ in misses)
        unit = f" {model.unit}" if model.unit else ""
        raise CheckpointError(
            f"{model.name} predicts a {model.property} of {found:.2f}{unit} for {crystal.formula}, where "
            f"{crystal.value:.2f} ± {crystal.tolerance:.2f}{unit} is right; it misses {missed} of {len(misses)} known "
            "crystals",
            HINT,
        )
