"""Parses files in a process of its own, with bounded memory and time.

A file can be crafted to make a parser loop or unpack without end, and a thread could not be stopped.
Run as a module it is that process: it reads the file on stdin and writes blocks to stdout as JSON.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_retriever.documents import Block, bounded
from genaifactory_retriever.parsing.limits import Limits

Kind = Literal["pdf", "docx", "xlsx", "pptx", "epub", "csv", "tsv", "eml", "rst", "html", "markdown"]
"""Each is parsed by the module of its name; text formats in UTF-8."""

_BROKEN = "The document cannot be read as {kind}; it is damaged or of another type. Check the file and its media_type."


def parse(data: bytes, kind: Kind, limits: Limits) -> tuple[str, list[Block]]:
    """Title and blocks of the file. Blocks for up to limits.seconds. Raises InvalidArgument and TooLarge."""
    arguments = {
        "kind": kind,
        "pages": limits.pages,
        "unpacked_bytes": limits.unpacked_bytes,
        "text_characters": limits.text_characters,
        "memory_bytes": limits.memory_bytes,
        "seconds": limits.seconds,
    }
    command = [sys.executable, "-I", "-m", "genaifactory_retriever.parsing.isolation", json.dumps(arguments)]
    try:
        done = subprocess.run(  # noqa: S603  # our own module; the document goes in on stdin
            command, input=data, capture_output=True, timeout=limits.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidArgument(
            f"The document took longer than {limits.seconds:.0f} s to read; simplify or split it.", field="data"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise InvalidArgument(_BROKEN.format(kind=kind.upper()), field="data") from None
    if message := answer.get("error"):
        raise (TooLarge if answer["too_large"] else InvalidArgument)(message, field="data")
    return answer["title"], [Block(text, level, verbatim) for text, level, verbatim in answer["blocks"]]


def _main() -> None:
    import resource
    import warnings

    warnings.simplefilter("ignore")
    arguments = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (arguments["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (max(1, round(arguments["seconds"])),) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    kind: Kind = arguments["kind"]
    data = sys.stdin.buffer.read()
    try:
        title, blocks = _parsed(data, kind, arguments)
    except InvalidArgument as error:
        answer = {"error": error.message, "too_large": isinstance(error, TooLarge)}
    except Exception:  # any error of a parser is reported as a damaged file
        answer = {"error": _BROKEN.format(kind=kind.upper()), "too_large": False}
    else:
        answer = {"title": title, "blocks": [(block.text, block.level, block.verbatim) for block in blocks]}
    # ASCII: JSON escapes lone surrogates, of a damaged font, which UTF-8 cannot encode.
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _parsed(data: bytes, kind: Kind, arguments: dict[str, Any]) -> tuple[str, list[Block]]:
    title, blocks = _parser(kind, arguments)(data)
    return title, bounded(blocks, arguments["text_characters"])


def _parser(kind: Kind, arguments: dict[str, Any]) -> Callable[[bytes], tuple[str, Iterable[Block]]]:
    """The parser of this kind with its bounds; imports only its module."""
    module = importlib.import_module(f"genaifactory_retriever.parsing.formats.{'csv' if kind == 'tsv' else kind}")
    if kind in ("html", "markdown", "rst"):
        return lambda data: module.parse(data.decode())
    bounds: dict[Kind, tuple[Any, ...]] = {
        "pdf": (arguments["pages"], arguments["text_characters"]),
        "csv": (None, arguments["text_characters"]),
        "tsv": ("\t", arguments["text_characters"]),
        "eml": (),
    }
    return lambda data: module.parse(data, *bounds.get(kind, (arguments["unpacked_bytes"],)))


if __name__ == "__main__":
    _main()
