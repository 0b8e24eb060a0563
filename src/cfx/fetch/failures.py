"""What can go wrong while fetching: one table of messages and hints, and what is worth another attempt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cfx.errors import CfxError, NetworkError, OutputError, UsageError

T = TypeVar("T")


class Unreachable(NetworkError):
    """A server that does not answer, or does not go on answering."""


class TooSlow(Exception):
    """A server that sends almost no data."""


_CARRY = "where there is a network: cfx fetch NAME --export DIR; then here: cfx fetch --import DIR"
_CONTINUE = "run the same command again; it continues where it stopped"
_TOKEN = "name one with `token` or HF_TOKEN, or run: hf auth login"

FAILURES = {
    # Before a server is asked.
    "not cached": ("{address} is not cached, and HF_HUB_OFFLINE is set", _CARRY),
    "offline": ("{url} is not on this machine, and HF_HUB_OFFLINE forbids downloads", _CARRY),
    "settings": (
        "the proxy or certificate settings cannot be used: {reason}",
        "check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE",
    ),
    "hub settings": ("a setting of the hub cannot be used: {reason}", "check HF_ENDPOINT, HF_HUB_..."),
    "address": ("{url} is not an address", "HF_ENDPOINT is written like https://huggingface.co"),
    "token": ("cannot read the token of the hub: {reason}", "check HF_HOME"),
    "token letters": (
        "the token of the hub contains characters that are invalid in a token",
        "check `token` or HF_TOKEN",
    ),
    # On the way there.
    "proxy": ("the proxy refused the connection to {host}", "check HTTPS_PROXY and its credentials"),
    "certificate": (
        "{host} presents a certificate that this machine does not trust",
        "point SSL_CERT_FILE to the certificates of your network",
    ),
    "unreachable": ("cannot reach {host}", _CARRY),
    "silent": ("{host} does not respond, or stopped responding", _CONTINUE),
    "slow": ("{host} sends almost no data", _CONTINUE),
    "lost": ("the connection to {host} was lost ({error})", _CONTINUE),  # the error's text may hold a token
    # What a server answers.
    "no hub": ("{host} is not a Hugging Face hub, or a firewall responds in its place", "check HF_ENDPOINT"),
    "no digest": (
        "whatever responds for {url} is not a Hugging Face hub: it names no commit or no digest",
        "check HF_ENDPOINT, and whether a firewall or proxy interferes",
    ),
    "gated": ("{url} asks you to accept its terms", f"do so in a browser, then {_TOKEN}"),
    "hidden": ("{host} does not know {url}, or does not show it without a valid token", _TOKEN),
    "revision": ("{host} has no such revision: {url}", "name a branch, tag or commit with `revision`"),
    "missing": ("{host} has no such file: {url}", None),
    "crowded": ("{host} cannot serve {url} (too many requests)", "try again later"),
    "busy": ("{host} cannot serve {url} (the server reports an error ({status}))", "try again later"),
    "refused": ("{host} refused {url} (HTTP {status})", None),
    "drive": ("Google Drive did not deliver {folder}: {reason}", _CONTINUE),
    "drive settings": ("cannot ask Google Drive: {reason}", "check REQUESTS_CA_BUNDLE"),
    "drive empty": ("the folder {folder} on Google Drive is empty", None),
    # What arrives, and where it goes.
    "size": (
        "{url} sent a different number of bytes than it announced ({size})",
        "nothing was kept; try again later",
    ),
    "digest": (
        "{url} arrived corrupted: its digest is not the announced one, {digest:.12}...",
        "nothing was kept; try again",
    ),
    "changed": (
        "{what} differs from what was first fetched: the SHA-256 of {name} was {before}, and is {now} now",
        "if you trust the new file, accept it: cfx fetch NAME --accept",
    ),
    "no room": (
        "cannot write {target}: {reason}",
        "free space in {target.parent}, or set HF_HOME and CFX_CACHE to directories with more space",
    ),
    "no room for a folder": ("cannot write {target}: {reason}", "set CFX_CACHE to a directory with free space"),
    "no link": ("cannot write {target}: {reason}", "set HF_HOME to a directory that you can write to"),
}
"""Kind of failure -> message and hint, with places for the facts of the case."""

CLASSES: Mapping[str, type[CfxError]] = {
    **dict.fromkeys(("proxy", "certificate", "unreachable", "silent", "slow", "lost"), Unreachable),
    **dict.fromkeys(("token", "no room", "no room for a folder", "no link"), OutputError),
    "token letters": UsageError,
}
"""Kind of failure -> class of its error, if it is not a plain NetworkError."""

PASSING = {
    "crowded": "too many requests",
    "busy": "the server reports an error ({status})",
    "lost": "the connection was lost",
    "slow": "the server sends almost no data",
}
"""Failures that may be over at the next attempt, and what is said until then."""

PASSING_IN_TRANSFER = {"silent": "the server stopped responding", "unreachable": "cannot reach {host}"}
"""Failures that are worth another attempt only if the server has answered before."""

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


def failure(kind: str, **facts: Any) -> CfxError:
    """The error for a kind of failure.

    Args:
        kind: key of FAILURES.
        **facts: what the places in its message and hint stand for.
    """
    message, hint = FAILURES[kind]
    return CLASSES.get(kind, NetworkError)(message.format(**facts), hint and hint.format(**facts))


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
    import httpx
    from huggingface_hub import get_session
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    expected = (HfHubHTTPError, httpx.HTTPError, httpx.InvalidURL, FileMetadataError, OfflineModeIsEnabled, TooSlow)
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
        except expected as error:
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
    import httpx
    from huggingface_hub import errors

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
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
