"""A small server that speaks as much of S3 as reading a bucket needs: pages of keys, and objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEY_ID = "AKIDEXAMPLE"
_PAGE = 2


@dataclass
class Bucket:
    """Its objects, and how it answers."""

    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    pages: int = 0
    """Pages of keys that were read."""
    refuses: bool = False
    """Every request is answered as if the credentials had no rights."""


@contextmanager
def serving(name: str) -> Iterator[Bucket]:
    """Serves one bucket on loopback."""
    bucket = Bucket()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            _, found, key = parts.path.split("/", 2) if parts.path.count("/") > 1 else (*parts.path.split("/"), "")
            if bucket.refuses or f"Credential={KEY_ID}/" not in self.headers.get("authorization", ""):
                self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            elif found != name:
                self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not key:
                query = parse_qs(parts.query)
                self._answer(200, self._page(query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]))
            elif unquote(key) in bucket.objects:
                self._answer(200, bucket.objects[unquote(key)])
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def _page(self, prefix: str, after: str) -> bytes:
            bucket.pages += 1
            keys = sorted(each for each in bucket.objects if each.startswith(prefix) and each > after)
            page, rest = keys[:_PAGE], keys[_PAGE:]
            contents = "".join(
                f"<Contents><Key>{escape(each)}</Key><LastModified>2026-11-25T12:00:00.000Z</LastModified>"
                f"<ETag>&quot;1&quot;</ETag><Size>{len(bucket.objects[each])}</Size></Contents>"
                for each in page
            )
            more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest else ""
            truncated = str(bool(rest)).lower()
            return (
                f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{contents}</ListBucketResult>".encode()
            )

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("etag", '"1"')
            self.send_header("last-modified", "Wed, 25 Nov 2026 12:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        bucket.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield bucket
        finally:
            server.shutdown()
            thread.join()
