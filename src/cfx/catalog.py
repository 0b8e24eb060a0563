"""What cfx knows by name: models, data sets, hulls, property models and potentials. Facts only, no I/O.

An address is where a file is published:

- `hf:owner/repo/path`, on the Hugging Face hub; `hf:datasets/owner/repo/path` for a data set; `owner/repo@revision`
  names a branch, tag or commit.
- `https://...`, on the web.
- `drive:ID`, a folder on Google Drive.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlsplit

from cfx.config import ModelConfig
from cfx.errors import UsageError

MODEL, DATA, HULL, REWARD, POTENTIAL = KINDS = ("model", "data", "hull", "reward", "potential")
"""model: a CrystalFormer. data: crystals to train on. hull: energies of known phases. reward: a model of a property.
potential: an interatomic potential."""

CRYSTALFORMER = "arXiv:2403.15734"
CRYSTALFORMER_RL = "arXiv:2504.02367"


@dataclass(frozen=True)
class Entry:
    """Something with a name.

    Attributes:
        name: as on the command line.
        kind: one of KINDS.
        summary: one line.
        licence: of the content, as its publishers state it, or "not stated".
        citation: what to cite, an arXiv number or DOI.
        files: part -> address. Most entries have one part, named "". Of a data set, the first part is what its bare
            name means; `name:part` names any.
        former: part -> address at which the same was published before it was renamed.
        size: bytes of all files where somebody published the number, or None.
        config: of a published model, the architecture that its authors state.
        resource: of what comes with cfx, its directory within the package's resources.
        library: of what another library brings along or downloads by itself, that library.
        needs: the extra of cfx without which it is of no use, or None.
    """

    name: str
    kind: str
    summary: str
    licence: str
    citation: str
    files: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    config: ModelConfig | None = None
    resource: str | None = None
    library: str | None = None
    needs: str | None = None

    @property
    def address(self) -> str:
        """Where its only file is published, or its first."""
        return next(iter(self.files.values()))

    @property
    def editions(self) -> list[Mapping[str, str]]:
        """Part -> address, as published now, and as formerly if that was elsewhere."""
        return [self.files, self.former] if self.former else [self.files]


def _published(
    name: str, path: str, summary: str, citation: str, position: Literal["rotary", "absolute"] = "rotary"
) -> Entry:
    files = {"": f"hf:zdcao/CrystalFormer/{path}"}
    return Entry(name, MODEL, summary, "Apache-2.0", citation, files, config=ModelConfig(position=position))


def _of_matgl(repository: str) -> dict[str, str]:
    return {name: f"hf:materialyze/{repository}/{name}" for name in ("model.json", "model.pt", "state.pt")}


_ALEX = "hf:datasets/zdcao/alex-20"
_MP20 = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20"
_PARTS = ("train", "val", "test")

# fmt: off
_ENTRIES = (
    Entry("mini", MODEL, "bundled; 2.3 M parameters, trained on 53,734 crystals, most of the Materials Project",
          "Apache-2.0", CRYSTALFORMER, resource="models/mini"),
    Entry("mini-rl-ehull", MODEL, "bundled; mini, fine-tuned for a low energy above the hull (CHGNet on chgnet-mp)",
          "Apache-2.0", CRYSTALFORMER_RL, resource="models/mini-rl-ehull"),
    Entry("mini-rl-fom", MODEL, "bundled; mini, fine-tuned in space group 225 for dielectric constant times band gap",
          "Apache-2.0", CRYSTALFORMER_RL, resource="models/mini-rl-fom"),
    _published("alex20", "alex20/PBE/epoch_005500.pkl", "4.8 M parameters, trained on Alex-20", CRYSTALFORMER_RL),
    _published("alex20-rl-ehull", "alex20/RL-ehull/epoch_000195.pkl",
               "alex20, fine-tuned for a low energy above the hull", CRYSTALFORMER_RL),
    _published("alex20-rl-dielectric", "alex20/RL-dielectric/epoch_000100.pkl",
               "alex20, fine-tuned for a dielectric figure of merit", CRYSTALFORMER_RL),
    _published("mp20", "mp20/epoch_003800.pkl", "4.8 M parameters, absolute positions, trained on MP-20",
               CRYSTALFORMER, "absolute"),
    Entry("alex-20", DATA, "1.3 million crystals of Alexandria, at most 20 atoms, below 0.1 eV/atom (PBE)",
          "CC-BY-4.0", CRYSTALFORMER_RL, {part: f"{_ALEX}/alex20/{part}.csv" for part in _PARTS},
          size=3_242_832_648 + 406_115_502 + 405_090_084),
    Entry("mp-20", DATA, "45,231 crystals of the Materials Project, at most 20 atoms, below 0.08 eV/atom",
          "CC-BY-4.0", "arXiv:2110.06197", {part: f"{_MP20}/{part}.csv" for part in _PARTS}),
    Entry("alexandria-pbe", HULL, "the convex hull of Alexandria, PBE, 2023-12-29",
          "CC-BY-4.0", "doi:10.1002/adma.202210788", {"": f"{_ALEX}/convex_hull_pbe_2023.12.29.json.bz2"},
          size=82_996_526),
    Entry("chgnet-mp", HULL, "bundled; CHGNet's energies of phases of the Materials Project",
          "CC-BY-4.0", "doi:10.1063/1.4812323", resource="hulls/chgnet-mp"),
    Entry("7net-mp", HULL, "bundled; energies of the same phases by SevenNet's 7net-0",
          "CC-BY-4.0", "doi:10.1063/1.4812323", resource="hulls/7net-mp"),
    Entry("band-gap", REWARD, "bundled; band gap, eV (PBE), from CHGNet's features",
          "CC-BY-4.0", "doi:10.1063/1.4812323", resource="properties", needs="chgnet"),
    Entry("dielectric", REWARD, "bundled; total dielectric constant, from CHGNet's features",
          "CC-BY-4.0", "doi:10.1038/sdata.2016.134", resource="properties", needs="chgnet"),
    Entry("megnet-bandgap", REWARD, "band gap, eV (MEGNet-BandGap-mfi-MP-2019.4.1)",
          "BSD-3-Clause", "doi:10.1038/s43588-020-00002-x", _of_matgl("MEGNet-BandGap-mfi-MP-2019.4.1"),
          _of_matgl("MEGNet-MP-2019.4.1-BandGap-mfi"), needs="matgl"),
    Entry("m3gnet-eform", REWARD, "formation energy, eV/atom (M3GNet-Eform-MP-2019.4.1)",
          "BSD-3-Clause", "doi:10.1038/s43588-022-00349-3", _of_matgl("M3GNet-Eform-MP-2019.4.1"),
          needs="matgl"),
    Entry("dielectric-total", REWARD, "total dielectric tensor, of the published figure-of-merit runs",
          "not stated", CRYSTALFORMER_RL, {"": "drive:1hQJD5R0dMJVC3nA1YkSHkCG9s-IAVNnA"}, needs="matgl"),
    Entry("orb-v2", POTENTIAL, "the potential of the published E_hull runs",
          "Apache-2.0", "arXiv:2410.22570", library="orb-models", needs="orb"),
    Entry("orb-v3", POTENTIAL, "orb-v3-conservative-inf-mpa",
          "Apache-2.0", "arXiv:2504.06231", library="orb-models", needs="orb"),
    Entry("chgnet", POTENTIAL, "CHGNet 0.3.0; its weights come with the library",
          "BSD-3-Clause-LBNL", "doi:10.1038/s42256-023-00716-3", library="chgnet", needs="chgnet"),
    Entry("tensornet", POTENTIAL, "TensorNet-PES-MatPES-PBE-2025.2, of matgl",
          "BSD-3-Clause", "arXiv:2503.04070", _of_matgl("TensorNet-PES-MatPES-PBE-2025.2"), needs="matgl"),
)
# fmt: on

CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Name -> entry."""

