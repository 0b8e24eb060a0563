"""Files of the Hugging Face hub, in the cache that all its programs share.

The hub announces the SHA-256 of a large file as its ETag, and the git SHA-1 of a small one. Its cache keeps contents
under these names (`blobs/`), links them into `snapshots/COMMIT/`, and says in `refs/` what a branch meant when it was
last asked for. A content gets its name, and then its link, only when it has been checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

from cfx.errors import CfxError, NetworkError, OutputError, UsageError
from cfx.fetch.addresses import HubAddress
from cfx.fetch.download import OnProgress, Remote, Unreachable, download, matches, patiently
from cfx.fetch.record import Digest, digest_of
from cfx.io.files import held, remove_file

_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network.

    Raises:
        NetworkError: if a setting of the hub cannot be used; its client reads them when it is first imported.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise NetworkError(
            f"a setting of the hub cannot be used: {error}", "look at HF_ENDPOINT, HF_HUB_..."
        ) from error
    return bool(constants.HF_HUB_OFFLINE)


def cached(address: HubAddress, revision: str | None = None) -> Path | None:
    """The file in the hub's cache.

    Args:
        address: of the file.
        revision: commit, or what a branch meant when last asked; by default that of the address, or main.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        address.repo, address.path, revision=revision or address.revision, repo_type=address.repo_type
    )
    return Path(found) if isinstance(found, str) else None


def take_cached(address: HubAddress, revision: str | None = None) -> tuple[str, Digest] | None:
    """Commit and digest of a file in the hub's cache, whoever put it there, if it is what its name there says.

    For use without a network: with one, `ask` and `fetch`.
    """
    path = cached(address, revision)
    if path is None:
        return None
    digest, announced = digest_of(path), path.resolve().name
    if not _DIGEST.fullmatch(announced) or not matches(announced, digest, path):
        return None
    return path.relative_to(_folder(address) / "snapshots").parts[0], digest


def ask(address: HubAddress, revision: str | None, token: str | None, timeout: float = 10.0) -> tuple[Remote, str]:
    """What the hub says of a file, and its commit.

    Raises:
        NetworkError: if it cannot be asked, or does not show the file.
        UsageError: if the token is none.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=_checked_token(token) or False, library_name="cfx")
    headers["Accept-Encoding"] = "identity"
    url = _url(address, revision or address.revision or "main")
    metadata = patiently(lambda: get_hf_file_metadata(url, headers=headers, token=False, timeout=timeout), url)
    commit, etag = str(metadata.commit_hash), str(metadata.etag)
    if not _COMMIT.fullmatch(commit) or not _DIGEST.fullmatch(etag):
        raise NetworkError(
            f"what answers for {url} is no Hugging Face hub: it names no commit or no digest",
            "look at HF_ENDPOINT, and at what a firewall or proxy does",
        )
    return Remote(url, metadata.size, etag, etag, headers), commit


def _checked_token(token: str | None) -> str | None:
    from huggingface_hub import get_token

    try:
        found = (token if token is not None else get_token()) or ""
    except OSError as error:
        raise OutputError(f"cannot read the token of the hub: {error}", "look at HF_HOME") from error
    if not re.fullmatch(r"[\x21-\x7e]*", found.strip()):
        raise UsageError("the token of the hub has characters that no token has", "look at `token` or HF_TOKEN")
    return found.strip() or None


def why_unreachable(address: HubAddress, seconds: float) -> CfxError | None:
    """Asks the hub for a file and returns what is wrong, after so many seconds at most, name lookup included."""
    found: list[CfxError | None] = []

    def try_it() -> None:
        try:
            ask(address, None, None, timeout=seconds)
            found.append(None)
        except CfxError as error:
            found.append(error)

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else Unreachable("the hub does not answer")


def fetch(
    address: HubAddress,
    remote: Remote,
    commit: str,
    revision: str | None,
    force: bool,
    accept: Callable[[Digest], None],
    on_progress: OnProgress,
) -> Digest:
    """Brings a file into the hub's cache, unless it is there.

    Args:
        address: of the file.
        remote: what `ask` says of it.
        commit: likewise.
        revision: that was asked for, if another than that of the address.
        force: download it even if it is there.
        accept: raises if the content is not acceptable; nothing of it is left then.
        on_progress: called with the bytes so far.

    Raises:
        NetworkError: if it does not arrive, or is not what the hub announced.
        OutputError: if it cannot be written.
    """
    folder = _folder(address)
    blob = folder / "blobs" / remote.version
    with _locked(folder.parent / ".locks" / folder.name / f"{remote.version}.lock"):
        digest = _checked(blob, remote) if blob.exists() and not force else None
        if digest is None:
            digest = download(dataclasses.replace(remote, url=_url(address, commit)), blob, accept, on_progress)
        else:
            accept(digest)
    _link(blob, folder / "snapshots" / commit / address.path)
    _remember(folder, revision or address.revision or "main", commit)
    return digest


def remove(address: HubAddress, commit: str) -> None:
    """Removes a file from the hub's cache, content and link.

    Raises:
        OutputError: if that is not allowed.
    """
    path = cached(address, commit)
    if path is not None:
        remove_file(path.resolve())
        remove_file(path)


def _url(address: HubAddress, revision: str) -> str:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(address.repo, address.path, repo_type=address.repo_type, revision=revision)
    try:
        urlsplit(url)
    except ValueError as error:
        raise NetworkError(f"{url} is no address: {error}", "HF_ENDPOINT is like https://huggingface.co") from error
    return url


def _folder(address: HubAddress) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=address.repo, repo_type=address.repo_type)


def _locked(path: Path) -> AbstractContextManager[None]:
    """The lock that the hub's client takes for a content, too; a cache that cannot be written needs none."""
    cache = path.parent.parent.parent
    if cache.exists() and not os.access(cache, os.W_OK):
        return contextlib.nullcontext()
    return held(path, "set HF_HOME to a directory you can write")


def _checked(blob: Path, remote: Remote) -> Digest | None:
    """The digest of a content that is there, or None if it was damaged; then it is removed."""
    digest = digest_of(blob)
    if matches(remote.digest, digest, blob):
        return digest
    remove_file(blob)
    return None


def _link(blob: Path, link: Path) -> None:
    """Lets a name in a snapshot mean a content; where the system knows no links, it gets a copy."""
    if link.is_symlink() and link.resolve() == blob.resolve():
        return
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f"{link.name}.{os.getpid()}.incomplete")
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(os.path.relpath(blob, link.parent))
        except (OSError, NotImplementedError):
            shutil.copyfile(blob, fresh)
        os.replace(fresh, link)
    except OSError as error:
        raise OutputError(
            f"cannot write {link}: {error.strerror or error}", "set HF_HOME to a directory you can write"
        ) from error


def _remember(folder: Path, revision: str, commit: str) -> None:
    """Notes what a branch or tag means, for whoever has no network later; not worth an error."""
    if not _COMMIT.fullmatch(revision):
        with contextlib.suppress(OSError):
            reference = folder / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
