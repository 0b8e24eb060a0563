"""Published files by address: the one that is here, or one that is brought, checked and recorded.

Files of the hub lie in the hub's own cache (HF_HOME), everything else, and what was imported, in `files/` of cfx's
(CFX_CACHE). The lockfile says what each must be. Once something was fetched, its commit is what is fetched again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cfx.errors import DataError, NetworkError, OutputError
from cfx.fetch import hub
from cfx.fetch.addresses import Address, DriveAddress, HubAddress, WebAddress, parse
from cfx.fetch.download import CONTINUE_HINT, OFFLINE_HINT, Unreachable, ask_web, download
from cfx.fetch.record import Digest, Locked, check_same, digest_of, read_lockfile, record
from cfx.io.files import cache_directory, exclusively
from cfx.reporter import Reporter

Accept = Callable[[Digest], None]
FILES = PurePosixPath("files")
"""Directory of what does not lie in the hub's cache."""


@dataclass(frozen=True)
class Request:
    """How something is to be fetched.

    Attributes:
        revision: of the hub: branch, tag or commit. It replaces what was recorded before.
        token: of the hub.
        force: fetch it even if it is there.
        accept: fetch it, and accept it whatever was recorded before.
    """

    revision: str | None = None
    token: str | None = None
    force: bool = False
    accept: bool = False

    @property
    def is_new(self) -> bool:
        """Whether what comes may differ from what was recorded."""
        return self.accept or self.revision is not None


NORMALLY = Request()
"""What is here stays; what is not is fetched from the recorded commit, or from main."""


def fetched(address: str, locked: Locked | None) -> Path | None:
    """Where a file or folder lies that was fetched before, or None."""
    if locked is None:
        return None
    where = parse(address)
    if locked.directory is not None:
        directory = cache_directory() / locked.directory
        paths = [directory / name for name in locked.files]
        path = directory if isinstance(where, DriveAddress) else paths[0]
        return path if all(file.is_file() for file in paths) else None
    return hub.cached(where, locked.commit) if isinstance(where, HubAddress) else None


def fetch_file(address: str, reporter: Reporter, request: Request = NORMALLY, announce: bool = True) -> Path:
    """A published file, or folder of Google Drive, on this machine.

    Args:
        address: of it.
        reporter: receives progress.
        request: how to fetch it.
        announce: say so when it has come.

    Raises:
        UsageError: if the address is none.
        NetworkError: if it does not arrive, or is not what it was.
        OutputError: if it cannot be written.
        DataError: if the lockfile is damaged.
    """
    wanted = request.force or request.is_new
    if not wanted and (path := fetched(address, read_lockfile().get(address))) is not None:
        return path
    with exclusively(address, lambda: reporter.message(f"another process is fetching {address}; waiting for it")):
        locked = read_lockfile().get(address)
        if wanted or (path := fetched(address, locked)) is None:
            now = _bring(parse(address), locked, reporter, request)
            record(address, now, replace=request.is_new)
            if announce:
                reporter.message(f"fetched {address}, {now.size / 1e6:.1f} MB")
            path = fetched(address, now)
    if path is None:
        raise DataError(f"{address} was fetched, and removed by somebody else", "run the same command again")
    return path


def _bring(address: Address, locked: Locked | None, reporter: Reporter, request: Request) -> Locked:
    before = locked.files if locked is not None and not request.is_new else {}
    commit = locked.commit if locked is not None and not request.is_new else None

    def accept(digest: Digest) -> None:
        check_same(str(address), before, {address.place.name: digest})

    if hub.is_offline():
        return _find_offline(address, request, commit, accept)
    if isinstance(address, HubAddress):
        return _bring_from_hub(address, request.revision or commit, accept, reporter, request)
    if isinstance(address, DriveAddress):
        return _bring_from_drive(address, before, reporter, request)
    return _bring_from_web(address, accept, reporter)


def _find_offline(address: Address, request: Request, commit: str | None, accept: Accept) -> Locked:
    found = None
    if isinstance(address, HubAddress) and not request.force:
        found = hub.take_cached(address, request.revision or commit)
    if found is None:
        raise NetworkError(f"{address} is not cached, and HF_HUB_OFFLINE is set", OFFLINE_HINT)
    commit, digest = found
    accept(digest)
    return Locked({address.place.name: digest}, commit)


def _bring_from_hub(
    address: HubAddress, revision: str | None, accept: Accept, reporter: Reporter, request: Request
) -> Locked:
    remote, commit = hub.ask(address, revision, request.token)
    with reporter.progress(_title(address), remote.size, unit="B") as progress:
        digest = hub.fetch(address, remote, commit, revision, request.force, accept, progress.update)
    return Locked({address.place.name: digest}, commit)


def _bring_from_web(address: WebAddress, accept: Accept, reporter: Reporter) -> Locked:
    remote, place = ask_web(address.url), FILES / address.place
    with reporter.progress(_title(address), remote.size, unit="B") as progress:
        digest = download(remote, cache_directory() / place, accept, progress.update)
    return Locked({address.place.name: digest}, directory=place.parent.as_posix())


def _bring_from_drive(
    address: DriveAddress, before: Mapping[str, Digest], reporter: Reporter, request: Request
) -> Locked:
    directory = cache_directory() / FILES / address.place
    if request.force or request.is_new:
        shutil.rmtree(directory, ignore_errors=True)
    with reporter.progress(_title(address), None):
        files = fetch_folder(address, directory)
    try:
        check_same(str(address), before, files)
    except NetworkError:
        shutil.rmtree(directory)
        raise
    return Locked(files, directory=(FILES / address.place).as_posix())


def _title(address: Address) -> str:
    return f"fetching {address.place.name}"


ATTEMPTS = 3


def fetch_folder(address: DriveAddress, directory: Path) -> dict[str, Digest]:
    """Brings all files of a folder into a directory; an interrupted download is continued.

    Google says no digests: what a file is, is recorded when it comes for the first time.

    Returns:
        Names, relative to the directory -> what came.

    Raises:
        NetworkError: if they do not arrive.
        OutputError: if they cannot be written.
    """
    import gdown
    import requests
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            gdown.download_folder(
                id=address.folder,
                output=str(directory),
                quiet=True,
                use_cookies=False,
                resume=True,
                timeout=(10, 30),
                retries=ATTEMPTS,
            )
    except (DownloadError, FileURLRetrievalError) as error:
        first = str(error).splitlines()[0]
        raise NetworkError(f"Google Drive did not hand over {address.folder}: {first}", CONTINUE_HINT) from error
    except requests.ConnectionError as error:
        raise Unreachable("cannot reach drive.google.com", OFFLINE_HINT) from error
    except requests.RequestException as error:
        raise NetworkError(f"Google Drive did not hand over {address.folder}: {error}", CONTINUE_HINT) from error
    except OSError as error:
        if error.errno is None:  # that of requests, for certificates that are not there
            raise NetworkError(f"cannot ask Google Drive: {error}", "look at REQUESTS_CA_BUNDLE") from error
        raise OutputError(
            f"cannot write {directory}: {error.strerror or error}", "set CFX_CACHE to a directory with room"
        ) from error
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(".part"))
    if not files:
        raise NetworkError(f"the folder {address.folder} on Google Drive is empty")
    return {path.relative_to(directory).as_posix(): digest_of(path) for path in files}
