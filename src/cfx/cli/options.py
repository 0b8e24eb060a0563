"""Options that several commands have, and the values that their text stands for."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.config import Template
from cfx.errors import DataError, UsageError

MOST_SITES = 20
"""Sites of a prototype: what the published models hold."""

MODEL_HELP = "A name (cfx fetch --list), a checkpoint directory, a published .pkl file, or hf:owner/repo/path."
DATA_HELP = "a .csv, .parquet, .cif, .extxyz, .jsonl, .lmdb, POSCAR, a directory or zip; or a name (cfx fetch --list)."
POTENTIAL_HELP = "chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY."
PROPERTY_MODEL_HELP = "bundled, matgl:NAME or matgl:/directory."

Model = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
Potential = Annotated[str, typer.Option(help=f"Interatomic potential: {POTENTIAL_HELP}")]
HullScale = Annotated[
    str | None,
    typer.Option("--hull-scale", help="Scale of the hull's energies where its file does not say: raw or mp2020."),
]
Fmax = Annotated[float, typer.Option(help="A relaxation ends when no force is larger, eV/angstrom.")]
RelaxationSteps = Annotated[int, typer.Option(help="A relaxation ends after so many steps at the latest.")]
Device = Annotated[str, typer.Option(help="Where potentials and property models run: cpu or cuda.")]
Workers = Annotated[int, typer.Option(help="Processes that read and compare crystals; 0: one for each core.")]
Symprec = Annotated[float, typer.Option(help="Tolerance of the symmetry search, angstrom.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same crystals.")]
SpaceGroups = Annotated[
    str | None,
    typer.Option(
        "--sg",
        "--space-group",
        help="Space groups: 194; 2,14,62 or 1-230, in turn; uniform; or as frequent as in data:FILE, or in what the "
        "model was trained on, data:model.",
    ),
]
Temperature = Annotated[float, typer.Option(help="Below 1: likelier crystals. Above 1: bolder ones.")]
Elements = Annotated[str | None, typer.Option(help="The only elements allowed: La,Ni,O.")]
Exclude = Annotated[str | None, typer.Option(help="Elements not allowed: Pb,Cd.")]
NoRadioactive = Annotated[
    bool, typer.Option("--no-radioactive", help="No element without a stable isotope: Tc, Pm, Po and beyond.")
]
Bias = Annotated[
    str | None,
    typer.Option(help="Elements to favour, by nats added to their logits: Fe:2.0,S:1.5. 0.7 about doubles the odds."),
]
MaxAtoms = Annotated[int | None, typer.Option(help="Most atoms in the conventional cell.")]
MaxSites = Annotated[int | None, typer.Option(help="Most symmetry-inequivalent sites.")]
Wyckoff = Annotated[str | None, typer.Option(help="Wyckoff letters of all sites: a,b,c.")]
Sites = Annotated[
    Path | None,
    typer.Option(
        help="JSON file: `atom_mask`, the elements allowed on each site; `constraints`, groups of sites (counted from "
        "0) that share one element."
    ),
]
Prototype = Annotated[
    Path | None,
    typer.Option("--from", help="A structure whose space group and sites are kept, while its elements are redrawn."),
]
Redraw = Annotated[str | None, typer.Option(help="With --from, draw these again too: coords,lattice.")]


FLAGS: dict[str, str] = {}
"""Flags of the running command, by the names that the library has for what they say."""


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """The same for Typer: while it runs, FLAGS are those of the command."""
    signature = inspect.signature(function, eval_str=True)
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    own = "context" in signature.parameters

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        FLAGS.clear()
        FLAGS.update(_flags(context.command.params))
        function(**values, **({"context": context} if own else {}))

    parameters = [one for name, one in signature.parameters.items() if name != "context"]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*parameters, context)]
    vars(run)["__signature__"] = inspect.Signature(keywords)
    run.__annotations__ = {one.name: one.annotation for one in keywords}
    return run


def _flags(parameters: Sequence[Any]) -> dict[str, str]:
    """Long flags by the names of their parameters, and by their own with underscores."""
    found = {}
    for parameter in parameters:
        if flag := next((one for one in (*parameter.opts, *parameter.secondary_opts) if one.startswith("--")), None):
            found |= {parameter.name: flag, flag.strip("-").replace("-", "_"): flag}
    return found


def in_flags(text: str) -> str:
    """A message of the library in the words of the command line: `kl_coef` as --kl-coef, `shard=3/16` as --shard 3/16.

    Names that the running command has no option for stay as they are.
    """

    def flag(match: re.Match[str]) -> str:
        name, equals, value = match[1].partition("=")
        return f"{FLAGS[name]}{' ' * bool(equals)}{value}" if name in FLAGS else match[0]

    return re.sub(r"`([a-z_]+(?:=[^`]*)?)`", flag, text)


def unset(text: str, default: float | str | None = None, name: str | None = None) -> Any:
    """An option that is None unless it is given; its help names the default of the configuration in brackets."""
    shown = "" if default is None else f" [{default}]" if isinstance(default, str) else f" [{default:g}]"
    return typer.Option(*([name] if name else []), help=text + shown, show_default=False)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not None: those of the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def named(context: typer.Context) -> set[str]:
    """The options on a command line, by their long names."""
    return {
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name).name == "COMMANDLINE"
    }


def wishes(
    elements: str | None,
    exclude: str | None,
    no_radioactive: bool,
    bias_text: str | None,
    max_atoms: int | None,
    max_sites: int | None,
) -> dict[str, Any]:
    """What these options say, as fields of a `SampleConfig`."""
    return {
        "elements": words(elements),
        "exclude": words(exclude),
        "radioactive": not no_radioactive,
        "bias": bias(bias_text),
        "max_atoms": max_atoms,
        "max_sites": max_sites,
    }


def words(text: str | None) -> tuple[str, ...]:
    """The parts of a,b,c; nothing for None.

    Raises:
        UsageError: for an empty text, which a forgotten shell variable leaves behind.
    """
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UsageError("an option was given an empty value", "leave it out, or write a,b,c")
    return parts


def space_groups(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Space groups and weights: 194, or 2,14,62, or 1-230, or uniform.

    With uniform, each crystal's group is drawn; those of ranges and lists take turns.
    """
    if text == "uniform":
        return tuple(range(1, 231)), (1.0,) * 230
    groups: list[int] = []
    for part in words(text):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise UsageError(
                f"{part!r} is no space group", "write 194, or 2,14,62, or 1-230, or uniform, or data:DATA_SET"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        for group in (first, last):
            if not 1 <= group <= 230:
                raise UsageError(f"there is no space group {group}", "space groups run from 1 to 230")
        if last < first:
            raise UsageError(f"the range {part} is empty", f"write {last}-{first}")
        groups += range(first, last + 1)
    return tuple(groups), ()


def space_group_text(groups: Sequence[int]) -> str:
    """Space groups as --sg takes them, ranges where there are some: 2,14,62-65."""
    runs: list[list[int]] = []
    for group in groups:
        if runs and group == runs[-1][-1] + 1:
            runs[-1].append(group)
        else:
            runs.append([group])
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


def formula(text: str | None) -> tuple[tuple[str, int], ...]:
    """Symbols and counts of a formula, parentheses allowed.

    Raises:
        UsageError: if it is none, or its counts are not whole.
    """
    if text is None:
        return ()
    from pymatgen.core import Composition

    try:
        counts = Composition(text).get_el_amt_dict()
    except ValueError as error:
        raise UsageError(f"{text!r} is no formula", "write it as SrTiO3 or Cs2ZnFe(CN)6") from error
    if not counts or any(count != int(count) for count in counts.values()):
        raise UsageError(f"{text!r} is no formula of whole numbers of atoms", "write it as SrTiO3 or Cs2ZnFe(CN)6")
    return tuple((symbol, int(count)) for symbol, count in counts.items())


def bias(text: str | None) -> tuple[tuple[str, float], ...]:
    """Fe:2.0,S:1.5 as pairs."""
    pairs = []
    for part in words(text):
        match = re.fullmatch(r"([A-Z][a-z]?):([+-]?\d+(?:\.\d+)?)", part)
        if not match:
            raise UsageError(f"{part!r} is no bias", "write --bias Fe:2.0,S:1.5")
        pairs.append((match[1], float(match[2])))
    return tuple(pairs)


def shard(text: str | None) -> tuple[int, int]:
    """3/16 as (3, 16)."""
    match = re.fullmatch(r"(\d+)/(\d+)", "1/1" if text is None else text)
    if not match:
        raise UsageError(f"{text!r} is no part of a request", "write --shard 3/16")
    return int(match[1]), int(match[2])


def template(letters: str | None, sites: Path | None, prototype: Path | None, redraw: str | None):
    """A template, and the space group of the prototype or None.

    Args:
        letters: as a,b,c.
        sites: JSON in the public program's layout: `atom_mask`, a list of symbols for each site, and `constraints`,
            groups of sites (from 0) that share one species.
        prototype: a structure whose arrangement is kept.
        redraw: of a prototype, what is drawn again besides the species: coords, lattice.

    Raises:
        UsageError: where they contradict each other.
        DataError: for files that cannot be read.
    """
    if prototype is None:
        if redraw:
            raise UsageError("--redraw says what of a prototype is drawn again", "name one with --from FILE")
        species, tied = _sites(sites) if sites else ((), ())
        return Template(letters=words(letters), species=species, tied=tied), None
    if letters:
        raise UsageError("the letters of a prototype are kept: give either --from or --wyckoff")
    return _prototype(prototype, sites, words(redraw))


def _sites(path: Path) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[int, ...], ...]]:
    import json

    try:
        content = json.loads(path.read_text())
        species, tied = content.get("atom_mask", []), content.get("constraints", [])
        for lists, kind in ((species, str), (tied, int)):
            if not all(isinstance(one, list) and all(type(item) is kind for item in one) for one in lists):
                raise ValueError("it is no list of lists of symbols, or of site numbers")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"cannot read {path}: {error}", 'write {"atom_mask": [["Fe", "Co"], ["O"]], "constraints": [[0, 1]]}'
        ) from error
    return tuple(map(tuple, species)), tuple(map(tuple, tied))


