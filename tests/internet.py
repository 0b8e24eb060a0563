"""A stand-in for the internet: what the Hugging Face hub, a web server and Google Drive answer, on this machine.

Real clients talk to it, unpatched. It speaks plain HTTP (for HF_ENDPOINT), and as a proxy TLS for any host, with
certificates of its own authority (for HTTPS_PROXY, SSL_CERT_FILE and REQUESTS_CA_BUNDLE). Faults can be ordered.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMITS = ("1" * 40, "2" * 40, "3" * 40)
TOKEN = "hf_of_a_friend"


@dataclass
class Repo:
    """A repository of the hub.

    Attributes:
        commits: commit -> path -> content; the last is main.
        lfs: whether contents are served by the CDN, under their SHA-256, or small ones by the hub itself.
        access: open, private or gated.
    """

    commits: dict[str, dict[str, bytes]]
    lfs: bool = True
    access: str = "open"


@dataclass
class Fault:
    """What goes wrong.

    Attributes:
        kind: status, cut (after `amount` bytes), corrupt, short (fewer bytes than announced by HEAD), long (zeros after
            the content, 400 MB of them unless the client hangs up), stall, slow (`amount` seconds for each of ten
            parts), drip (`amount` seconds for each byte), or headers (others than usual).
        pattern: of the requests it befalls, "METHOD PATH".
        times: how many of them.
        amount: a status, bytes or seconds.
        headers: to be sent with a status, or instead of the usual ones.
    """

    kind: str
    pattern: str
    times: int = 1
    amount: float = 0
    headers: dict[str, str] = field(default_factory=dict)
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set when the client has gone away in the middle of what it was sent."""


