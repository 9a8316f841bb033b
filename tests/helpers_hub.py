"""A server on the loopback interface that answers as the Hugging Face hub does, and fails where a test wants it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SIGNATURE = "0123456789abcdef"


def commit(number: int) -> str:
    """The name of a commit."""
    return hashlib.sha1(str(number).encode()).hexdigest()


@dataclass
class Request:
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Fault:
    """What goes wrong, how often, with the requests whose method and path fit.

    `cut` ends the connection after so many bytes of the body, `reset` tears it; `stall` holds it there until
    `go_on` is set; `body` and `length` stand in for the content and its stated length (-1: none is stated), `headers`
    for those that would be sent; `whole` answers a request for a part with everything.
    """

    method: str = ""
    part: str = ""
    times: int = 10**6
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False
    stall: bool = False
    body: bytes | None = None
    length: int | None = None
    whole: bool = False


class Hub:
    """Repositories, the faults planted in front of them, and everything that was asked.

    Large files are answered by a second server, at a signed address, as those in LFS are. With `xet` the first one
    offers them by Xet too, as the hub does; with `own_names` their ETag is not the SHA-256, as on some mirrors.
    """

    xet = own_names = False

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.revisions: dict[str, dict[str, str]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self._servers = [Server(self), Server(self)]

    @property
    def endpoint(self) -> str:
        return self._servers[0].address + self.prefix

    @property
    def store(self) -> str:
        return self._servers[1].address

    def publish(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Add a commit that a branch or tag points to; returns its name."""
        commits = self.commits.setdefault(repository, {})
        sha = commit(len(commits))
        commits[sha] = files
        self.revisions.setdefault(repository, {})[revision] = sha
        return sha

    def plant(self, method: str = "", part: str = "", **fault: Any) -> None:
        self.faults.append(Fault(method, part, **fault))

    def asked(self, method: str, part: str = "") -> list[Request]:
        return [request for request in self.requests if request.method == method and part in request.path]

    def next_fault(self, method: str, path: str) -> Fault:
        """The fault that meets a request, used up by it."""
        for fault in self.faults:
            if fault.times and fault.method in ("", method) and fault.part in path:
                fault.times -= 1
                return dataclasses.replace(fault)
        return Fault()

    def close(self) -> None:
        """Stop listening; connections that were waiting end."""
        self.go_on.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def server_close(self) -> None:
        """End the connections too, which a client keeps for its next request."""
        super().server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, asked = self.server.hub, self.headers.get
        hub.requests.append(Request(self.command, self.path, asked("Range"), asked("Authorization")))
        self.fault = hub.next_fault(self.command, self.path)
        path = urlsplit(self.path).path.removeprefix(hub.prefix)
        if self.fault.status:
            self.send(self.fault.status, b"", self.fault.headers)
        elif path.startswith("/stored/"):
            self.send_stored(path.rpartition("/")[2])
        elif path.startswith("/api/models/"):
            self.send_list(path.removeprefix("/api/models/"))
        else:
            self.send_file(*path.strip("/").split("/", 4))

    def find(self, repository: str, revision: str) -> str | None:
        """The commit of a revision, if it is there; else say what is not."""
        hub = self.server.hub
        revisions = hub.revisions.get(repository)
        revision = unquote(revision)
        if revisions is None:
            self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif revision in hub.commits[repository]:
            return revision
        elif revision in revisions:
            return revisions[revision]
        else:
            self.send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        return None

    def send_list(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        if sha := self.find(repository, revision or "main"):
            files = self.server.hub.commits[repository][sha].items()
            siblings = [{"rfilename": name, **facts(name, content)} for name, content in files]
            self.send(200, json.dumps({"id": repository, "sha": sha, "siblings": siblings}).encode())

    def send_file(self, owner: str, name: str, _: str, revision: str, file: str) -> None:
        repository = f"{owner}/{name}"
        sha = self.find(repository, revision)
        if sha is None:
            return
        content = self.server.hub.commits[repository][sha].get(file)
        if content is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        known = facts(file, content)
        if "lfs" not in known:
            self.send(200, content, {"X-Repo-Commit": sha, "ETag": f'"{known["blobId"]}"'})
            return
        digest = known["lfs"]["sha256"]
        hub, etag = self.server.hub, f'"{known["blobId"] if self.server.hub.own_names else digest}"'
        headers = {"X-Repo-Commit": sha, "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        if hub.xet:
            headers |= {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": f"{hub.endpoint}/xet-read-token/{sha}"}
        place = f"{hub.store}/stored/{digest}?X-Amz-Signature={SIGNATURE}&x-id=GetObject"
        self.send(302, b"Found", {**headers, "Location": place})

    def send_stored(self, digest: str) -> None:
        files = [
            f for commits in self.server.hub.commits.values() for known in commits.values() for f in known.values()
        ]
        signed = parse_qs(urlsplit(self.path).query).get("X-Amz-Signature") == [SIGNATURE]
        content = next((file for file in files if hashlib.sha256(file).hexdigest() == digest), None)
        if not signed or content is None:
            self.send(403, b"AccessDenied")
        else:
            self.send(200, content, {"ETag": f'"{digest}"'})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        body = body if fault.body is None else fault.body
        headers = dict(headers or {})
        if status == 200:
            headers["Accept-Ranges"] = "bytes"
        if status == 200 and (wanted := self.headers.get("Range")) and not fault.whole:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            status = 206 if first < len(body) else 416
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}" if status == 206 else "bytes */0"
            body = body[first:]
        self.send_response(status)
        for name, value in {**headers, **fault.headers}.items():
            self.send_header(name, value)
        if fault.length != -1:
            self.send_header("Content-Length", str(len(body) if fault.length is None else fault.length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut])
        if fault.stall:
            self.wfile.flush()
            self.server.hub.stalled.set()
            self.server.hub.go_on.wait(30)
        if fault.cut is not None or fault.length is not None:
            self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def facts(name: str, content: bytes) -> dict[str, Any]:
    """What the hub's list says of a file; weights are kept in LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    known: dict[str, Any] = {"size": len(content), "blobId": blob}
    if name.endswith((".safetensors", ".bin")):
        digest = hashlib.sha256(content).hexdigest()
        known["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return known
