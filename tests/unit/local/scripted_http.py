"""A real HTTP server that answers a chat with a test's lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@contextmanager
def scripted(status: int, lines: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers every POST with the lines and closes; yields its URL and the bodies that it got."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status if self.path == "/v1/chat/completions" else 404)
            self.send_header("x-request-id", "req-1")
            self.end_headers()
            self.wfile.write("".join(line + "\n\n" for line in lines).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
    """A line of a stream."""
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})
