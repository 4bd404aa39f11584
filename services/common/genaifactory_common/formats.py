"""The kinds of document that the platform reads: their media types, the endings of their files, and their largest size.

The retriever parses them and the command line chooses files by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

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
    }
)
"""Ending of a file's name, in lower case and with its dot -> media type."""

MEDIA_TYPES = tuple(sorted(set(BY_ENDING.values())))

MAX_DOCUMENT_BYTES = 32 << 20
"""Of one file, unless the retriever's settings say otherwise."""
