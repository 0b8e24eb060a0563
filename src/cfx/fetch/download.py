"""Bytes over HTTP: resumed, tried again, and checked before they get their final name.

Bytes gather in a partial file, which a later run goes on with. They stop when there are more than were announced, or
when next to nothing comes.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cfx.errors import NetworkError
from cfx.fetch.failures import PASSING, PASSING_IN_TRANSFER, TooSlow, failure, with_retries
from cfx.fetch.record import Digest, digest_of
from cfx.io.files import sync

PIECE = 10 * 2**20
"""Bytes that are written at once: what an interrupted download leaves is a multiple of it."""

SLOWEST = 1024
"""Bytes a second, on average over WINDOW read time-outs. What comes slower is as good as silent."""

WINDOW = 3
"""Read time-outs (HF_HUB_DOWNLOAD_TIMEOUT, 10 s by default) over which the speed is measured."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when there is no room."""

OnProgress = Callable[[int, str], None]
"""Called with the bytes so far and a short text, mostly empty."""

Accept = Callable[[Digest], None]
"""Raises if a content is not acceptable."""


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

    return with_retries(head, url)


def download(remote: Remote, target: Path, accept: Accept, on_progress: OnProgress) -> Digest:
    """Brings a file here, whole and checked, or not at all.

    An interrupted download is continued by the next one of the same file.

    Args:
        remote: what to fetch.
        target: where to; an older file is replaced.
        accept: called before the content gets its name.
        on_progress: called with the bytes so far.

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
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

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
    pending = bytearray()
    for part in parts:
        pending += part
        while len(pending) >= PIECE:
            yield bytes(pending[:PIECE])
            del pending[:PIECE]
    yield bytes(pending)


def _check(remote: Remote, partial: Path, accept: Accept) -> Digest:
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


def matches(announced: str | None, digest: Digest, path: Path) -> bool:
    """Whether a file is what was announced: by its SHA-256, or by its git SHA-1, or by nothing."""
    if announced is None or len(announced) == 64:
        return announced in (None, digest.sha256)
    with open(path, "rb") as file:
        sha1 = hashlib.sha1(f"blob {digest.size}\0".encode())
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha1.update(chunk)
    return announced == sha1.hexdigest()