ALIASES: Mapping[str, str] = MappingProxyType({"alex20-rl-fom": "alex20-rl-dielectric"})
"""Other names of entries."""

AUTO, FALLBACK = "alex20", "mini"
"""What the model `auto` is, and what it is where that cannot be had."""


def find(name: str, *kinds: str) -> Entry | None:
    """The entry of a name or alias, if there is one and its kind is one of those asked for (by default any)."""
    entry = CATALOG.get(ALIASES.get(name, name))
    return entry if entry is not None and entry.kind in (kinds or KINDS) else None


def find_by_repo(repo: str, *kinds: str) -> Entry | None:
    """The entry of one of these kinds whose files are, or were, in a repository (owner/name) of the hub."""
    for entry in CATALOG.values():
        addresses = [parse_address(address) for files in entry.editions for address in files.values()]
        if entry.kind in kinds and any(isinstance(one, HubAddress) and one.repo == repo for one in addresses):
            return entry
    return None


def find_part(name: str, *kinds: str) -> tuple[Entry, str] | None:
    """The entry and the part that `name` or `name:part` means, or None if no entry has that name.

    Raises:
        UsageError: if the entry has no such part.
    """
    base, _, part = name.partition(":")
    entry = find(base, *kinds)
    if entry is None:
        return None
    if part not in ("", *entry.files):
        parts = ", ".join(f"{base}:{part}" for part in entry.files)
        raise UsageError(f"{base} has no part {part!r}", f"there are: {parts}" if len(entry.files) > 1 else None)
    return entry, part or next(iter(entry.files), "")


