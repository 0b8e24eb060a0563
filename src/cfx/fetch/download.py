"""Bytes over HTTP: resumed, tried again, and checked before they get their final name.

Bytes gather in a partial file, which a later run goes on with. They stop when there are more than were announced, or
when next to nothing comes.
"""

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from huggingface_hub import constants, errors, get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, logging

from cfx.catalog import HubAddress
from cfx.errors import NetworkError
from cfx.fetch.failures import PASSING, PASSING_IN_TRANSFER, failure
from cfx.fetch.record import Digest, Remote, digest_of, matches
from cfx.io.files import sync

PIECE = 10 * 2**20
"""Bytes that are written at once: what an interrupted download leaves is a multiple of it."""

SLOWEST = 1024
"""Bytes a second, on average over WINDOW read time-outs. What comes slower is as good as silent."""

WINDOW = 3
"""Read time-outs (HF_HUB_DOWNLOAD_TIMEOUT, 10 s by default) over which the speed is measured."""

ATTEMPTS = 4
"""Attempts in a row that may fail; between them 1, 2 and 4 seconds, or as long as the server asks for."""

LONGEST_WAIT = 60.0
"""Seconds. A server that asks for more is not asked again."""

STATUSES = {
    401: "hidden",
    403: "hidden",
    404: "missing",
    429: "crowded",
    **dict.fromkeys((408, 500, 502, 503, 504), "busy"),
}
"""HTTP status -> kind of failure, where no error of the hub's client says it better."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when there is no room."""

OnProgress = Callable[[int, str], None]
"""Called with the bytes so far and a short text, mostly empty."""

T = TypeVar("T")


# What servers say of a file.


def ask_hub(
    address: HubAddress, revision: str | None = None, token: str | None = None, timeout: float | None = None
) -> tuple[Remote, str]:
    """What the hub says of a file, at its commit, which is returned as well.

    Args:
        address: of the file.
        revision: branch, tag or commit; by default that of the address, or main.
        token: of the hub; by default the one that its client knows.
        timeout: seconds; by default HF_HUB_ETAG_TIMEOUT, or 10.

    Raises:
        NetworkError: if it cannot be asked, or does not show the file.
        UsageError: if the token is none.
    """

    def url_at(revision: str) -> str:
        return hf_hub_url(address.repo, address.path, repo_type=address.repo_type, revision=revision)

    timeout = timeout or constants.HF_HUB_ETAG_TIMEOUT
    headers = build_hf_headers(token=_checked_token(token) or False, library_name="cfx")
    headers["Accept-Encoding"] = "identity"
    url = url_at(revision or address.revision or "main")
    metadata = with_retries(lambda: get_hf_file_metadata(url, headers=headers, token=False, timeout=timeout), url)
    commit, etag = str(metadata.commit_hash), str(metadata.etag)
    # Both become names of files. A content is called by its SHA-256 if it is large, or else by git's SHA-1.
    if not re.fullmatch("[0-9a-f]{40}", commit) or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag):
        raise failure("no digest", url=url)
    return Remote(url_at(commit), metadata.size, etag, etag, headers), commit


def _checked_token(token: str | None) -> str | None:
    try:
        found = ((token if token is not None else get_token()) or "").strip()
    except OSError as error:
        raise failure("token", reason=error) from error
    if not re.fullmatch(r"[\x21-\x7e]*", found):
        raise failure("token letters")
    return found or None


def ask_web(url: str) -> Remote:
    """What a web server says of a file.

    Raises:
        NetworkError: if it cannot be asked, or has none.
    """
    headers = {"Accept-Encoding": "identity"}

    def head() -> Remote:
        response = get_session().head(url, timeout=10, headers=headers)
        if response.status_code in (405, 501):  # a server that answers GET only
            return Remote(url, None, "", headers=headers)
        hf_raise_for_status(response)
        length = response.headers.get("Content-Length", "")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
        strong = {} if version.startswith("W/") or not version else {"If-Range": version}
        return Remote(url, int(length) if length.isdigit() else None, version, headers=headers | strong)

    return with_retries(head, url)


# The bytes.


def download(remote: Remote, target: Path, accept: Callable[[Digest], None], on_progress: OnProgress) -> Digest:
    """Brings a file here, whole and checked, or not at all; an older file is replaced.

    An interrupted download is continued by the next one of the same file. `accept` raises if the content is not
    acceptable, before it gets its name.

    Raises:
        NetworkError: if it does not arrive, or is not what the server announced.
        OutputError: if it cannot be written.
    """
    version = hashlib.sha256(f"{remote.url}\n{remote.version}\n{remote.size}".encode()).hexdigest()[:8]
    partial = target.with_name(f"{target.name}.{version}.incomplete")  # no two versions are ever mixed
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in set(target.parent.glob(f"{glob.escape(target.name)}.*.incomplete")) - {partial}:
            stale.unlink(missing_ok=True)
        _check_room(remote, partial)
        with_retries(
            lambda: _transfer(remote, partial, on_progress),
            remote.url,
            PASSING | PASSING_IN_TRANSFER,
            lambda text: on_progress(_size(partial), text),
            lambda: _size(partial),
        )
        digest = _check(remote, partial, accept)
        sync(partial)
        os.replace(partial, target)
    except OSError as error:
        if error.errno in FULL:
            partial.unlink(missing_ok=True)  # what fills a disk helps nobody
        raise failure("no room", target=target, reason=error.strerror or error) from error
    return digest


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(remote: Remote, partial: Path) -> None:
    """Raises the error of a full disk before it is full."""
    missing, free = (remote.size or 0) - _size(partial), shutil.disk_usage(partial.parent).free
    if missing > free:
        text = f"{missing / 1e6:,.0f} MB are to come, {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({text})")


