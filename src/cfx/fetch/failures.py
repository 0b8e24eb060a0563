"""What can go wrong while fetching: one table of messages and hints, and what is worth another attempt."""

from collections.abc import Mapping
from typing import Any

from cfx.errors import CfxError, NetworkError, OutputError, UsageError


class Unreachable(NetworkError):
    """A server that does not answer, or does not go on answering."""


class Absent(NetworkError):
    """What is not where it is said to be published, or not shown to everybody."""


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
    "size": ("{url} sent a different number of bytes than it announced ({size})", "nothing was kept; try again later"),
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
    **dict.fromkeys(("hidden", "missing"), Absent),
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


def failure(kind: str, **facts: Any) -> CfxError:
    """The error for a kind of failure, a key of FAILURES; `facts` stand in the places of its message and hint."""
    message, hint = FAILURES[kind]
    return CLASSES.get(kind, NetworkError)(message.format(**facts), hint and hint.format(**facts))
