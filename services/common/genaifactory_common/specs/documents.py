"""Reads and parses a document; each problem is named by the path of its field."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genaifactory_common import engine_specs, strict_yaml
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs import embedders, sources
from genaifactory_common.specs.factory import Factory, InconsistentError


class InvalidConfiguration(InvalidArgument):
    """An invalid document; each problem is 'path: what is wrong'."""

    def __init__(self, problems: list[str], source: str) -> None:
        self.problems = problems
        self.lines = [f"{source}: {problem}" for problem in problems]
        super().__init__(f"{source}: " + "; ".join(problems), field=problems[0].partition(":")[0])


def parse(text: str, *, source: str = "factory.yaml") -> Factory:
    """The document in `text`. Raises InvalidConfiguration with the path of every bad field."""
    try:
        document = strict_yaml.load(text)
    except ValueError as error:
        raise InvalidConfiguration([str(error)], source) from None
    if not isinstance(document, dict):
        raise InvalidConfiguration(
            ["document: must be a mapping with tenants, roles, models, routes and policies"], source
        )
    try:
        return Factory.model_validate(document)
    except ValidationError as error:
        raise InvalidConfiguration(_problems(error), source) from None


def _problems(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_input=False)
    # A list whose items are all invalid is also reported as too short, which is no problem of its own.
    inside = {e["loc"][:n] for e in found for n in range(1, len(e["loc"]))}
    problems: list[str] = []
    for each in found:
        reason = each.get("ctx", {}).get("error")
        if isinstance(reason, InconsistentError):
            problems += reason.problems
        elif each["type"] != "too_short" or each["loc"] not in inside:
            problems.append(_problem(each))
    return problems


# pydantic's paths name a union's branch and mark a mapping's key; neither is a field of the document.
_NO_FIELDS = ("modelserver", "openai", *engine_specs.TYPES, *sources.TYPES, *embedders.TYPES, "[key]")


def _problem(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _NO_FIELDS:
            path += f".{part}" if path else str(part)
    if error["type"] == "extra_forbidden":
        message = "unknown field"
    elif error["type"] == "missing":
        message = "is missing"
    elif error["type"] == "too_short":
        message = f"must have at least {error['ctx']['min_length']}"
    elif error["type"] == "too_long":
        message = f"must have at most {error['ctx']['max_length']}"
    elif error["type"] == "tuple_type":
        message = "must be a list"
    elif error["type"] in ("model_type", "dict_type"):
        message = "must be a mapping"
    return f"{path}: {message}" if path else message


def read(path: Path) -> str:
    """The text of a file, with its line ends unchanged. Raises InvalidConfiguration."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise InvalidConfiguration([f"document: cannot be read: {error.strerror}"], str(path)) from None
    except UnicodeDecodeError:
        raise InvalidConfiguration(["document: must be UTF-8 text"], str(path)) from None


def load(path: Path) -> Factory:
    """The document in a file. Raises InvalidConfiguration."""
    return parse(read(path), source=str(path))


def digest(text: str) -> str:
    """SHA-256 of a document's text, hex: what `sha256sum factory.yaml` prints."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_key(key: str) -> str:
    """The `sha256` of an API key for factory.yaml. Keys are random and long, so a fast hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()
