"""Whether the batch size changes a crystal: the same request drawn in batches of 7 and of 256, as JSON.

    python benchmarks/batch_sizes.py [--model mini] [--n 2000]

Space groups take turns from 1 to 230. Two crystals are the same if their letters and species are and coordinates and
lattice agree to 1e-4 (fractional; relative for the lattice). Sums in another order differ by a rounding step, which
turns a draw where two outcomes were almost equally near; for every crystal that differs the script finds the first draw
that does and the margin by which it was decided: a difference of perturbed log-probabilities (nats) for letters and
species, of coordinates for the rest.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from record import add_json, keep

import cfx
from cfx.config import SampleConfig
from cfx.core import heads
from cfx.core.crystal import concatenate
from cfx.core.likelihood import output_rows
from cfx.sampling.policy import crystal_keys, request_key

TOLERANCE = 1e-4


def draw(model, n: int, batch_size: int):
    """The crystals, and their (number, attempt)."""
    request = SampleConfig(space_groups=tuple(range(1, 231)), n=n, batch_size=batch_size)
    draws = list(model.draws(request))
    return concatenate([each.crystals for each in draws]), [job for each in draws for job in each.jobs]


def margin(model, crystals, row: int, job, token: int) -> float | None:
    """By how much the choice of a letter or species beat the next best one, nats; None for another kind of token."""
    kind, site = token % 5, token // 5
    if kind > 1:
        return None
    one = crystals[row : row + 1]
    raw = output_rows(model.params, model.config, one)
    group, letters = jnp.asarray(one.space_group), jnp.asarray(one.wyckoff)
    if kind == 1:
        log_probs = heads.species_logits(raw.rows[:, 5 * site], letters[:, site], model.config.num_species)
    elif site == 0:
        log_probs = heads.first_letter_logits(raw.first, group)
    else:
        log_probs = heads.next_letter_logits(
            raw.rows[:, 5 * site - 1], group, letters[:, site - 1], model.config.num_letters
        )
    key = crystal_keys(request_key(0), np.array([job.number]), np.array([job.attempt]))[0]
    noise = jax.random.gumbel(jax.random.fold_in(key, token), (119,))
    best, second = np.sort(np.asarray(log_probs[0] + noise[: log_probs.shape[1]]))[[-1, -2]]
    return float(best - second)


def first_difference(one, other, row: int) -> tuple[int, float]:
    """The first token that differs, and for coordinates by how much."""
    for site in range(one.num_slots):
        for kind, name in enumerate(("wyckoff", "species")):
            if getattr(one, name)[row, site] != getattr(other, name)[row, site]:
                return 5 * site + kind, np.inf
        for axis in range(3):
            difference = one.frac_coords[row, site, axis] - other.frac_coords[row, site, axis]
            if (distance := abs(difference - np.rint(difference))) > TOLERANCE:
                return 5 * site + 2 + axis, float(distance)
    return -1, float(np.abs(one.lattice[row] / other.lattice[row] - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--n", type=int, default=2000)
    add_json(parser)
    arguments = parser.parse_args()
    model = cfx.load_model(arguments.model)
    (small, jobs), (large, _) = (draw(model, arguments.n, size) for size in (7, 256))
    distance = small.frac_coords - large.frac_coords
    discrete = ((small.wyckoff == large.wyckoff) & (small.species == large.species)).all(1)
    same = discrete & (np.abs(distance - np.rint(distance)) < TOLERANCE).all((1, 2))
    same &= (np.abs(small.lattice / large.lattice - 1) < TOLERANCE).all(1)
    report = []
    for row in np.flatnonzero(~same):
        token, by = first_difference(small, large, row)
        kind = "lattice" if token < 0 else ("letter", "species", "x", "y", "z")[token % 5]
        report.append(
            {
                "crystal": int(row),
                "sites": int(small.num_sites[row]),
                "first_difference": kind,
                "differs_by": by if np.isfinite(by) else None,
                "margin_nats": margin(model, small, row, jobs[row], token) if token >= 0 else None,
            }
        )
    result = {
        "model": model.name,
        "n": arguments.n,
        "same": float(same.mean()),
        "letters_and_species": float(discrete.mean()),
    }
    keep({**result, "different": report}, arguments)


if __name__ == "__main__":
    main()
