"""Routes paths to handlers, and suggests the right path for an unknown one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Mapping

from genaifactory_common.errors import NotFound
from genaifactory_gateway.http.exchange import Exchange

Handler = Callable[[Exchange], Awaitable[None]]
Handlers = Mapping[str, Mapping[str, Handler]]
"""By path and method. A path may have one name, like /v1/models/{model}, which may contain slashes."""

_CHAT = "/v1/chat/completions"
# Paths of OpenAI's API that are not served, by their end, and the alternative.
_INSTEAD = {
    "/responses": f"The Responses API is not served here; use chat completions, at POST {_CHAT}.",
    "/completions": f"Completions of a bare prompt are not served here; use chat completions, at POST {_CHAT}.",
    "/engines": "There are no engines here; GET /v1/models lists what can be named as 'model'.",
}


class Paths:
    """The paths of all resources."""

    def __init__(self, *resources: Handlers) -> None:
        self._handlers = {path: methods for resource in resources for path, methods in resource.items()}
        below = [(path.partition("{")[0], path.partition("}")[2], path) for path in self._handlers if "{" in path]
        # What a name is followed by decides first: /v1/files/{id}/content before /v1/files/{id}.
        self._below = sorted(below, key=lambda each: -len(each[1]))
        self._whole = sorted(path for path in self._handlers if "{" not in path)

    def find(self, path: str) -> tuple[str, Mapping[str, Handler] | None]:
        """The path's template and its handlers by method; "unmatched" and None for an unknown path."""
        for prefix, end, template in self._below:
            if path.startswith(prefix) and path.endswith(end) and len(path) > len(prefix) + len(end):
                return template, self._handlers[template]
        found = self._handlers.get(path)
        return (path, found) if found is not None else ("unmatched", None)

    def missing(self, path: str) -> NotFound:
        """The error for an unknown path. It suggests the right one, and never repeats the path that was sent."""
        asked = re.sub(r"/+", "/", path[:500].lower()).rstrip("/")
        if (meant := self._meant(asked)) is not None:
            hint = f"did you mean {meant}?"
            if "/v1/v1/" in asked:
                hint += " A client's base URL ends in /v1, once."
            elif not asked.startswith("/v1/") and meant.startswith("/v1/"):
                hint += " A client's base URL ends in /v1."
            return NotFound(f"There is no such path; {hint}")
        for end, instead in _INSTEAD.items():
            if asked.endswith(end) or f"{end}/" in asked:
                return NotFound(f"There is no such path. {instead}")
        return NotFound(f"There is no such path; there are {', '.join(self._whole)}.")

    def _meant(self, asked: str) -> str | None:
        for path in self._whole:
            if asked.endswith((path, path.removeprefix("/v1"))):
                return path
        for prefix, _, template in reversed(self._below):
            if prefix.removeprefix("/v1") in asked:
                return template
        near = difflib.get_close_matches(asked, self._whole, n=1, cutoff=0.85)
        return near[0] if near and not asked.endswith(tuple(_INSTEAD)) else None
