"""Results of evaluations, made up, with everything the page shows."""

from __future__ import annotations

from typing import Any

ELEMENTS = ("Na", "K", "Rb", "Cs")
HALOGENS = ("Cl", "Br", "I")


def rock_salt(metal: str, halogen: str, a: float = 5.64) -> dict[str, Any]:
    """A conventional cell of 8 atoms, as galleries have it."""
    corners = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return {
        "name": f"{metal}{halogen}",
        "formula": f"{metal}4{halogen}4",
        "space_group": 225,
        "e_above_hull": 0.0,
        "cell": [[a, 0, 0], [0, a, 0], [0, 0, a]],
        "species": [metal] * 4 + [halogen] * 4,
        "frac_coords": corners + [[x + 0.5, y, z] for x, y, z in corners],
    }


def record(i: int, **changes: Any) -> dict[str, Any]:
    """Row i: every 10th cannot be read, every 5th is not valid, every 4th is a repetition, every 3rd is known."""
    metal, halogen = ELEMENTS[i % 4], HALOGENS[i % 3]
    readable = i % 10 != 9
    row = {
        "name": f"gen_{i}",
        "formula": f"{metal}4{halogen}4" if readable else None,
        "space_group": (225, 221, 1)[i % 3] if readable else None,
        "space_group_asked": None,
        "num_atoms": 8 if readable else None,
        "num_elements": 2 if readable else None,
        "density": 2.0 + 0.1 * (i % 7) if readable else None,
        "valid_structure": readable,
        "valid_composition": readable and i % 5 != 0,
        "valid": readable and i % 5 != 0,
        "unique": readable and i % 4 != 0,
        "novel": readable and i % 3 != 0,
        "e_above_hull": 0.02 * (i % 9) - 0.03 if readable else None,
        "energy_per_atom": -3.5 if readable else None,
        "rmsd_to_relaxed": None,
        "reason": "" if readable else "no structure in the row",
    }
    return row | changes


def rate(count: int, of: int) -> dict[str, Any]:
    share = count / of
    return {"value": share, "low": max(0.0, share - 0.05), "high": min(1.0, share + 0.05), "count": count, "of": of}


def evaluated(name: str, crystals: int = 40, **changes: Any) -> dict[str, Any]:
    """An evaluated file."""
    rows = [record(i) for i in range(crystals)]
    gallery = [rock_salt(metal, halogen) for metal in ELEMENTS for halogen in HALOGENS]
    file = {
        "name": name,
        "crystals": crystals,
        "settings": {"potential": "chgnet 0.4.2", "relaxed": False, "fmax": 0.05, "hull": None},
        "summary": {
            "avg_structure_comp_validity": rate(sum(row["valid"] for row in rows), crystals),
            "frac_unique_structures": rate(sum(row["unique"] for row in rows), crystals),
            "avg_energy_above_hull_per_atom": {"value": 0.0512, "error": 0.004, "unit": "eV/atom", "of": crystals},
            "wdist_density": {"value": 0.4, "unit": "g/cm3", "of": crystals},
            "frac_space_group_as_asked": None,
        },
        "warnings": ["2 crystals are <b>below</b> the floor"],
        "classes": {
            "intermetallic": {"frac_of_crystals": rate(10, crystals), "frac_unique_structures": rate(5, 10)},
            "charge-neutral": {"frac_of_crystals": rate(20, crystals), "frac_unique_structures": None},
        },
        "reasons": [{"reason": "no structure in the row", "count": crystals // 10, "example": "gen_9"}],
        "records": rows,
        "reference": {"density": [2.0, 2.5, 3.0] * 50, "num_elements": [1, 2, 2, 3] * 40},
        "gallery": gallery,
    }
    return file | changes


def result(*files: dict[str, Any]) -> dict[str, Any]:
    return {"version": "0.1.0", "files": list(files)}
