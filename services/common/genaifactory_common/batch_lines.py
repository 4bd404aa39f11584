"""The results of a batch's lines: the form of a line of its output files, and the ids of what was asked for a line."""

from __future__ import annotations

import hashlib
import json

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
ENDPOINTS = (CHAT, EMBEDDINGS)
"""The paths whose requests a batch may hold."""
PURPOSE, OUTPUT_PURPOSE = "batch", "batch_output"
"""Of a file of requests, and of one of results."""
MAX_CUSTOM_ID_CHARACTERS = 512
MAX_RESULT_BYTES = 12 << 20
"""Of one line's result; leaves room below channels.MAX_MESSAGE_BYTES."""
MAX_BODY_BYTES = 4 << 20
"""Of one line of the file of requests."""
MAX_LINES = 50_000
"""Of a file of requests, blank ones included."""
MAX_ERRORS = 100
"""Wrong lines that a batch names."""
PIECE_BYTES = 1 << 20
"""Most bytes of a file in one message."""


def request_id(batch_id: str, number: int, attempts: int) -> str:
    """The id of the request for a line, the same whenever this attempt is made: the record keeps one of each.

    attempts: those that failed before, each of which has a record of its own.
    """
    return "req-" + _digest(batch_id, number, attempts)


def result(batch_id: str, number: int, custom_id: str, *, response: bytes = b"null", error: bytes = b"null") -> bytes:
    """A line of an output file, without a line feed. response, error: JSON in one line; one of them is null."""
    head = json.dumps({"id": f"batch_req_{_digest(batch_id, number)}", "custom_id": custom_id}, ensure_ascii=False)
    return head.encode()[:-1] + b', "response": ' + response + b', "error": ' + error + b"}"


def error(code: str, message: str) -> bytes:
    """The error of a line that was not answered, JSON."""
    return json.dumps({"code": code, "message": message}, ensure_ascii=False).encode()


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]
