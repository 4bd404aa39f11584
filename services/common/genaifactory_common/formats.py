"""The kinds of documents that the platform reads: media types, file name endings, and bounds.

The retriever parses them; the command line selects files by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
EPUB = "application/epub+zip"
CSV = "text/csv"
TSV = "text/tab-separated-values"
EML = "message/rfc822"
RST = "text/x-rst"

_SOURCE_ENDINGS = """
bash c cc cfg cpp cs cxx dart go graphql h hpp hs ini java js jsx kt lua mjs php pl proto ps1 py pyi r rb rs scala sh
swift tf ts tsx
"""
SOURCE = frozenset(("text/x-source", "application/json", "application/sql", "application/toml", "application/yaml"))
"""Source code and configuration, read without conversion."""

BY_ENDING: Mapping[str, str] = MappingProxyType(
    {
        ".md": "text/markdown",
        ".markdown": "text/markdown",
        ".txt": "text/plain",
        ".text": "text/plain",
        ".html": "text/html",
        ".htm": "text/html",
        ".xhtml": "text/html",
        ".pdf": PDF,
        ".docx": DOCX,
        ".xlsx": XLSX,
        ".xlsm": XLSX,
        ".pptx": PPTX,
        ".pptm": PPTX,
        ".epub": EPUB,
        ".csv": CSV,
        ".tsv": TSV,
        ".eml": EML,
        ".rst": RST,
        ".json": "application/json",
        ".sql": "application/sql",
        ".toml": "application/toml",
        ".yaml": "application/yaml",
        ".yml": "application/yaml",
        **{f".{ending}": "text/x-source" for ending in _SOURCE_ENDINGS.split()},
    }
)
"""Ending of a file's name, in lower case and with its dot -> media type."""

MEDIA_TYPES = tuple(sorted(set(BY_ENDING.values())))

MAX_DOCUMENT_BYTES = 32 << 20
"""Of one file, unless the retriever's settings set another bound."""
MAX_ID_CHARACTERS = 512
"""Of a document's id."""
MAX_SOURCE_CHARACTERS = 1024
"""Of a document's source."""


def uri(document_id: str) -> str:
    """A path as a relative URL; escapes only what would begin a query, fragment, escape, scheme or host."""
    path = document_id.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"./{path}" if ":" in path.partition("/")[0] or path.startswith("\\") else path
