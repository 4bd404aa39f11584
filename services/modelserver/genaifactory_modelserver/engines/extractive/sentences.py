"""Cuts a passage into what may be quoted: whole sentences, list items, lists with their lead-in, rows of tables.

A unit's text is a substring of the passage as it stands there, so that a quote can be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

# A hard-wrapped line is at least this long; a shorter one that ends without a full stop stands by itself.
_WRAPPED_CHARACTERS = 50
_MAX_LIST_WORDS = 120
_MAX_TITLE_WORDS = 8
_MAX_CHARACTERS = 1_500
_WINDOW_CHARACTERS = 4_096
_MIN_WORDS = 3

_BULLET = re.compile(r"\s*(?:[-*+•‣▪◦–—]|\(?\d{1,3}[.)]|\(?[a-zđ][.)])\s+")
_NUMBERED = re.compile(r"\s*\(?\d")
_NUMBER_WITHIN = re.compile(r"\S\s+\S*\d")
_EMPHASIS = frozenset("*_")
_MARKDOWN_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_TABLE_RULE = re.compile(r"[\s|:+=-]*")
_RULE_OR_FENCE = re.compile(r"\s*(?:[-=*_~]{3,}|`{3,}.*|~{3,}.*)\s*$")
# A mark that looks like one of our own: a quote that carried it would cite what it does not quote.
_CITATION = re.compile(r"\[\d+\]")
# Runs are taken whole and once (possessive, look-behind): no text makes these take longer than its length.
_SENTENCE_END = re.compile(r"(?<![.!?…])(?P<stop>[.!?…]++)[\"'”’»)\]*_]*+(?:\[\d++\])*+(?=\s)")
_LAST_WORD = re.compile(r"[\w.&]*$")
_LAST_WORD_CHARACTERS = 16
_ABBREVIATIONS = frozenset(  # without the last full stop
    """
    e.g i.e vs mr mrs ms dr prof st no nos fig figs sec ch vol pp p approx dept inc ltd co corp jr sr est al cf
    ths ts pgs gs bs ks cn tp q tx tt ubnd đ.c nxb stt vd tr ths.bs
    """.split()  # noqa: SIM905  # a list of words reads as a text
)
_LABELLED = frozenset(
    """
    annex appendix building category class gate grade group hall level option part phase plan platform section step type
    vitamin zone bảng điểm giai đoạn hạng khu loại lớp lục mục nhóm phần tầng toà tòa án
    """.split()  # noqa: SIM905
)
_ENDS_SENTENCE = re.compile(r"[.!?…;:。][\"'”’»)\]*_`]*$")


class Kind(Enum):
    """What a unit is."""

    SENTENCE = auto()
    ITEM = auto()
    """One item of a list, or one row of a table."""
    LIST = auto()
    """The items of a list together, with the sentence that leads in to them."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What may be quoted as a whole."""

    text: str
    """As it stands in the passage, with its line breaks; without the bullet of a single item."""
    kind: Kind
    start: int
    """First character in the passage."""
    end: int
    """One past the last character."""
    context: str = ""
    """What stands above it in the passage: heading, question, lead-in (a list's own too), first row of the table."""
    complete: bool = True
    """Whether it ends as a sentence does."""
    led_in: bool = False
    """Whether it is a list that begins with a sentence that leads in to it."""


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str


def units(text: str, *, starts_inside: bool = False) -> Iterator[Unit]:
    """The units of a passage in order; a list comes after its items.

    starts_inside: the passage was cut out of a longer text; a beginning in the middle of a sentence is left out.
    """
    cutter = _Cutter(text, starts_inside=starts_inside)
    blocks = list(_blocks(text))
    for place, (kind, lines) in enumerate(blocks, start=1):
        if kind == "item":
            yield from cutter.item(lines)
            continue
        yield from cutter.end_of_list()
        if kind == "heading":
            cutter.heading = _heading_text(lines[0].text)
        elif kind == "title":
            stands_alone = place < len(blocks) and blocks[place][0] in ("heading", "title")
            yield from cutter.title(lines[0], quoted=stands_alone or _NUMBER_WITHIN.search(lines[0].text) is not None)
        else:
            yield from cutter.paragraph(lines[0].start, lines[-1].end)
    yield from cutter.end_of_list()


