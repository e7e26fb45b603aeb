"""A real HTTP server in a thread that misbehaves as told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves :attr:`files`; each request takes the next of :attr:`faults`.

    A fault is a status (404), ``"cut"`` (half of what is left, then the line goes dead), ``"stall"`` (half, then
    silence), ``"swap"`` (half; by the next request the file is another one), ``"shift"`` (another part than was asked
    for) or None (nothing wrong).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.faults: list[int | str | None] = []
        self.ranges = True
        self.if_range = True
        self.weak = False
        self.validator: str | None = "ETag"
        self.length = True
        self.retry_after: str | None = None
        #: Per request: path, Range header, bytes of body sent.
        self.seen: list[tuple[str, str | None, int]] = []
        self.go_on = threading.Event()
        self.address = ""

    def url(self, path: str, content: bytes) -> str:
        self.files[path] = content
        return self.address + path


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            fault = server.faults.pop(0) if server.faults else None
            asked = self.headers.get("Range")
            if self.path in server.redirects:
                server.seen.append((self.path, asked, 0))
                self.answer(302, {"Location": server.redirects[self.path], "Content-Length": "0"})
                return
            if isinstance(fault, int) or self.path not in server.files:
                status = fault if isinstance(fault, int) else 404
                server.seen.append((self.path, asked, 0))
                self.answer(status, {"Content-Length": "0", "Retry-After": server.retry_after})
                return
            body = server.files[self.path]
            version = f'{"W/" if server.weak else ""}"{hashlib.sha256(body).hexdigest()[:8]}"'
            if server.validator == "Last-Modified":
                version = f"Mon, 01 Jan 2024 00:00:{len(body) % 60:02d} GMT"
            headers: dict[str, str | None] = {server.validator: version} if server.validator else {}
            start = 0
            fits = not server.if_range or self.headers.get("If-Range") in (None, version)
            if asked and server.ranges and fits:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    server.seen.append((self.path, asked, 0))
                    self.answer(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                    return
                shown = start + 1 if fault == "shift" else start
                headers["Content-Range"] = f"bytes {shown}-{len(body) - 1}/{len(body)}"
            rest = body[start:]
            headers["Content-Length"] = str(len(rest)) if server.length else None
            sent = rest[: len(rest) // 2] if fault in ("cut", "stall", "swap") else rest
            server.seen.append((self.path, asked, len(sent)))
            self.answer(206 if start else 200, headers)
            self.wfile.write(sent)
            self.wfile.flush()
            if fault == "stall":
                server.go_on.wait(5)
            if fault == "swap":
                server.files[self.path] = bytes(reversed(body))
            self.close_connection = True

        def answer(self, status: int, headers: dict[str, str | None]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.address = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        server.go_on.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
