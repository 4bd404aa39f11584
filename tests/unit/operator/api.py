"""The part of the Kubernetes API that the issuer uses, on loopback: get and patch of Secrets that have versions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import yaml

_FOLDER = "/api/v1/namespaces/genai/secrets/"


class Api:
    """Secrets of the namespace genai."""

    def __init__(self, names: Iterable[str]) -> None:
        self.secrets: dict[str, dict[str, Any]] = {
            name: {"metadata": {"name": name, "resourceVersion": "1"}} for name in names
        }
        self.refused: dict[tuple[str, str], int] = {}
        """Status by method and name."""
        self.patched: list[str] = []
        self.overtaken: set[str] = set()
        """Names of Secrets that another client changes just before the next patch."""
        self._lock = Lock()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and object."""
        name = path.partition("?")[0].removeprefix(_FOLDER)
        with self._lock:
            if (method, name) in self.refused:
                return _failure(self.refused[method, name])
            if name not in self.secrets:
                return _failure(404)
            return (200, self.secrets[name]) if method == "GET" else self._patch(name, json.loads(body))

    def _patch(self, name: str, patch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        before = self.secrets[name]
        version = int(before["metadata"]["resourceVersion"])
        if name in self.overtaken:
            self.overtaken.discard(name)
            version += 1
            before["metadata"]["resourceVersion"] = str(version)
        if patch["metadata"]["resourceVersion"] != str(version):
            return _failure(409)
        data = {**before.get("data", {}), **patch["data"]}
        annotations = {**before["metadata"].get("annotations", {}), **patch["metadata"]["annotations"]}
        self.secrets[name] = {
            "metadata": {"name": name, "resourceVersion": str(version + 1), "annotations": annotations},
            "data": {key: value for key, value in data.items() if value is not None},
        }
        self.patched.append(name)
        return 200, self.secrets[name]


def _failure(code: int) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "code": code, "message": "as the test wants"}


@contextmanager
def serving(api: Api, folder: Path) -> Iterator[Path]:
    """Serves it; yields the KUBECONFIG."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one piece

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            code, value = api.answer(self.command, self.path, body)
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PATCH = _answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield kubeconfig(folder, server.server_port)
        finally:
            server.shutdown()
            thread.join()


def kubeconfig(folder: Path, port: int) -> Path:
    """A KUBECONFIG for an API on loopback."""
    file = folder / "kubeconfig"
    cluster = {"name": "test", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
    user = {"name": "test", "user": {"token": "token"}}
    document = {"current-context": "test", "clusters": [cluster], "contexts": [context], "users": [user]}
    file.write_text(yaml.safe_dump(document))
    return file
