"""HTTP/1.1 as far as the client needs it: bodies, ranges, and connections that break on demand."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from hubserver.faults import Exchange, Fault

if TYPE_CHECKING:
    from hubserver.server import HubServer

_BLOCK = 1 << 20
_BODILESS = (204, 304)


class BrokenOffError(Exception):
    """The connection is closed here, without a word."""


@dataclass
class Reply:
    """Status, headers and a body: bytes, or a file that accepts ranges."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Length of the whole body in bytes."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)


def json_reply(document: Any, status: int = 200, **headers: str) -> Reply:
    """Answer with a document."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json", **named})


def refuse(status: int, message: str, code: str = "", **headers: str) -> Reply:
    """Say no in the Hub's way: a code and a sentence in headers, the sentence in the body too."""
    reply = json_reply({"error": message}, status, **headers)
    line = message.encode("latin-1", "replace").decode("latin-1").replace("\r", " ").replace("\n", " ")
    reply.headers["X-Error-Message"] = line
    if code:
        reply.headers["X-Error-Code"] = code
    return reply


@dataclass
class Request:
    """What was asked; the body is read when a route wants it."""

    method: str
    path: str  # raw, without the query
    query: list[tuple[str, str]]
    headers: dict[str, str]
    token: str | None
    exchange: Exchange
    fault: Fault
    _chunks: Iterator[bytes]

    def one(self, name: str, default: str = "") -> str:
        """Read one parameter of the query."""
        return next((value for key, value in self.query if key == name), default)

    def blocks(self) -> Iterator[bytes]:
        """Read the body piece by piece."""
        yield from self._chunks

    def body(self) -> bytes:
        """Read the body."""
        return b"".join(self.blocks())

    def json(self) -> dict[str, Any]:
        """Read the body as a document."""
        document: dict[str, Any] = json.loads(self.body() or b"{}")
        return document


class Origin(ThreadingHTTPServer):
    """One origin: a port of its own, the hub or its storage."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: HubServer, name: str) -> None:
        self.hub = hub
        self.name = name
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server; anything else fails the test that looks."""
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, BrokenOffError)):
            self.hub.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: Origin

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: the log is an object."""

    def do_GET(self) -> None:
        """Answer whatever the method is."""
        target = self.path
        if target.startswith("http://"):  # asked as a proxy
            parts = urlsplit(target)
            target = parts.path + (f"?{parts.query}" if parts.query else "")
        authorization = self.headers.get("Authorization")
        token = None if authorization is None else authorization.removeprefix("Bearer ")
        exchange = Exchange(
            self.server.name,
            self.command,
            target,
            self.headers.get("Host", ""),
            token,
            self.headers.get("Range"),
            self.headers.get("User-Agent", ""),
        )
        self.server.hub.requests.add(exchange)
        fault = self.server.hub.faults.take(exchange) or Fault("")
        path, _, query = target.partition("?")
        named = {name.lower(): value for name, value in self.headers.items()}
        pairs = parse_qsl(query, keep_blank_values=True)
        blocks = self._blocks(exchange, fault)
        request = Request(self.command, path, pairs, named, token, exchange, fault, blocks)
        try:
            self._answer(request)
        except BrokenOffError:
            self._hang_up()

    def do_CONNECT(self) -> None:
        """Become, over TLS, the host that was asked for."""
        context = self.server.hub.tls
        if context is None:
            self.send_error(405)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        self.wfile = self.connection.makefile("wb", self.wbufsize)
        self.close_connection = False

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self, request: Request) -> None:
        fault = request.fault
        if fault.delay_seconds:
            self.wfile.flush()
            self.server.hub.closing.wait(fault.delay_seconds)
        if fault.status:
            reply = refuse(fault.status, fault.body or f"Fault {fault.status}")
            reply.headers.update(fault.headers)
        else:
            reply = self.server.hub.route(self.server.name, request)
        for _ in request.blocks():  # what the route did not want; the next request follows it
            pass
        if fault.lose_reply:
            raise BrokenOffError
        self._send(request, reply)

    def _blocks(self, exchange: Exchange, fault: Fault) -> Iterator[bytes]:
        for block in self._raw_blocks():
            exchange.received += len(block)
            if fault.cut_upload_after is not None and exchange.received >= fault.cut_upload_after:
                raise BrokenOffError
            yield block

    def _raw_blocks(self) -> Iterator[bytes]:
        block = 1 << 16 if self.headers.get("Transfer-Encoding") else _BLOCK
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self._exactly(min(left, block))
            left -= len(piece)
            yield piece

    def _exactly(self, size: int) -> bytes:
        piece = self.rfile.read(size)
        if len(piece) != size:
            raise BrokenOffError
        return piece

    def _send(self, request: Request, reply: Reply) -> None:
        fault = request.fault
        if fault.replace is not None and reply.status == 200:
            reply = Reply(reply.status, fault.replace, reply.headers)
        start, stop, status = 0, reply.size, reply.status
        if reply.status == 200 and not fault.ignore_range and "range" in request.headers:
            start, stop, status = _ranged(request.headers["range"], reply.size)
            if status == 206:
                told = fault.content_range or f"bytes {start}-{stop - 1}/{reply.size}"
                reply.headers["Content-Range"] = told
            elif status == 416:
                reply.headers["Content-Range"] = f"bytes */{reply.size}"
        request.exchange.status = status
        self.send_response(status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if status not in _BODILESS:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if request.method != "HEAD" and stop > start:
            self._send_body(request, reply.body, start, stop)
        self.wfile.flush()

    def _send_body(self, request: Request, body: bytes | Path, start: int, stop: int) -> None:
        fault = request.fault
        self.wfile.flush()
        if isinstance(body, bytes):
            self._send_blocks(request, iter([body[start:stop]]), start)
            return
        with body.open("rb") as file:
            if fault.flip_at is None and fault.cut_after is None:
                request.exchange.sent += stop - start
                self.connection.sendfile(file, start, stop - start)
            else:
                self._send_blocks(request, _file_blocks(file, start, stop), start)

    def _send_blocks(self, request: Request, blocks: Iterator[bytes], position: int) -> None:
        fault, sent = request.fault, 0
        for block in blocks:
            if fault.flip_at is not None and position <= fault.flip_at < position + len(block):
                changed = bytearray(block)
                changed[fault.flip_at - position] ^= 1
                block = bytes(changed)
            position += len(block)
            if fault.cut_after is not None:
                block = block[: max(fault.cut_after - sent, 0)]
            sent += len(block)
            request.exchange.sent += len(block)
            self.wfile.write(block)
            if fault.cut_after is not None and sent >= fault.cut_after:
                self.wfile.flush()
                raise BrokenOffError

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _file_blocks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop and (block := file.read(min(1 << 16, stop - start))):
        start += len(block)
        yield block


def _ranged(header: str, size: int) -> tuple[int, int, int]:
    """Where a range starts and stops, and the status that goes with it."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if not found or found.group(0) == "bytes=-":
        return 0, size, 200
    first, last = found.groups()
    if not first:
        return max(size - int(last), 0), size, 206
    if int(first) >= size:
        return 0, 0, 416
    return int(first), min(int(last or size) + 1, size), 206


def wait_until(condition: Any, seconds: float = 5.0) -> bool:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return bool(condition())
