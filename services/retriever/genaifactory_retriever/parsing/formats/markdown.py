"""Markdown to blocks, through HTML, so that markup, tables and embedded HTML need no second set of rules."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing.formats import html

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n")
_FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)


def parse(text: str) -> tuple[str, list[Block]]:
    """Title, from the front matter, and blocks. Raises TooLarge."""
    title = ""
    text = text.replace("\r\n", "\n")
    for paragraph in _BLANK_LINES.split(text):
        bounds.require(paragraph.count("["), bounds.BRACKETS, "Markdown", "brackets in one paragraph")
    if front := _FRONT_MATTER.match(text):
        if named := _FRONT_TITLE.search(front.group(1)):
            title = named.group(1)
        text = text[front.end() :]
    found, blocks = html.parse(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    return title or found, blocks
