"""reStructuredText to blocks, through HTML, without included files and raw output."""

from __future__ import annotations

import re
from typing import Any, ClassVar, cast

from docutils import core, nodes
from docutils.parsers.rst import Directive, directives, roles
from docutils.parsers.rst.languages import en

from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing.formats import html

_SETTINGS = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,  # no docutils.conf of the working directory
    "report_level": 5,
    "halt_level": 5,
    "embed_stylesheet": False,
    "stylesheet_path": None,
    "math_output": "LaTeX",
    "syntax_highlight": "none",
    "doctitle_xform": False,
    "initial_header_level": 1,
    "traceback": False,
}
_LISTINGS = ("code", "code-block", "sourcecode")
_DIRECTIVE = re.compile(r"^\s*\.\.\s+(?:\|[^|\n]+\|\s+)?([\w:+.-]+)::", re.MULTILINE)
_ROLE = re.compile(r":([A-Za-z][\w:+.-]*):`")
_MARKERS = re.compile(r"(?:(?:[-+*•‣⁃|]|\(?(?:#|\w{1,8})[.)])\s+)*")  # bullets of reStructuredText
_TITLED_TARGET = re.compile(r"\A(.+?)\s*<[^<>]*>\Z", re.DOTALL)


def parse(text: str) -> tuple[str, list[Block]]:
    """No title, and blocks. Raises TooLarge. For a process of its own: it registers the directives of the text."""
    _require_structure(text)
    for name in set(map(str.lower, _DIRECTIVE.findall(text))).difference(en.directives):
        directives.register_directive(name, _Unknown)
    for name in _LISTINGS:
        directives.register_directive(name, _Listing)
    for name in set(map(str.lower, _ROLE.findall(text))).difference(en.roles):
        roles.register_local_role(name, cast(Any, _reference_text))  # typeshed's type is too narrow
    parts = core.publish_parts(text, writer="html5", settings_overrides=_SETTINGS)
    return "", html.parse(f"<body>{parts['html_body']}</body>")[1]


def _require_structure(text: str) -> None:
    """Raises TooLarge beyond the bounds: docutils needs a tenth of a millisecond per element, more for nested ones."""
    elements = bounds.Count("RST", "paragraphs, list items and headings", bounds.RST_ELEMENTS)
    indents: list[int] = []
    begins = True
    for line in text.splitlines():
        words = line.expandtabs().lstrip()
        if not words:
            begins = True
            continue
        indent = len(line.expandtabs()) - len(words)
        while indents and indents[-1] >= indent:
            indents.pop()
        indents.append(indent)
        marked = _MARKERS.match(words)
        items = 0 if marked is None else len(marked[0].split())
        bounds.require(len(indents) + items, bounds.RST_NESTING, "RST", "paragraphs and list items within each other")
        elements.add(items or begins)
        begins = False


class _AnyOption(dict[str, Any]):
    """Accepts every option, unchanged."""

    def __missing__(self, key: str) -> Any:
        return directives.unchanged


class _Listing(Directive):
    """Code, with any option of Sphinx or docutils."""

    has_content = True
    optional_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = _AnyOption({"name": directives.unchanged})

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        return [nodes.literal_block(text, text)]


class _Unknown(Directive):
    """A directive of Sphinx or another extension: its text is kept, and nothing is executed."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = _AnyOption({"name": directives.unchanged})

    def run(self) -> list[nodes.Node]:
        container = nodes.container()
        if self.arguments:
            inline, messages = self.state.inline_text(self.arguments[0], self.lineno)
            container += nodes.paragraph("", "", *inline)
            container += messages
        self.state.nested_parse(self.content, self.content_offset, container)
        return [container]


def _reference_text(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = None
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """The text of a reference, without its target."""
    titled = _TITLED_TARGET.match(text)
    return [nodes.inline(rawtext, titled[1] if titled else text.lstrip("~!"))], []
