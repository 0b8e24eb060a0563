"""Bytes over the network: resumed, tried again, and checked before they get their final name.

The transfer itself is huggingface_hub's, for files of the hub and of the web alike. Here is what stands around it: a
partial file that a later run goes on with, patience, and one line for everything that can go wrong.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cfx.errors import NetworkError, OutputError
from cfx.fetch.record import Digest, digest_of
from cfx.io.files import sync

ATTEMPTS = 4
"""At a request that the server could not serve just now; between them 1, 2 and 4 seconds, or as long as it asks for."""


LONGEST_WAIT = 60.0
"""Seconds. A server that asks for more is not asked again."""

BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses of a server that may serve the same request later."""

RANGE_NOT_SATISFIABLE = 416
"""HTTP status of a server that has nothing after the bytes that are here."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when there is no room."""

OFFLINE_HINT = "where there is a network: cfx fetch NAME --export DIR; then here: cfx fetch --import DIR"
CONTINUE_HINT = "run the same command again; it goes on where it was"

T = TypeVar("T")

OnProgress = Callable[[int, str], None]
"""Called with the bytes so far and a short text, mostly empty."""


class Unreachable(NetworkError):
    """Nobody answers, or nobody goes on answering."""


class StaleRange(Exception):
    """A server has nothing to add to a partial file; it was emptied."""


@dataclass(frozen=True)
class Remote:
    """A file that a server offers.

    Attributes:
        url: where.
        size: bytes, or None if the server does not say.
        version: changes when the content does, as an ETag.
        digest: SHA-256 of the content, or git's SHA-1, hexadecimal; None if the server does not say.
        headers: to be sent along.
    """

    url: str
    size: int | None
    version: str
    digest: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a token


def ask_web(url: str) -> Remote:
    """What a web server says of a file.

    Raises:
        NetworkError: if it cannot be asked, or has none.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

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

    return patiently(head, url)


def download(remote: Remote, target: Path, accept: Callable[[Digest], None], on_progress: OnProgress) -> Digest:
    """Brings a file here, whole and checked, or not at all.

    An interrupted download is continued by the next one of the same file.

    Args:
        remote: what to fetch.
        target: where to; an older file is replaced.
        accept: raises if the content is not acceptable, before it gets its name.
        on_progress: called with the bytes so far.

    Raises:
        NetworkError: if it does not arrive, or is not what the server announced.
        OutputError: if it cannot be written.
    """
    partial = _partial(remote, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in set(target.parent.glob(f"{glob.escape(target.name)}.*.incomplete")) - {partial}:
            stale.unlink(missing_ok=True)
        _check_room(remote, partial)
        _gather(remote, partial, on_progress)
        digest = _check(remote, partial, accept)
        sync(partial)
        os.replace(partial, target)
    except OSError as error:
        if error.errno in FULL:
            partial.unlink(missing_ok=True)  # what fills a disk helps nobody
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}",
            f"make room in {target.parent}, or set HF_HOME and CFX_CACHE to directories with more",
        ) from error
    return digest


def _partial(remote: Remote, target: Path) -> Path:
    """Where the bytes gather: another file for every version, so that no two are ever mixed."""
    version = hashlib.sha256(f"{remote.url}\n{remote.version}\n{remote.size}".encode()).hexdigest()[:8]
    return target.with_name(f"{target.name}.{version}.incomplete")


def _check_room(remote: Remote, partial: Path) -> None:
    if remote.size is None:
        return
    missing = remote.size - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(partial.parent).free
    if missing > free:
        text = f"{missing / 1e6:,.0f} MB are to come, {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({text})")


def _gather(remote: Remote, partial: Path, on_progress: OnProgress) -> None:
    """Fills the partial file."""

    def transfer() -> None:
        try:
            _transfer(remote, partial, on_progress)
        except StaleRange:
            _transfer(remote, partial, on_progress)

    patiently(transfer, remote.url, lambda text: on_progress(partial.stat().st_size, text))


def _transfer(remote: Remote, partial: Path, on_progress: OnProgress) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    with open(partial, "ab") as file, _quiet():
        size = file.tell()
        if not remote.version or (remote.size is not None and size > remote.size):
            size = file.truncate(0)  # nothing says that what is here belongs to what will come
        try:
            http_get(
                remote.url,
                file,
                resume_size=size,
                headers=dict(remote.headers),
                expected_size=remote.size,
                tqdm_class=_bar(on_progress),
            )
        except HfHubHTTPError as error:
            if _status(error) != RANGE_NOT_SATISFIABLE or not size:
                raise
            file.truncate(0)  # there is nothing after what is here: once more from the start
            raise StaleRange from error
        except OSError as error:
            if error.errno is not None:
                raise
            # http_get says so of a file of another size than announced.
            partial.unlink()
            raise NetworkError(
                f"{remote.url} sent another number of bytes than it announced ({remote.size})",
                "nothing of it was kept; try again later",
            ) from error


def _bar(on_progress: OnProgress) -> type:
    """What http_get takes for a tqdm class."""

    class Bar:
        def __init__(self, *, initial: int = 0, **_settings: Any):
            self.done = initial
            on_progress(self.done, "")

        def update(self, more: int) -> None:
            self.done += more
            on_progress(self.done, "")

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

    return Bar


def _check(remote: Remote, partial: Path, accept: Callable[[Digest], None]) -> Digest:
    """The digest of what has arrived.

    Raises:
        NetworkError: if it is not what was announced, or not acceptable; it is removed then.
    """
    digest = digest_of(partial)
    try:
        if not matches(remote.digest, digest, partial):
            raise NetworkError(
                f"{remote.url} arrived damaged: its digest is not the one announced, {str(remote.digest)[:12]}...",
                "nothing of it was kept; try again",
            )
        accept(digest)
    except NetworkError:
        partial.unlink()
        raise
    return digest


def matches(announced: str | None, digest: Digest, path: Path) -> bool:
    """Whether a file is what was announced: by its SHA-256, or by its git SHA-1, or by nothing."""
    if announced is None:
        return True
    if len(announced) == 64:
        return announced == digest.sha256
    with open(path, "rb") as file:
        sha1 = hashlib.sha1(f"blob {digest.size}\0".encode())
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha1.update(chunk)
    return announced == sha1.hexdigest()


def patiently(action: Callable[[], T], url: str, say: Callable[[str], None] = lambda text: None) -> T:
    """Does something on the network, again if need be.

    Args:
        action: what to do.
        url: for messages.
        say: called before another attempt with why, and when.

    Raises:
        NetworkError: for everything that huggingface_hub and httpx raise.
    """
    import httpx
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    expected = (HfHubHTTPError, httpx.HTTPError, httpx.InvalidURL, FileMetadataError, OfflineModeIsEnabled)
    _open_session()
    for attempt in itertools.count(1):
        try:
            with _quiet():
                return action()
        except expected as error:
            wait = _wait(error, attempt)
            if wait is None:
                raise explain(error, url) from error
            say(f"{_trouble(error)}; trying again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _open_session() -> None:
    """Lets the client read proxies and certificates from the environment, which can be wrong in many ways."""
    from huggingface_hub import get_session

    try:
        get_session()
    except (ImportError, ValueError, OSError) as error:
        raise NetworkError(
            f"the settings of proxies or certificates cannot be used: {str(error).splitlines()[0]}",
            "look at HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE",
        ) from error


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds until another attempt makes sense, or None."""
    import httpx

    status = _status(error)
    if attempt >= ATTEMPTS or not (status in BUSY or isinstance(error, httpx.ReadError | httpx.RemoteProtocolError)):
        return None
    asked = error.response.headers.get("Retry-After", "") if status else ""
    wait = float(asked) if asked.isdigit() else 2.0 ** (attempt - 1)
    return wait if wait <= LONGEST_WAIT else None


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _trouble(error: Exception) -> str:
    status = _status(error)
    if status == 429:
        return "too many requests"
    return f"the server is in trouble ({status})" if status else "the connection was lost"