def windows(text: str) -> Iterator[str]:
    """The text in parts short enough to be read at a stretch, cut between paragraphs where it can be.

    A retrieved passage is one part; headings of a longer document do not reach into its next part.
    """
    start = 0
    while len(text) - start > _WINDOW_CHARACTERS:
        limit = start + _WINDOW_CHARACTERS
        cuts = (text.rfind(mark, start + _WINDOW_CHARACTERS // 2, limit) for mark in ("\n\n", "\n", ". ", " "))
        end = next((cut + 1 for cut in cuts if cut >= 0), limit)
        yield text[start:end]
        start = end
    yield text[start:]


class _Cutter:
    """What stands above the place in the passage that is being read."""

    def __init__(self, text: str, *, starts_inside: bool) -> None:
        self._text = text
        self._inside_until = len(text) - len(text.lstrip()) if starts_inside else -1
        self.heading = ""
        self._lead_in: Unit | None = None
        self._items: list[Unit] = []
        self._numbered = False

    def item(self, lines: list[_Line]) -> Iterator[Unit]:
        numbered = _NUMBERED.match(lines[0].text) is not None
        if self._items and numbered != self._numbered and not lines[0].text[:1].isspace():
            yield from self.end_of_list()  # another kind of mark: another list, or a numbered heading
        self._numbered = numbered
        above = self._lead_in.text if self._lead_in is not None else self.heading
        if self._items and "|" in self._items[0].text:
            above = f"{above} {self._items[0].text}".strip()  # the first row of a table says what the columns are
        unit = _item(self._text, lines, above)
        if unit is None:
            return
        self._items.append(unit)
        # A lone item may be a numbered heading: the first waits for the second, or for the end of the list.
        # The first row of a table names its columns.
        is_table = "|" in self._items[0].text
        if len(self._items) == 2 and self._lead_in is None and not is_table and _quotable(self._items[0]):
            yield self._items[0]
        if (len(self._items) > 1 or self._lead_in is not None) and _quotable(unit):
            yield unit

    def end_of_list(self) -> Iterator[Unit]:
        lead_in, items = self._lead_in, self._items
        self._lead_in, self._items = None, []
        unit: Unit | None = None
        if lead_in is not None and items:
            end = _list_end(items, _MAX_LIST_WORDS - len(lead_in.text.split()))
            context = f"{lead_in.context} {lead_in.text}".strip()
            unit = _trimmed(self._text, lead_in.start, end, Kind.LIST, context, led_in=True)
        elif lead_in is not None:
            unit = replace(lead_in, complete=False)
        elif len(items) > 1:
            line_start = self._text.rfind("\n", 0, items[0].start) + 1
            columns = items[0].text if "|" in items[0].text else ""
            end = _list_end(items, _MAX_LIST_WORDS)
            unit = _trimmed(self._text, line_start, end, Kind.LIST, f"{self.heading} {columns}".strip())
        elif items and _is_title(items[0].text):
            self.heading = items[0].text
        elif items:
            unit = items[0]
        if unit is not None and _quotable(unit):
            yield unit

    def title(self, line: _Line, *, quoted: bool) -> Iterator[Unit]:
        """quoted: it may be a statement: nothing stands under it, or it gives a number."""
        unit = _trimmed(self._text, line.start, line.end, Kind.SENTENCE, self.heading, complete=False)
        self.heading = _heading_text(line.text)
        if quoted and unit is not None and _quotable(unit):
            yield unit

    def paragraph(self, start: int, end: int) -> Iterator[Unit]:
        context = self.heading
        question = ""
        for begin, stop, complete in _sentences(self._text, start, end):
            unit = _trimmed(self._text, begin, stop, Kind.SENTENCE, context, complete=complete)
            if unit is None or (unit.start == self._inside_until and unit.text[:1].islower()):
                continue
            question = ""
            if unit.text.endswith("?"):
                question = unit.text  # what follows answers it; by itself it answers nothing
                context = f"{self.heading} {question}".strip()
            elif unit.text.endswith(":"):
                self._lead_in = unit
            elif _quotable(unit):
                self._lead_in = None
                yield unit
        if question:
            self.heading = question


def _blocks(text: str) -> Iterator[tuple[str, list[_Line]]]:
    """Headings, titles, list items and paragraphs, each with its lines."""
    block: list[_Line] = []
    kind = "paragraph"
    for line in _lines(text):
        starts = _starts(line, block, kind)
        if starts is None:
            block.append(line)
            continue
        if block:
            yield _shown_as_title(block, kind), block
        block, kind = ([], "paragraph") if starts in ("blank", "rule") else ([line], starts)
    if block:
        # Nothing stands under the last line, so it is no title.
        yield kind, block


def _starts(line: _Line, block: list[_Line], kind: str) -> str | None:
    """What the line begins; None when it goes on with the block."""
    if not line.text.strip():
        return "blank"
    if _RULE_OR_FENCE.match(line.text) or (line.text.count("|") > 1 and _TABLE_RULE.fullmatch(line.text)):
        return "rule"
    if _MARKDOWN_HEADING.match(line.text):
        return "heading"
    if _BULLET.match(line.text) or line.text.count("|") > 1:
        return "item"
    if not block or kind == "heading":
        return "paragraph"
    last = block[-1].text.rstrip()
    if kind == "item":
        # An item goes on in indented lines, and in lines that go on with its sentence.
        wrapped = len(last) >= _WRAPPED_CHARACTERS and not _ENDS_SENTENCE.search(last)
        return None if line.text[:1].isspace() or line.text[:1].islower() or wrapped else "paragraph"
    goes_on = _ENDS_SENTENCE.search(last) or len(last) >= _WRAPPED_CHARACTERS or line.text.lstrip()[:1].islower()
    return None if goes_on else "paragraph"


def _shown_as_title(block: list[_Line], kind: str) -> str:
    """A short line without a full stop that stands alone is a title, however it was marked."""
    return "title" if kind == "paragraph" and len(block) == 1 and _is_title(block[0].text.strip()) else kind


def _is_title(line: str) -> bool:
    if len(line) >= _WRAPPED_CHARACTERS or len(line.split()) > _MAX_TITLE_WORDS or line[:1].islower():
        return False
    return ": " not in line and not _ENDS_SENTENCE.search(line)


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield _Line(start, end, text[start:end])
        start = end + 1


def _heading_text(line: str) -> str:
    return line.strip().strip("#*_ \t")


def _item(text: str, lines: list[_Line], context: str) -> Unit | None:
    bullet = _BULLET.match(lines[0].text)
    start, end = lines[0].start + (bullet.end() if bullet else 0), lines[-1].end
    unit = _trimmed(text, start, end, Kind.ITEM, context)
    if unit is None or not unit.text.startswith("|"):
        return unit
    return _trimmed(text, unit.start + 1, unit.end - unit.text.endswith("|"), Kind.ITEM, context)


def _list_end(items: list[Unit], most_words: int) -> int:
    """Where the last item ends that is within so many words; at least the first is."""
    end = items[0].end
    for item in items:
        most_words -= len(item.text.split())
        if most_words < 0:
            break
        end = item.end
    return end


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Start and end of each sentence, and whether it ends as one does."""
    begin = start
    for found in _SENTENCE_END.finditer(text, start, end):
        if _is_boundary(text, begin, found, end):
            yield begin, found.end(), True
            begin = found.end()
    if begin < end:
        yield begin, end, _ENDS_SENTENCE.search(text, max(begin, end - _LAST_WORD_CHARACTERS), end) is not None


def _is_boundary(text: str, begin: int, found: re.Match[str], end: int) -> bool:
    after = text[found.end() : min(found.end() + 16, end)].lstrip()
    following = after.lstrip("\"'“‘«([*_`")[:1]
    if not following:
        return True
    if following.islower():
        return False
    if found["stop"] != ".":
        return True
    last = _LAST_WORD.search(text, max(begin, found.start() - _LAST_WORD_CHARACTERS), found.start())
    word = last.group().lower().rstrip(".") if last is not None else ""
    if word in _ABBREVIATIONS or (word.isdigit() and len(word) <= 3 and text[begin : found.start()].strip() == word):
        return False
    return not (len(word) == 1 and word.isalpha()) or _is_label(text[begin : found.start()])


def _is_label(before: str) -> bool:
    """Whether the letter that the text ends with is a label ("class A.") rather than an initial ("by J. Smith")."""
    words = before[-_LAST_WORD_CHARACTERS * 2 :].split()
    return len(words) > 1 and words[-2].lower() in _LABELLED


def _trimmed(
    text: str, start: int, end: int, kind: Kind, context: str = "", *, complete: bool = True, led_in: bool = False
) -> Unit | None:
    """The unit without white space and citation marks around it; None when nothing is left."""
    stripped = text[start:end].strip()
    if kind is not Kind.LIST and (stripped[:1] in _EMPHASIS or stripped[-1:] in _EMPHASIS):
        stripped = _without_half_emphasis(stripped)
    while stripped.endswith("]") and _CITATION.fullmatch(stripped, stripped.rfind("[")):
        stripped = stripped[: stripped.rfind("[")].rstrip()
    if not stripped:
        return None
    start = text.index(stripped, start)
    return Unit(stripped, kind, start, start + len(stripped), context, complete, led_in)


def _without_half_emphasis(text: str) -> str:
    """Without a mark of Markdown that was opened or closed in another sentence."""
    for mark in ("**", "__", "*", "_"):
        if text.count(mark) == 1:
            text = text.removeprefix(mark).removesuffix(mark).strip()
    return text


def _quotable(unit: Unit) -> bool:
    if len(unit.text) > _MAX_CHARACTERS or _CITATION.search(unit.text):
        return False
    least = 2 if unit.kind is Kind.ITEM else _MIN_WORDS
    return len(unit.text.split(None, least)) >= least
