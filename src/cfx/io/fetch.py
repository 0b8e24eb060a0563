"""Published files by address: from the cache where they are there, fetched, checked and recorded where they are not.

Files of the hub lie in the hub's own cache (HF_HOME), everything else, and what was imported, in `files/` of cfx's
(CFX_CACHE). The lock file says what each must be. Once something was fetched, its commit is what is fetched again.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cfx.errors import NetworkError
from cfx.io import drive, hub
from cfx.io.addresses import Address, DriveAddress, HubAddress, WebAddress, parse
from cfx.io.cache import cache_directory
from cfx.io.download import OFFLINE_HINT, ask_web, download
from cfx.io.lock import Digest, Locked, check_same, exclusively, read_lock, record
from cfx.reporter import Reporter

FILES = PurePosixPath("files")
"""Directory of what does not lie in the hub's cache."""


@dataclasses.dataclass(frozen=True)
class Request:
    """How something is to be fetched.

    Attributes:
        revision: of the hub: branch, tag or commit. It replaces what was recorded before.
        token: of the hub.
        force: fetch it even if it is there.
    """

    revision: str | None = None
    token: str | None = None
    force: bool = False


NORMALLY = Request()
"""What is here stays; what is not is fetched from the recorded commit, or from main."""


def fetched(address: str, locked: Locked | None) -> Path | None:
    """Where a file or folder lies that was fetched before, or None."""
    if locked is None:
        return None
    if locked.directory is not None:
        directory = cache_directory() / locked.directory
        paths = [directory / name for name in locked.files]
        path = directory if isinstance(parse(address), DriveAddress) else paths[0]
        return path if all(file.is_file() for file in paths) else None
    where = parse(address)
    return hub.cached(where, locked.commit) if isinstance(where, HubAddress) else None


def fetch_file(address: str, reporter: Reporter, request: Request = NORMALLY) -> Path:
    """A published file, or folder of Google Drive, on this machine.

    Raises:
        NetworkError: if it does not arrive, or is not what it was.
        OutputError: if it cannot be written.
    """
    wanted = request.force or request.revision is not None
    if not wanted and (path := fetched(address, read_lock().get(address))) is not None:
        return path
    with exclusively(address, lambda: reporter.message(f"another process is fetching {address}; waiting for it")):
        locked = read_lock().get(address)
        if not wanted and (path := fetched(address, locked)) is not None:
            return path
        now = _fetch(parse(address), locked, reporter, request)
        record(address, now, replace=request.revision is not None)
        reporter.message(f"fetched {address}, {now.size / 1e6:.1f} MB")
        path = fetched(address, now)
        assert path is not None
        return path


def _fetch(address: Address, locked: Locked | None, reporter: Reporter, request: Request) -> Locked:
    before = locked.files if locked is not None and request.revision is None else {}
    if hub.is_offline():
        found = hub.take_cached(address) if isinstance(address, HubAddress) and not request.force else None
        if found is None:
            raise NetworkError(f"{address} is not cached, and HF_HUB_OFFLINE is set", OFFLINE_HINT)
        check_same(str(address), before, _named(address, found.digest))
        return Locked(_named(address, found.digest), found.commit)
    if isinstance(address, HubAddress):
        revision = request.revision or (locked.commit if locked else None)
        return _fetch_from_hub(address, revision, before, reporter, request)
    if isinstance(address, DriveAddress):
        return _fetch_from_drive(address, before, reporter, request)
    return _fetch_from_web(address, before, reporter)


def _fetch_from_hub(
    address: HubAddress, revision: str | None, before: Mapping[str, Digest], reporter: Reporter, request: Request
) -> Locked:
    def accept(digest: Digest) -> None:
        check_same(str(address), before, _named(address, digest))

    remote, commit = hub.ask(address, revision, request.token)
    with reporter.progress(_title(address), remote.size, unit="B") as progress:
        found = hub.fetch(address, remote, commit, request.token, request.force, accept, progress.update)
    return Locked(_named(address, found.digest), commit)


def _fetch_from_web(address: WebAddress, before: Mapping[str, Digest], reporter: Reporter) -> Locked:
    def accept(digest: Digest) -> None:
        check_same(str(address), before, _named(address, digest))

    remote = ask_web(address.url)
    place = FILES / address.place
    with reporter.progress(_title(address), remote.size, unit="B") as progress:
        digest = download(remote, cache_directory() / place, accept, progress.update)
    return Locked(_named(address, digest), directory=place.parent.as_posix())


def _fetch_from_drive(
    address: DriveAddress, before: Mapping[str, Digest], reporter: Reporter, request: Request
) -> Locked:
    directory = cache_directory() / FILES / address.place
    if request.force:
        shutil.rmtree(directory, ignore_errors=True)
    with reporter.progress(_title(address), None):
        files = drive.fetch_folder(address, directory)
    try:
        check_same(str(address), before, files)
    except NetworkError:
        shutil.rmtree(directory)
        raise
    return Locked(files, directory=(FILES / address.place).as_posix())


def _named(address: HubAddress | WebAddress, digest: Digest) -> dict[str, Digest]:
    return {address.place.name: digest}


def _title(address: Address) -> str:
    return f"fetching {address.place.name}"