def explain(error: Exception, url: str) -> NetworkError:
    """One line for what went wrong on the network, and the way out."""
    import httpx
    from huggingface_hub import errors

    host = urlsplit(url).netloc
    status = _status(error)
    token = "name one with `token` or HF_TOKEN, or run: hf auth login"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError(f"{url} is not here, and HF_HUB_OFFLINE forbids to fetch it", OFFLINE_HINT)
    if isinstance(error, errors.GatedRepoError):
        return NetworkError(f"{url} asks you to accept its terms", f"do so in a browser, then {token}")
    if isinstance(error, errors.RevisionNotFoundError):
        return NetworkError(f"{host} has no such revision: {url}", "name a branch, tag or commit with `revision`")
    if isinstance(error, errors.EntryNotFoundError):
        return NetworkError(f"{host} has no such file: {url}")
    if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
        return NetworkError(f"{host} does not know {url}, or does not show it without a valid token", token)
    if status == 404:
        return NetworkError(f"{host} has no such file: {url}")
    if status in BUSY:
        return NetworkError(f"{host} cannot serve {url} ({_trouble(error)})", "try again later")
    if status:
        return NetworkError(f"{host} refused {url} (HTTP {status})")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return NetworkError(f"{url} is no address", "HF_ENDPOINT is written like https://huggingface.co")
    if isinstance(error, httpx.ProxyError):
        return Unreachable(f"the proxy does not let us through to {host}", "look at HTTPS_PROXY and its credentials")
    if "CERTIFICATE" in str(error):
        return Unreachable(
            f"{host} shows a certificate that nobody here trusts", "name those of your network in SSL_CERT_FILE"
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable(f"cannot reach {host}", OFFLINE_HINT)
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{host} does not answer, or has stopped in the middle", CONTINUE_HINT)
    if isinstance(error, errors.FileMetadataError):
        return NetworkError(f"{host} is no Hugging Face hub, or a firewall answers for it", "look at HF_ENDPOINT")
    # Without the text of the error, in which there may be a token.
    return Unreachable(f"the connection to {host} was lost ({type(error).__name__})", CONTINUE_HINT)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps huggingface_hub's own warnings from the terminal: what matters is told by the error or the progress."""
    handlers = logging.getLogger("huggingface_hub").handlers

    def drop(record: logging.LogRecord) -> bool:
        return False

    for handler in handlers:
        handler.addFilter(drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(drop)