def _transfer(remote: Remote, partial: Path, on_progress: OnProgress) -> None:
    """Appends what a partial file lacks; nothing is kept if it is more or less than was announced."""
    with open(partial, "ab") as file:
        done = file.tell()
        if not remote.version or (remote.size is not None and done > remote.size):
            done = file.truncate(0)  # nothing says that what is here belongs to what will come
        if done and done == remote.size:
            return
        headers = dict(remote.headers) | ({"Range": f"bytes={done}-"} if done else {})
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", remote.url, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            if response.status_code == 416 and done:  # there is nothing after what is here: once more from the start
                partial.unlink()
                return _transfer(remote, partial, on_progress)
            hf_raise_for_status(response)
            if response.status_code != 206:
                done = file.truncate(0)  # all of it comes, not the rest
            on_progress(done, "")
            limit = None if remote.size is None else remote.size - done
            for piece in _pieces(_watched(response.iter_bytes(), limit, timeout)):
                done += file.write(piece)
                on_progress(done, "")
    if remote.size not in (None, done):
        partial.unlink()
        raise failure("size", url=remote.url, size=remote.size)


def _watched(parts: Iterator[bytes], limit: int | None, timeout: float) -> Iterator[bytes]:
    """Hands on what arrives: not much more than `limit` bytes, and only as long as enough comes in a time."""
    total, since, recent = 0, time.monotonic(), 0
    for part in parts:
        yield part
        total, recent = total + len(part), recent + len(part)
        if limit is not None and total > limit:
            return
        seconds = time.monotonic() - since
        if seconds > WINDOW * timeout:
            if recent < SLOWEST * seconds:
                raise TooSlow
            since, recent = time.monotonic(), 0


def _pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Regroups bytes into pieces of one size, and a last piece with the rest."""
    # A file grows by whole pieces only: one that has grown earns new attempts, and a trickle of bytes must not.
    pending = bytearray()
    for part in parts:
        pending += part
        while len(pending) >= PIECE:
            yield bytes(pending[:PIECE])
            del pending[:PIECE]
    yield bytes(pending)


def _check(remote: Remote, partial: Path, accept: Callable[[Digest], None]) -> Digest:
    """The digest of what has arrived; what is not as announced, or not acceptable, is removed."""
    digest = digest_of(partial)
    try:
        if not matches(remote.digest, digest, partial):
            raise failure("digest", url=remote.url, digest=remote.digest)
        accept(digest)
    except NetworkError:
        partial.unlink()
        raise
    return digest


# What is tried again.


class TooSlow(Exception):
    """A server that sends almost no data."""


_EXPECTED = (
    *(errors.HfHubHTTPError, errors.FileMetadataError, errors.OfflineModeIsEnabled),
    *(httpx.HTTPError, httpx.InvalidURL, TooSlow),
)


def with_retries(
    action: Callable[[], T],
    url: str,
    passing: Mapping[str, str] = PASSING,
    say: Callable[[str], None] = lambda text: None,
    done: Callable[[], int] = lambda: 0,
) -> T:
    """Does something on the network, again where that may help.

    Args:
        action: what to do.
        url: for messages.
        passing: kinds of failure that are worth another attempt, and what to say of them.
        say: called before another attempt with why, and when.
        done: how far the action has come; where it has come further, the count of attempts starts afresh.

    Raises:
        NetworkError: for everything that huggingface_hub and httpx raise.
    """
    try:
        host = urlsplit(url).netloc
    except ValueError as error:
        raise failure("address", url=url) from error
    try:
        get_session()  # reads proxies and certificates from the environment, which can be wrong in many ways
    except (ImportError, ValueError, OSError) as error:
        raise failure("settings", reason=str(error).splitlines()[0]) from error
    attempt, before = 0, done()
    while True:
        try:
            with _quiet():
                return action()
        except _EXPECTED as error:
            now = done()
            attempt, before = (1, now) if now > before else (attempt + 1, before)
            kind, wait = _kind(error), _wait(error, attempt)
            facts = {"url": url, "host": host, "status": _status(error), "error": type(error).__name__}
            if kind not in passing or attempt >= ATTEMPTS or wait > LONGEST_WAIT:
                raise failure(kind, **facts) from error
        say(f"{passing[kind].format(**facts)}; trying again in {wait:g} s")
        time.sleep(wait)


def _kind(error: Exception) -> str:
    """The key in FAILURES of an error of huggingface_hub or httpx."""
    classes = (
        (errors.OfflineModeIsEnabled, "offline"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "revision"),
        (errors.EntryNotFoundError, "missing"),
        (errors.RepositoryNotFoundError, "hidden"),
        (errors.HfHubHTTPError, STATUSES.get(_status(error) or 0, "refused")),
        (errors.FileMetadataError, "no hub"),
        (TooSlow, "slow"),
        ((httpx.UnsupportedProtocol, httpx.InvalidURL), "address"),
        (httpx.ProxyError, "proxy"),
        (httpx.ConnectError, "certificate" if "CERTIFICATE" in str(error) else "unreachable"),
        (httpx.ConnectTimeout, "unreachable"),
        (httpx.TimeoutException, "silent"),
    )
    return next((kind for known, kind in classes if isinstance(error, known)), "lost")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _wait(error: Exception, attempt: int) -> float:
    """Seconds until another attempt makes sense."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 2.0 ** (attempt - 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps huggingface_hub's own warnings from the terminal: what matters is told by the error or the progress."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
