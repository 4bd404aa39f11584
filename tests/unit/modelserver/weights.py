"""A web server on loopback that fails when told to, and models and adapters small enough to write in a test."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from safetensors.numpy import save

Array = np.ndarray[Any, np.dtype[Any]]

BASE_SHAPES = {"q_proj": (16, 16), "v_proj": (8, 16)}


def sha256(data: bytes) -> str:
    """Hex."""
    return hashlib.sha256(data).hexdigest()


def sums(files: Mapping[str, bytes]) -> bytes:
    """A SHA256SUMS file, as sha256sum writes it."""
    return "".join(f"{sha256(data)}  {name}\n" for name, data in files.items()).encode()


def model() -> dict[str, bytes]:
    """A model of two layers."""
    values = {
        f"model.layers.{layer}.self_attn.{module}.weight": np.ones(shape, np.float32)
        for layer in range(2)
        for module, shape in BASE_SHAPES.items()
    }
    return {"config.json": b'{"model_type": "llama"}', "model.safetensors": save(values), "sub/extra.json": b"{}"}


def adapter(
    *,
    rank: int = 4,
    weights: Mapping[str, Array] | None = None,
    config: object = None,
    metadata: object = None,
) -> dict[str, bytes]:
    """A LoRA adapter for that model; `config` and `metadata` change fields of its files, None takes one out."""
    data = save(dict(weights if weights is not None else lora(rank)))
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    about = {"base_model": "tiny", "data_version": "7", "sha256": sha256(data)}
    return {
        "adapter_config.json": json.dumps(_changed(fields, config)).encode(),
        "adapter_model.safetensors": data,
        "metadata.json": json.dumps(_changed(about, metadata)).encode(),
    }


def lora(rank: int = 4, *, layers: int = 2) -> dict[str, Array]:
    """The weights of an adapter."""
    made = {}
    for layer in range(layers):
        for module, (out, inward) in BASE_SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            made[f"{prefix}.lora_A.weight"] = np.full((rank, inward), 0.5, np.float32)
            made[f"{prefix}.lora_B.weight"] = np.full((out, rank), 0.25, np.float32)
    return made


def _changed(fields: Mapping[str, object], changes: object) -> object:
    if changes is not None and not isinstance(changes, dict):
        return changes
    return {key: value for key, value in {**fields, **(changes or {})}.items() if value is not None}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files into a folder; blocks."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder; blocks."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one GET of a file."""

    status: int = 0
    """Answers with this instead."""
    cut_after: int | None = None
    """Closes the connection after so many bytes of the body."""
    hold: asyncio.Event | None = None
    """Waits for this after `cut_after` bytes, and then sends the rest."""


@dataclass
class Web:
    """What a server has and was asked for. Paths begin with a slash."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Further ones, by path."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Of a path that always answers with this one."""
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """The next ones, by path."""
    claimed_bytes: dict[str, int] = field(default_factory=dict)
    """What a HEAD of a path says instead of the file's size."""
    ranges: bool = True
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, and headers."""
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a held answer has sent its first part."""
    answering: set[asyncio.Task[object]] = field(default_factory=set)

    def gets(self, path: str) -> list[dict[str, str]]:
        """The headers of each GET of a path."""
        return [headers for method, asked, headers in self.asked if method == "GET" and asked == path]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        task = asyncio.current_task()
        assert task is not None
        self.answering.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in head[1:] if line)}
            self.asked.append((method, target, headers))
            await self._answer(writer, method, unquote(target.partition("?")[0]), headers)
        writer.close()
        self.answering.discard(task)

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str]) -> None:
        fault = self.faults[path].pop(0) if method == "GET" and self.faults[path] else Fault()
        status = fault.status or self.statuses.get(path) or (200 if path in self.files else 404)
        whole = self.files.get(path, b"") if status == 200 else b""
        body, more = whole, {"accept-ranges": "bytes", **self.headers[path]}
        start = headers.get("range", "").removeprefix("bytes=").partition("-")[0]
        if status == 200 and start and self.ranges:
            status, body = (206, whole[int(start) :]) if int(start) < len(whole) else (416, b"")
            more["content-range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        length = self.claimed_bytes.get(path, len(body)) if method == "HEAD" else len(body)
        lines = [f"HTTP/1.1 {status} X", f"content-length: {length}", "connection: close"]
        lines += [f"{key}: {value}" for key, value in more.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        if method == "HEAD":
            body = b""
        writer.write(body[: fault.cut_after])
        await writer.drain()
        if fault.hold is not None:
            self.sent.set()
            await fault.hold.wait()
            writer.write(body[fault.cut_after :])
        await writer.drain()


@asynccontextmanager
async def web(files: Mapping[str, bytes] | None = None, *, under: str = "/") -> AsyncIterator[Web]:
    """Runs a server on loopback that has these files below a path."""
    served = Web(files={f"{under}{name}": data for name, data in (files or {}).items()})
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0)
    served.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield served
        for task in served.answering:  # those that are still held
            task.cancel()
        await asyncio.gather(*served.answering)


def hub(served: Web, repo: str, files: Mapping[str, bytes], *, revision: str = "main", commit: str = "c" * 40) -> None:
    """Gives a server as much of the hub's API as a download of one model needs."""
    entries = [
        {"type": "file", "path": name, "size": len(data), "oid": sha256(data)[:40]} for name, data in files.items()
    ]
    siblings = [{"rfilename": name, "size": len(data), "blobId": sha256(data)[:40]} for name, data in files.items()]
    info = {"_id": "1", "id": repo, "sha": commit, "siblings": siblings}
    for name in (revision, commit):
        served.files[f"/api/models/{repo}/revision/{name}"] = json.dumps(info).encode()
        served.files[f"/api/models/{repo}/tree/{name}"] = json.dumps(entries).encode()
    served.files[f"/api/models/{repo}"] = json.dumps(info).encode()
    for name, data in files.items():
        path = f"/{repo}/resolve/{commit}/{name}"
        served.files[path] = data
        served.headers[path] = {"etag": f'"{sha256(data)[:40]}"', "x-repo-commit": commit}