def model_names() -> list[str]:
    """The names of all models."""
    return [entry.name for entry in CATALOG.values() if entry.kind == MODEL]


# Addresses.

_HUB = re.compile(
    r"hf:(?P<datasets>datasets/)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/]+))?/(?P<path>[^/].*)", re.ASCII
)


@dataclass(frozen=True)
class HubAddress:
    """A file on the Hugging Face hub.

    Attributes:
        repo: owner/name.
        repo_type: "model" or "dataset".
        path: the file in the repository.
        revision: branch, tag or commit that the address asks for, or None.
    """

    repo: str
    repo_type: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo}{revision}/{self.path}"


@dataclass(frozen=True)
class WebAddress:
    """A file on the web."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class DriveAddress:
    """A folder on Google Drive."""

    folder: str

    def __str__(self) -> str:
        return f"drive:{self.folder}"


Address = HubAddress | WebAddress | DriveAddress


def parse_address(text: str) -> Address:
    """Where a file is published, from the text of an address.

    Raises:
        UsageError: if the text is not an address.
    """
    if is_hub_address(text):
        match = _HUB.fullmatch(text)
        if not match or not _is_plain(match["path"]) or not _is_repo(match["repo"], match["revision"]):
            raise UsageError(f"{text!r} names no file of the Hugging Face hub", "write hf:owner/repo/path/to/file.pkl")
        return HubAddress(match["repo"], "dataset" if match["datasets"] else "model", match["path"], match["revision"])
    if re.fullmatch(r"drive:[\w-]+", text):
        return DriveAddress(text.removeprefix("drive:"))
    if re.match(r"https?://[^/]", text):
        return WebAddress(text)
    raise UsageError(f"{text!r} is not an address")


def place_of(address: Address) -> PurePosixPath:
    """The place of a file, or folder, in cfx's own directory of files."""
    if isinstance(address, WebAddress):
        parts = urlsplit(address.url)
        return PurePosixPath("web", parts.netloc.replace(":", "_"), parts.path.lstrip("/"))
    return PurePosixPath(*str(address).split(":", 1))


def is_hub_address(text: str) -> bool:
    """Whether a text means a file of the Hugging Face hub rather than one of this machine."""
    return text.startswith("hf:")


def _is_plain(path: str) -> bool:
    """Whether a path stays below where it begins."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path


def _is_repo(repo: str, revision: str | None) -> bool:
    """Whether the hub allows such names; it refuses others with an error of its own."""
    names = repo.split("/")
    return (
        all(not re.search(r"^[.-]|[.-]$|--|\.\.|\.git$", name) for name in names)
        and len(repo) <= 96
        and revision not in (".", "..")
    )
