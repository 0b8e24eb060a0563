"""What commands do before their own work: read the texts of options, look at outputs, make JAX ready, load a model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.cli.console import REPORTER
from cfx.config import SYMPREC, Template
from cfx.config.fields import option
from cfx.config.texts import space_groups, words
from cfx.errors import DataError, DependencyError, OutputError, UsageError, install
from cfx.io.files import TABLES, cache_directory, check_file, parse_json
from cfx.reporter import interrupted_by_signals

if TYPE_CHECKING:
    from cfx.model import Model

MOST_SITES = 20
"""Sites of a prototype: what the published models hold."""


def check_table(path: Path | None, force: bool) -> None:
    """Makes sure that a table, .csv or .parquet, can be written; None, for no file, is fine. See `check_file`.

    Raises:
        DependencyError: for Parquet without pyarrow.
    """
    check_file(path, TABLES, force)
    if path is not None and path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DependencyError("writing Parquet needs pyarrow", install("parquet"))


def start_jax() -> None:
    """Makes matrix products float32 on every device, and keeps compiled programs on disk for the next command.

    They are kept in cfx's cache directory, or where JAX_COMPILATION_CACHE_DIR says.
    """
    import jax

    jax.config.update("jax_default_matmul_precision", "float32")
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        directory = cache_directory("compiled")
    except OutputError as error:
        REPORTER.warning(f"{error.message}; every run will compile again ({error.hint})")
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def load(name: str) -> Model:
    """Loads a model, which may have to be fetched first; a signal ends that with one line."""
    from cfx.model import load_model

    with interrupted_by_signals(f"stopped loading {name}; run the same command again to go on where it was"):
        return load_model(name, reporter=REPORTER)


def space_group_text(groups: Sequence[int]) -> str:
    """Space groups as --sg takes them, ranges where there are some: 2,14,62-65."""
    # In a run of consecutive groups, a group less its place is always the same.
    runs = [[group for _, group in run] for _, run in itertools.groupby(enumerate(groups), lambda one: one[1] - one[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def check_space_groups(text: str) -> None:
    """Finds out what is wrong with a --sg before anything slow starts; data:NAME is read later.

    Raises:
        UsageError: if it names no space groups.
    """
    if not text.startswith("data:"):
        space_groups(text)
    elif text == "data:":
        raise UsageError("data: names no data set", "write data:FILE or data:model")


def first_space_groups(text: str | None, own_group: int | None) -> tuple[int, ...] | None:
    """The space groups of a --sg or of a prototype before anything slow starts; None for neither.

    For data:NAME, which is read later, they stand for any.

    Raises:
        UsageError: if both are given, or it names no space groups.
    """
    if text is None:
        return None if own_group is None else (own_group,)
    if own_group is not None:
        raise UsageError("--from uses the space group of its structure", "leave out --sg")
    check_space_groups(text)
    return (1,) if text.startswith("data:") else space_groups(text)[0]


def drawn_space_groups(text: str, model: Model) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Space groups and weights of a --sg that was checked; of data:NAME, as often as they are in a data set.

    Raises:
        UsageError: for data:model, if the model does not say.
        DataError: if the data set cannot be read.
    """
    from cfx.runs.sample import drawn_space_groups as drawn

    return drawn(text, model, REPORTER)


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """What a command line says of the sites of the crystals."""

    wyckoff: str | None = option(None, "Wyckoff letters of all sites: a,b,c.")
    sites: Path | None = option(
        None,
        "JSON file: atom_mask, the elements allowed on each site; constraints, groups of sites (counted from 0) that "
        "share one element.",
    )
    prototype: Path | None = option(
        None, "A structure whose space group and sites are kept, while its elements are redrawn.", flag="--from"
    )
    redraw: str | None = option(None, "With --from, draw these again too: coords,lattice.")


def template(given: dict[str, Any]) -> tuple[Template, int | None]:
    """A template, and the space group of the prototype or None, from what was given of an Arrangement.

    Raises:
        UsageError: where they contradict each other.
        DataError: for files that cannot be read.
    """
    asked = Arrangement(**given)
    if asked.prototype is None:
        if asked.redraw:
            raise UsageError("--redraw needs a prototype", "name it with --from FILE")
        species, tied = _sites(asked.sites) if asked.sites else ((), ())
        return Template(
            letters=words(asked.wyckoff) if asked.wyckoff is not None else (), species=species, tied=tied
        ), None
    if asked.wyckoff:
        raise UsageError("a prototype keeps its letters: give either --from or --wyckoff")
    return _prototype(asked.prototype, asked.sites, words(asked.redraw) if asked.redraw is not None else ())


def _sites(path: Path) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[int, ...], ...]]:
    try:
        content = parse_json(path.read_text())
        species, tied = content.get("atom_mask", []), content.get("constraints", [])
        for lists, kind in ((species, str), (tied, int)):
            if not all(isinstance(one, list) and all(type(item) is kind for item in one) for one in lists):
                raise ValueError("not a list of lists of symbols, or of site numbers")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"cannot read {path}: {error}", 'write {"atom_mask": [["Fe", "Co"], ["O"]], "constraints": [[0, 1]]}'
        ) from error
    return tuple(map(tuple, species)), tuple(map(tuple, tied))


def _prototype(path: Path, sites: Path | None, redraw: tuple[str, ...]) -> tuple[Template, int]:
    from cfx.core.symmetry import LETTERS
    from cfx.data.read import encode_records, read_records

    if unknown := set(redraw) - {"coords", "lattice"}:
        raise UsageError(f"cannot redraw {', '.join(sorted(unknown))}", "write --redraw coords,lattice, or one of them")
    records = list(itertools.islice(read_records(path), 2))
    if len(records) != 1:
        raise DataError(
            f"{path} holds {'no structure' if not records else 'more than one structure'}",
            "name a file with a single structure",
        )
    [crystal] = encode_records(records, SYMPREC, MOST_SITES)
    if isinstance(crystal, str):
        raise DataError(f"cannot use {path} as a prototype: {crystal}")
    # Without groups of sites, those of one element stay of one element.
    elements = crystal.species.tolist()
    same = (tuple(site for site, other in enumerate(elements) if other == one) for one in dict.fromkeys(elements))
    species, tied = _sites(sites) if sites else ((), tuple(group for group in same if len(group) > 1))
    found = Template(
        letters=tuple(LETTERS[letter] for letter in crystal.wyckoff),
        species=species,
        tied=tied,
        frac_coords=() if "coords" in redraw else tuple((x, y, z) for x, y, z in crystal.frac_coords.tolist()),
        lattice=() if "lattice" in redraw else tuple(crystal.lattice.tolist()),
    )
    return found, int(crystal.space_group)
