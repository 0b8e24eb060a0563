"""Published files by address: the one that is here, or one that is brought, checked and recorded.

Files of the hub lie in the hub's own cache (HF_HOME), everything else, and what was imported, in `files/` of cfx's
(CFX_CACHE). Once something was fetched, its commit is what is fetched again.

The hub announces the SHA-256 of a large file as its ETag, and the git SHA-1 of a small one. Its cache keeps contents
under these names (`blobs/`), links them into `snapshots/COMMIT/`, and says in `refs/` what a branch meant when it was
last asked for. A content gets its name, and then its link, only when it has been checked.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cfx.catalog import Address, DriveAddress, HubAddress, WebAddress, parse_address, place_of
from cfx.errors import DataError, NetworkError
from cfx.fetch.failures import failure
from cfx.fetch.record import Digest, Record, Remote, check_same, digest_of, matches, read_records, remember
from cfx.io.files import cache_directory, exclusively, held, remove_file
from cfx.reporter import Reporter

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


def locate(key: str, record: Record) -> dict[str, Path | None]:
    """Where the files of a record lie; None for those that are gone."""
    if record.directory is None:
        address = parse_address(key)
        path = _cached(address, record.commit) if isinstance(address, HubAddress) else None
        return dict.fromkeys(record.files, path)
    base = cache_directory() / record.directory
    return {name: base / name if (base / name).is_file() else None for name in record.files}


def find(address: str, record: Record | None) -> Path | None:
    """The file, or folder of Google Drive, that was fetched before, if all of it is here."""
    if record is None:
        return None
    paths = [path for path in locate(address, record).values() if path is not None]
    if len(paths) < len(record.files):
        return None
    is_folder = record.directory is not None and isinstance(parse_address(address), DriveAddress)
    return cache_directory() / str(record.directory) if is_folder else paths[0]


def remove_files(paths: Iterable[Path | None]) -> None:
    """Removes files; of links, what they lead to as well.

    Raises:
        OutputError: if that is not allowed.
    """
    for path in paths:
        if path is not None:
            remove_file(path.resolve())
            remove_file(path)


def fetch_file(address: str, reporter: Reporter, request: Request = NORMALLY, announce: bool = True) -> Path:
    """A published file, or folder of Google Drive, on this machine; says so, if `announce`, when it was fetched.

    Raises:
        UsageError: if the address is none.
        NetworkError: if it does not arrive, or is not what it was.
        OutputError: if it cannot be written.
        DataError: if the record is damaged.
    """
    wanted = request.force or request.is_new
    if not wanted and (path := find(address, read_records().get(address))) is not None:
        return path
    with exclusively(address, lambda: reporter.message(f"another process is fetching {address}; waiting for it")):
        known = read_records().get(address)
        if wanted or (path := find(address, known)) is None:
            now = _bring(parse_address(address), None if request.is_new else known, reporter, request)
            remember(address, now)
            if announce:
                reporter.message(f"fetched {address}, {now.size / 1e6:.1f} MB")
            path = find(address, now)
    if path is None:
        raise DataError(f"{address} was fetched, then removed by another program", "run the same command again")
    return path


def _bring(address: Address, known: Record | None, reporter: Reporter, request: Request) -> Record:
    """Brings a file or folder here; it must be what is known of it."""
    place = FILES / place_of(address)
    revision = request.revision or (known.commit if known else None)
    check = functools.partial(check_same, str(address), known.files if known else {})
    if is_offline():
        found = _take_cached(address, revision) if isinstance(address, HubAddress) and not request.force else None
        if found is None:
            raise failure("not cached", address=address)
        check(found.files)
        return found
    from cfx.fetch import download  # only now: it imports httpx

    def accept(digest: Digest) -> None:
        check({place.name: digest})

    title = f"fetching {place.name}"
    if isinstance(address, DriveAddress):
        with reporter.progress(title, None):
            return _bring_from_drive(address, request.force or request.is_new, check)
    if isinstance(address, WebAddress):
        remote = download.ask_web(address.url)
        with reporter.progress(title, remote.size, unit="B") as progress:
            digest = download.download(remote, cache_directory() / place, accept, progress.update)
        return Record({place.name: digest}, directory=place.parent.as_posix())
    remote, commit = download.ask_hub(address, revision, request.token)
    with reporter.progress(title, remote.size, unit="B") as progress:
        digest = _bring_blob(address, remote, request.force, accept, progress.update)
    _link(address, remote, commit, revision or address.revision or "main")
    return Record({place.name: digest}, commit)


# The Hugging Face hub.


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network.

    Raises:
        NetworkError: if a setting of the hub cannot be used; its client reads them when it is first imported.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise failure("hub settings", reason=error) from error
    return bool(constants.HF_HUB_OFFLINE)


def _folder(address: HubAddress) -> Path:
    """The directory of a repository in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=address.repo, repo_type=address.repo_type)


