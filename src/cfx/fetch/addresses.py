"""Where published files lie: the text of an address (see `cfx.catalog`), taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from cfx.catalog import is_hub_address
from cfx.errors import UsageError

_HUB = re.compile(
    r"hf:(?P<datasets>datasets/)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/]+))?/(?P<path>[^/].*)", re.ASCII
)


@dataclass(frozen=True)
class HubAddress:
    """A file on the Hugging Face hub.

    Attributes:
        repo: owner/name.
        repo_type: model or dataset.
        path: of the file in the repository.
        revision: branch, tag or commit that the address asks for, or None.
    """

    repo: str
    repo_type: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo}{revision}/{self.path}"

    @property
    def place(self) -> PurePosixPath:
        """Where it lies below cfx's own directory of files."""
        return PurePosixPath("hf", str(self).removeprefix("hf:"))


@dataclass(frozen=True)
class WebAddress:
    """A file on the web."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def place(self) -> PurePosixPath:
        """Where it lies below cfx's own directory of files."""
        parts = urlsplit(self.url)
        return PurePosixPath("web", parts.netloc.replace(":", "_"), parts.path.lstrip("/"))


@dataclass(frozen=True)
class DriveAddress:
    """A folder on Google Drive."""

    folder: str

    def __str__(self) -> str:
        return f"drive:{self.folder}"

    @property
    def place(self) -> PurePosixPath:
        """Where it lies below cfx's own directory of files."""
        return PurePosixPath("drive", self.folder)


Address = HubAddress | WebAddress | DriveAddress


def parse(text: str) -> Address:
    """Takes an address apart.

    Raises:
        UsageError: if it is none.
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
    raise UsageError(f"{text!r} is no address")


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
