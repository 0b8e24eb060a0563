"""Files of the Hugging Face hub, in the cache that all its programs share.

The hub announces the SHA-256 of a large file as its ETag, and the git SHA-1 of a small one; the cache keeps contents
under these names (`blobs/`) and links them into `snapshots/COMMIT/`. A file gets its name there only when it has been
checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cfx.errors import NetworkError, OutputError
from cfx.io.addresses import HubAddress
from cfx.io.download import CONTINUE_HINT, OnProgress, Remote, download, explain, matches, patiently
from cfx.io.lock import Digest, digest_of


@dataclass(frozen=True)
class HubFile:
    """A file in the hub's cache.

    Attributes:
        path: in the snapshot of its commit.
        commit: 40 hexadecimal digits.
        digest: of its content.
    """

    path: Path
    commit: str
    digest: Digest


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached(address: HubAddress, commit: str | None = None) -> Path | None:
    """The file in the hub's cache.

    Args:
        address: of the file.
        commit: which one; by default the one that the revision of the address, or main, meant when last asked.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        address.repo, address.path, revision=commit or address.revision, repo_type=address.repo_type
    )
    return Path(found) if isinstance(found, str) else None


def take_cached(address: HubAddress) -> HubFile | None:
    """A file that another program has put into the hub's cache, if it is what its name there says.

    For use without a network: with one, `fetch` asks the hub.
    """
    path = cached(address)
    if path is None:
        return None
    digest = digest_of(path)
    announced = path.resolve().name
    if len(announced) not in (40, 64) or not matches(announced, digest, path):
        return None
    commit = path.parents[len(Path(address.path).parts) - 1].name
    return HubFile(path, commit, digest)


def ask(address: HubAddress, revision: str | None, token: str | None, timeout: float = 10.0) -> tuple[Remote, str]:
    """What the hub says of a file, and its commit.

    Raises:
        NetworkError: if it cannot be asked, or does not show the file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import FileMetadataError
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(
        address.repo, address.path, repo_type=address.repo_type, revision=revision or address.revision or "main"
    )
    metadata = patiently(lambda: get_hf_file_metadata(url, token=token, timeout=timeout, library_name="cfx"), url)
    if metadata.commit_hash is None or metadata.etag is None:
        raise explain(FileMetadataError("no commit or no ETag"), url)
    headers = build_hf_headers(token=token, library_name="cfx")
    return Remote(url, metadata.size, metadata.etag, metadata.etag, headers), metadata.commit_hash


def answers(address: HubAddress, seconds: float) -> bool:
    """Whether the hub shows a file, found out within so many seconds, name lookup included."""
    found: list[bool] = []

    def try_it() -> None:
        with contextlib.suppress(NetworkError):
            ask(address, None, None, timeout=seconds)
            found.append(True)

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found)


def fetch(
    address: HubAddress,
    remote: Remote,
    commit: str,
    token: str | None,
    force: bool,
    accept: Callable[[Digest], None],
    on_progress: OnProgress,
) -> HubFile:
    """Brings a file into the hub's cache, unless it is there.

    Args:
        address: of the file.
        remote: what `ask` says of it.
        commit: likewise.
        token: of the hub; by default HF_TOKEN or the one of `hf auth login`.
        force: download it even if it is there.
        accept: raises if the content is not acceptable; nothing of it is left then.
        on_progress: called with the bytes so far.

    Raises:
        NetworkError: if it does not arrive, or is not what the hub announced.
        OutputError: if it cannot be written.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=address.repo, repo_type=address.repo_type)
    blob = Path(constants.HF_HUB_CACHE) / folder / "blobs" / remote.version
    digest = _checked(blob, remote) if blob.exists() and not force else None
    if digest is None:
        url = hf_hub_url(address.repo, address.path, repo_type=address.repo_type, revision=commit)
        digest = download(dataclasses.replace(remote, url=url), blob, accept, on_progress)
    else:
        accept(digest)
    return HubFile(_linked(address, commit, token), commit, digest)


def _checked(blob: Path, remote: Remote) -> Digest | None:
    """The digest of a content that is there, or None if it was damaged; then it is removed."""
    digest = digest_of(blob)
    if matches(remote.digest, digest, blob):
        return digest
    blob.unlink()
    return None


def _linked(address: HubAddress, commit: str, token: str | None) -> Path:
    """Lets the hub's client link a content that is there into the snapshot of a commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = {"repo_type": address.repo_type, "revision": commit, "token": token}
    try:
        return Path(patiently(lambda: hf_hub_download(address.repo, address.path, **where), str(address)))
    except LocalEntryNotFoundError as error:
        raise NetworkError(f"the hub stopped answering for {address}", CONTINUE_HINT) from error
    except OSError as error:
        raise OutputError(f"cannot write the cache of the hub: {error.strerror or error}", "set HF_HOME") from error


def remove(address: HubAddress, commit: str) -> None:
    """Removes a file from the hub's cache, content and link."""
    path = cached(address, commit)
    if path is not None:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