def _cached(address: HubAddress, revision: str | None) -> Path | None:
    """A file in the hub's cache: of a commit, or of what a branch (by default main) meant when last asked for."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        address.repo, address.path, revision=revision or address.revision, repo_type=address.repo_type
    )
    return Path(found) if isinstance(found, str) else None


def _take_cached(address: HubAddress, revision: str | None) -> Record | None:
    """The record of a file in the hub's cache, whoever put it there, if it is what its name there says."""
    path = _cached(address, revision)
    if path is None:
        return None
    digest, commit = digest_of(path), path.relative_to(_folder(address) / "snapshots").parts[0]
    is_whole = matches(path.resolve().name, digest, path)  # what a snapshot links to is called by its digest
    return Record({place_of(address).name: digest}, commit) if is_whole else None


def _bring_blob(
    address: HubAddress,
    remote: Remote,
    force: bool,
    accept: Callable[[Digest], None],
    on_progress: Callable[[int, str], None],
) -> Digest:
    """Brings a content into the hub's cache, unless it is there, whole, and not to be forced."""
    from cfx.fetch.download import download

    folder = _folder(address)
    blob = folder / "blobs" / remote.version
    # The lock is that of the hub's client; a cache that cannot be written needs none.
    is_readonly = folder.parent.exists() and not os.access(folder.parent, os.W_OK)
    lock = folder.parent / ".locks" / folder.name / f"{remote.version}.lock"
    with contextlib.nullcontext() if is_readonly else held(lock, "set HF_HOME to a directory that you can write to"):
        if blob.exists() and not force and matches(remote.digest, digest := digest_of(blob), blob):
            accept(digest)
            return digest
        return download(remote, blob, accept, on_progress)


def _link(address: HubAddress, remote: Remote, commit: str, revision: str) -> None:
    """Lets the name of a file in a snapshot mean a content, and a branch the snapshot, as the hub's client does."""
    folder = _folder(address)
    blob, link = folder / "blobs" / remote.version, folder / "snapshots" / commit / address.path
    # Made beside it and renamed: a link cannot be replaced in one step, and others may be reading it.
    fresh = link.with_name(f"{link.name}.{os.getpid()}.incomplete")
    try:
        if not (link.is_symlink() and link.resolve() == blob.resolve()):
            link.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            try:
                fresh.symlink_to(os.path.relpath(blob, link.parent))
            except (OSError, NotImplementedError):  # where the system knows no links
                shutil.copyfile(blob, fresh)
            os.replace(fresh, link)
    except OSError as error:
        raise failure("no link", target=link, reason=error.strerror or error) from error
    if revision != commit:
        with contextlib.suppress(OSError):  # for whoever has no network later; not worth an error
            (folder / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
            (folder / "refs" / revision).write_text(commit)


# Google Drive.


def _bring_from_drive(address: DriveAddress, anew: bool, check: Callable[[Mapping[str, Digest]], None]) -> Record:
    """Brings all files of a folder. Google says no digests: what comes first is what must come again."""
    place = FILES / place_of(address)
    directory = cache_directory() / place
    if anew:
        shutil.rmtree(directory, ignore_errors=True)
    _download_folder(address.folder, directory)
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != ".part")
    if not paths:
        raise failure("drive empty", folder=address.folder)
    files = {path.relative_to(directory).as_posix(): digest_of(path) for path in paths}
    try:
        check(files)
    except NetworkError:
        shutil.rmtree(directory)
        raise
    return Record(files, directory=place.as_posix())


def _download_folder(folder: str, directory: Path) -> None:
    """Downloads a folder of Google Drive; an interrupted download is continued."""
    import gdown
    import requests
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    settings = {"use_cookies": False, "resume": True, "timeout": (10, 30), "retries": 3}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            gdown.download_folder(id=folder, output=str(directory), quiet=True, **settings)
    except requests.ConnectionError as error:
        raise failure("unreachable", host="drive.google.com") from error
    except (DownloadError, FileURLRetrievalError, requests.RequestException) as error:
        raise failure("drive", folder=folder, reason=str(error).partition("\n")[0]) from error
    except OSError as error:
        if error.errno is None:  # that of requests, for certificates that are not there
            raise failure("drive settings", reason=error) from error
        raise failure("no room for a folder", target=directory, reason=error.strerror or error) from error
