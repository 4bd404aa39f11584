"""HTML to blocks: the visible text in reading order, without navigation, scripts and hidden parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block

_SKIPPED_TAGS = """
script style noscript template head nav form button select option textarea input svg math iframe object embed canvas
audio video map dialog img
"""
_SKIPPED = frozenset(_SKIPPED_TAGS.split())
# Classes of navigation in the output of DocBook, Sphinx, MkDocs and Doxygen.
_NAVIGATION = re.compile(
    r"(^|[\s_-])(nav(bar|header|footer|igation)?|toc|table-of-contents|breadcrumbs?|sidebar|headerlink|skip-link|cookie)"
    r"($|[\s_-])",
    re.IGNORECASE,
)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])", re.IGNORECASE)
_BLOCK_TAGS = """
address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer header hr
html legend li main ol p pre section summary table tbody td tfoot th thead tr ul
"""
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_TAG = re.compile(r"<(/?)([a-zA-Z]+)")
# Elements without an end tag, or whose end tag is optional: they do not nest.
_SELF_CLOSED = frozenset("area base br col dd dt embed hr img input li link meta p source td th tr wbr".split())  # noqa: SIM905


def nesting(markup: str) -> int:
    """Upper estimate of the depth of elements."""
    depth = deepest = 0
    for closing, tag in _TAG.findall(markup):
        if tag.lower() not in _SELF_CLOSED:
            depth = max(0, depth - 1) if closing else depth + 1
            deepest = max(deepest, depth)
    return deepest


def parse(html: str) -> tuple[str, list[Block]]:
    """Title and blocks of a page. Raises TooLarge; any text is valid HTML."""
    bounds.require(html.count("<"), bounds.TAGS, "HTML", "tags")
    bounds.require(nesting(html), bounds.NESTING, "HTML", "elements within each other")
    tree = LexborHTMLParser(html)
    title_node = tree.css_first("head > title")
    title = title_node.text(deep=True) if title_node is not None else ""
    root = tree.body or tree.root
    if root is None:
        return title, []
    walk = _Walk()
    walk.run(root)
    if all(block.level for block in walk.blocks):
        # A page of headings and links alone is a table of contents: its links are its text.
        walk = _Walk(navigation=True)
        walk.run(root)
    return title, walk.blocks


@dataclass
class _Walk:
    """One pass over the tree, without recursion: pages may nest deeper than Python's stack."""

    navigation: bool = False
    """Whether navigation is read, too."""
    blocks: list[Block] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _level: int = 0
    _listings: int = 0
    _rows: int = 0
    """Depth in table rows: a row is one block, whatever its cells contain."""
    _prefix: str = ""

    def run(self, root: LexborNode) -> None:
        # A stack of (node, leaving): children are pushed in reverse, so that they are popped in reading order.
        stack: list[tuple[LexborNode, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            tag = node.tag or ""
            if tag == "-text":
                self._text.append(node.text_content or "")
                continue
            if leaving:
                self._leave(tag)
                continue
            if not _is_read(node, tag, self.navigation):
                continue
            self._enter(tag)
            stack.append((node, True))
            children = []
            child = node.child
            while child is not None:
                children.append(child)
                child = child.next
            stack.extend((child, False) for child in reversed(children))
        self._flush()

    def _enter(self, tag: str) -> None:
        if tag == "br":
            self._text.append("\n" if self._listings else " ")
        elif tag in _HEADINGS:
            self._flush()
            self._level = _HEADINGS[tag]
        elif tag in ("td", "th"):
            if any(piece.strip() for piece in self._text):
                self._text.append(" | ")
        elif self._ends_block(tag):
            if tag == "pre":
                self._listings += 1
            elif tag == "li":
                self._prefix = "- "
            elif tag == "tr":
                self._rows += 1

    def _leave(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._flush()
            self._level = 0
        elif tag not in ("td", "th") and self._ends_block(tag):
            if tag == "pre":
                self._listings = max(0, self._listings - 1)
            elif tag == "tr":
                self._rows = max(0, self._rows - 1)

    def _ends_block(self, tag: str) -> bool:
        """Ends the current block where `tag` begins or ends one; returns whether it did."""
        if tag not in _BLOCKS or self._level:
            return False
        if tag in ("p", "div") and self._rows:
            self._text.append(" ")
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        if text.strip():
            self.blocks.append(Block(self._prefix + text, self._level, self._listings > 0))
            self._prefix = ""


def _is_read(node: LexborNode, tag: str, navigation: bool) -> bool:
    if (tag in _SKIPPED and not (navigation and tag == "nav")) or tag.startswith(("-", "!")):
        return False
    attributes = node.attributes
    if not attributes:
        return True
    if "hidden" in attributes or (attributes.get("aria-hidden") or "").lower() == "true":
        return False
    if _HIDDEN_STYLE.search(attributes.get("style") or ""):
        return False
    if navigation:
        return True
    if (attributes.get("role") or "").lower() in ("navigation", "search", "banner"):
        return False
    return tag == "body" or not _NAVIGATION.search(attributes.get("class") or "")