@dataclass
class Internet:
    """What there is, what goes wrong, and what was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    ca_file: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def asked(self, pattern: str) -> list[tuple[str, str, dict[str, str]]]:
        """Requests ("METHOD HOST/PATH", and headers by lower-case name) that match."""
        return [entry for entry in self.log if re.search(pattern, f"{entry[0]} {entry[1]}")]

    def fault(self, request: str) -> Fault | None:
        """The fault that befalls a request, if one does."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None

    def environment(self) -> dict[str, str]:
        """Lets all clients of a process come here."""
        return {
            "HTTPS_PROXY": self.url,
            "https_proxy": self.url,
            "NO_PROXY": "",
            "no_proxy": "",
            "SSL_CERT_FILE": self.ca_file,
            "REQUESTS_CA_BUNDLE": self.ca_file,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextlib.contextmanager
def internet(directory: Path) -> Iterator[Internet]:
    """Runs one; its authority's certificate is written into a directory."""
    import trustme

    net, authority = Internet(), trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    net.ca_file = str(directory / "authority.pem")

    class Handler(_Handler):
        internet = net
        certificates = authority

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    net.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield net
    finally:
        net.released.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    internet: Internet
    certificates: object
    host = ""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        """Becomes the host that the client wants to talk to."""
        import ssl

        self.send_response(200, "Connection established")
        self.end_headers()
        self.host = self.path.split(":")[0]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificates.issue_cert(self.host).configure_cert(context)
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = socketserver._SocketWriter(self.connection)
        self.close_connection = False

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.internet.log.append(
            (self.command, self.host + path, {name.lower(): value for name, value in self.headers.items()})
        )
        fault = self.internet.fault(f"{self.command} {self.host}{path}")
        if fault is not None and fault.kind == "status":
            return self._send(int(fault.amount), b"", fault.headers)
        if fault is not None and fault.kind == "stall" and self.command == "HEAD":
            self.internet.released.wait(600)
        if self.host == "drive.google.com":
            return self._drive(path, fault)
        if self.host not in ("", "huggingface.co", "cdn-lfs.hf.co"):
            content = self.internet.pages.get(f"https://{self.host}{path}")
            if content is None:
                return self._send(404, b"nothing here")
            return self._send_file(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}, fault)
        if content := self._content(path):
            return self._send_file(content, {}, fault)
        return self._resolve(path, fault)

    def _content(self, path: str) -> bytes | None:
        """What the CDN holds under a SHA-256."""
        if not path.startswith("/cdn/"):
            return None
        contents = (file for repo in self.internet.repos.values() for files in repo.commits.values()
                    for file in files.values())  # fmt: skip
        return next((file for file in contents if hashlib.sha256(file).hexdigest() == path[5:]), None)

    def _resolve(self, path: str, fault: Fault | None) -> None:
        match = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.internet.repos.get(match[1]) if match else None
        authorization = self.headers.get("Authorization", "")
        if repo is None or (repo.access == "private" and not authorization):
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if authorization not in ("", f"Bearer {TOKEN}"):
            message = "Invalid credentials in Authorization header"
            return self._send(401, b"", {"X-Error-Message": message})
        if repo.access == "gated" and not authorization:
            return self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        commit = {"main": list(repo.commits)[-1]}.get(match[2], match[2])
        if commit not in repo.commits:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        content = repo.commits[commit].get(match[3])
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if not repo.lfs:
            sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._send_file(content, headers | {"ETag": f'"{sha1}"'}, fault)
        digest = hashlib.sha256(content).hexdigest()
        size = len(content) + (1000 if fault is not None and fault.kind == "short" else 0)
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size), "ETag": '"of the redirect"'}
        headers |= fault.headers if fault is not None else {}
        return self._send(302, b"", headers | {"Location": f"{self._base()}/cdn/{digest}"})

    def _base(self) -> str:
        """Of the CDN, which is another host than the hub."""
        return "https://cdn-lfs.hf.co" if self.host else self.internet.url.replace("127.0.0.1", "localhost")

    def _drive(self, path: str, fault: Fault | None) -> None:
        query = parse_qs(urlsplit(self.path).query)
        identifier = query.get("id", [""])[0]
        if path == "/embeddedfolderview":
            files = self.internet.folders.get(identifier)
            if files is None:
                return self._send(404, b"not found")
            links = "".join(
                f'<a href="https://drive.google.com/file/d/{_drive_id(name)}/view?usp=drive_web">{name}</a>'
                for name in files
            )
            return self._send(
                200, f"<html><title>a folder</title>{links}</html>".encode(), {"Content-Type": "text/html"}
            )
        for files in self.internet.folders.values():
            for name, content in files.items():
                if identifier == _drive_id(name):
                    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Type": "x"}
                    return self._send_file(content, headers, fault)
        return self._send(404, b"not found")

    def _send_file(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if fault is not None and fault.kind == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        return self._send(206 if start else 200, content[start:], headers | {"Accept-Ranges": "bytes"}, fault)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        kind = fault.kind if fault is not None else ""
        length = {} if kind == "long" else {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**length, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.close_connection |= kind in ("cut", "stall", "long")
        try:
            self._send_body(body, kind, fault.amount if fault is not None else 0)
        except OSError:  # of sockets and of TLS
            self.close_connection = True
            if fault is not None:
                fault.hung_up.set()

    def _send_body(self, body: bytes, kind: str, amount: float) -> None:
        if kind in ("cut", "stall"):
            self.wfile.write(body[: int(amount)])
            self.wfile.flush()
            if kind == "stall":
                self.internet.released.wait(600)
            return
        parts = {"slow": 10, "drip": len(body)}.get(kind, 1)
        step = -(-len(body) // parts) or 1
        for first in range(0, len(body), step):
            self.wfile.write(body[first : first + step])
            if parts > 1 and self.internet.released.wait(amount):
                return
        for _ in range(400 if kind == "long" else 0):
            self.wfile.write(bytes(1_000_000))


def _drive_id(name: str) -> str:
    return f"drive-file-{hashlib.md5(name.encode()).hexdigest()}"