def _prototype(path: Path, sites: Path | None, redraw: tuple[str, ...]) -> tuple[Template, int]:
    from cfx.core.symmetry import LETTERS
    from cfx.data.encode import SYMPREC
    from cfx.data.read import encode_records, read_records

    if unknown := set(redraw) - {"coords", "lattice"}:
        raise UsageError(f"cannot redraw {', '.join(sorted(unknown))}", "write --redraw coords,lattice, or one of them")
    records = list(itertools.islice(read_records(path), 2))
    if len(records) != 1:
        raise DataError(
            f"{path} holds {'no structure' if not records else 'more than one structure'}",
            "name a file with a single one",
        )
    [crystal] = encode_records(records, SYMPREC, MOST_SITES)
    if isinstance(crystal, str):
        raise DataError(f"cannot use {path} as a prototype: {crystal}")
    if sites:
        species, tied = _sites(sites)
    else:  # sites of one element stay of one element
        species, groups = (), {}
        for site, number in enumerate(crystal.species):
            groups.setdefault(int(number), []).append(site)
        tied = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    found = Template(
        letters=tuple(LETTERS[letter] for letter in crystal.wyckoff),
        species=species,
        tied=tied,
        frac_coords=() if "coords" in redraw else tuple(tuple(map(float, point)) for point in crystal.frac_coords),
        lattice=() if "lattice" in redraw else tuple(map(float, crystal.lattice)),
    )
    return found, int(crystal.space_group)
