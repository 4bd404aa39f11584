"""Overviews of documents and of their contents, by headings and first sentences."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from genaifactory.types.v1 import types_pb2
from genaifactory_orchestrator.answers import small_talk
from genaifactory_orchestrator.answers.retrieval import RetrievedPassages

MAX_DOCUMENTS = 8
_MAX_SECTIONS = 12
_MAX_SENTENCE_CHARACTERS = 240
_OPENING_CHARACTERS = 200
_MAX_OPENING_CHARACTERS = 120
# A longer message asks for more than an overview, and would be slow to match.
_MAX_CHARACTERS = 300

_THINGS = r"(?:topics|documents|contents|titles|headings|chapters|sections|subjects|files)"
_VI_THINGS = r"(?:chu de|tai lieu|muc|noi dung|tieu de|van ban)"
# Patterns on text that is folded by small_talk.
_WANTED = tuple(
    re.compile(pattern)
    for pattern in (
        (
            r"(?:please )?(?:(?:can|could|would) you )?(?:please )?(?:summari[sz]e|sum up|outline"
            r"|(?:give me |i want |show me )?(?:an? |the )?(?:short |brief |quick )?(?:summary|overview|outline) of)"
            r" (?P<subject>.+?)(?: please| for me| briefly)*"
        ),
        r"what ?i?s (?:in|inside|covered (?:in|by)) (?P<subject>.+)",
        r"what (?:is|are) (?P<subject>.+?) about",
        r"what do(?:es)? (?P<subject>.+?) (?:cover|contain|talk about)",
        rf"(?:list|show|name|give)(?: me)?(?: all)?(?: of)?(?: the)? {_THINGS}(?: (?:of|in) (?P<subject>.+))?",
        (
            rf"(?:what|which) {_THINGS} (?:are there|do you (?:have|know|cover)|can i ask about|exist"
            r"|are (?:available|covered|stored))(?: in (?P<subject>.+))?"
        ),
        r"(?:give me )?(?:an? |the )?(?:overview|summary|outline|table of contents|contents|topics)",
        (
            r"(?:hay |vui long |xin )?(?:tom tat|tom luoc|tong quan)(?: cho toi)?(?: ve)?(?: noi dung)?(?: cua)?"
            r" (?P<subject>.+?)(?: cho toi| giup toi| di| nhe)*"
        ),
        rf"(?:hay )?(?:liet ke|ke)(?: ra)?(?: tat ca)?(?: cac| nhung)? {_VI_THINGS}(?: (?:trong|cua) (?P<subject>.+))?",
        rf"(?:o day |trong day )?co (?:nhung |cac )?{_VI_THINGS} (?:nao|gi)(?: trong (?P<subject>.+))?",
        r"(?:trong )?(?P<subject>.+?) (?:co|noi ve|gom|bao gom) (?:nhung )?gi",
        r"muc luc|tong quan|tom tat",
    )
)
# Words of a subject that name no document, and those that name a kind: these are ignored if no document has them.
_ANY = frozenset(
    """
    a all an and available base content contents document documents entire every everything file files here in it
    knowledge my of our page pages stored text texts that the them these this those whole you your about
    ban cac co cua day do moi nay nhung noi dung tai lieu tat ca trong van ve o toi
    """.split()  # noqa: SIM905  # a list of words reads as a text
)
_KINDS = frozenset("book guide handbook manual policies policy rules so tay huong dan quy dinh chinh sach".split())  # noqa: SIM905
_SENTENCE = re.compile(r"(?<=[.!?…])\s+")
_CITATION = re.compile(r"\[[\d,; ]*\]")

_INTRODUCTION = {"en": "What the documents hold:", "vi": "Nội dung của các tài liệu:"}
_MORE = {"en": "There are more documents; name one to read about it.", "vi": "Còn có các tài liệu khác; hãy nêu tên."}


def subject(message: str) -> str | None:
    """The folded subject of the overview that is asked for, empty for everything; None for another message."""
    if len(message) > _MAX_CHARACTERS:
        return None
    asked = small_talk.without_greeting(small_talk.folded(message))
    for pattern in _WANTED:
        if found := pattern.fullmatch(asked):
            return found.groupdict().get("subject") or ""
    return None


def compose(
    subject: str, spoken: str, sample: RetrievedPassages, *, complete: bool
) -> tuple[str, RetrievedPassages] | None:
    """The overview and the passages that it cites, from a sample of passages; None if its subject is no document.

    subject: as returned by `subject`; spoken: "vi" or "en"; complete: whether the sample holds all passages.
    """
    documents = _named(subject, _by_document(sample.passages))
    if not documents:
        return None
    shown = documents[:MAX_DOCUMENTS]
    entries = _sections(shown[0]) if len(shown) == 1 else [_summary(document) for document in shown]
    lines = [f"- {_clean(text)} [{number}]" for number, (text, _) in enumerate(entries, start=1)]
    head = _clean(shown[0][0].title) if len(shown) == 1 else _INTRODUCTION[spoken]
    tail = [] if complete and len(documents) == len(shown) else [_MORE[spoken]]
    text = "\n".join([head, *lines, *(tail if len(shown) > 1 else [])])
    return text, replace(sample, passages=tuple(passage for _, passage in entries))


def named(subject: str, passages: Sequence[types_pb2.Passage]) -> list[str]:
    """Titles of the documents that the subject names, the best first; none when it names no document."""
    if not _naming(subject):
        return []
    return titles([document[0] for document in _named(subject, _by_document(passages))])


def titles(passages: Sequence[types_pb2.Passage]) -> list[str]:
    """Titles of the passages' documents, each once, the best first."""
    return list(dict.fromkeys(_clean(passage.title) for passage in passages))


def _by_document(passages: Sequence[types_pb2.Passage]) -> list[list[types_pb2.Passage]]:
    """The passages of each document in their order, the best document first."""
    documents: dict[str, list[types_pb2.Passage]] = {}
    for passage in passages:
        documents.setdefault(passage.document_id, []).append(passage)
    return [sorted(document, key=lambda passage: passage.start_offset) for document in documents.values()]


def _named(subject: str, documents: list[list[types_pb2.Passage]]) -> list[list[types_pb2.Passage]]:
    words = _naming(subject)
    if not words:
        return documents
    named = [document for document in documents if _holds(document[0], words)]
    rest = [word for word in words if word not in _KINDS]
    if not named and len(rest) < len(words):
        named = [document for document in documents if _holds(document[0], rest)]
    return named


def _naming(subject: str) -> list[str]:
    """The subject's words that a document must have."""
    return [word for word in subject.split() if word not in _ANY]


def _holds(opening: types_pb2.Passage, words: list[str]) -> bool:
    """Whether the document's name, title or opening has all the words."""
    text = f"{opening.title} {opening.document_id} {opening.text[:_OPENING_CHARACTERS]}"
    held = set(small_talk.folded(text).replace("_", " ").split())
    return all(word in held or word.removesuffix("s") in held for word in words)


def _sections(document: list[types_pb2.Passage]) -> list[tuple[str, types_pb2.Passage]]:
    """An entry for each section, and one for the text under the document's own title."""
    first = {_heading(passage): passage for passage in reversed(document)}
    in_order = sorted(first.items(), key=lambda section: section[1].start_offset)[:_MAX_SECTIONS]
    return [(_entry(heading, passage), passage) for heading, passage in in_order]


def _summary(document: list[types_pb2.Passage]) -> tuple[str, types_pb2.Passage]:
    """One entry for the whole document: its title, its sections' headings, and the first sentence of the first one."""
    title = document[0].title
    headings = list(filter(None, dict.fromkeys(map(_heading, document))))
    passage = next(filter(_heading, document), document[0])
    listed = f" ({', '.join(headings[:_MAX_SECTIONS])})" if headings else ""
    said = _first_sentence(passage.text) if headings else _entry("", passage)
    return f"{title}{listed}" + (f": {said}" if said else ""), passage


def _entry(heading: str, passage: types_pb2.Passage) -> str:
    """The heading and the first sentence; of text with neither, its first words."""
    said = ": ".join(filter(None, (heading, _first_sentence(passage.text))))
    return said or textwrap.shorten(passage.text.lstrip("-*•| "), _MAX_OPENING_CHARACTERS, placeholder=" …")


def _heading(passage: types_pb2.Passage) -> str:
    """The nearest heading above it; empty for text under the title."""
    heading = passage.headings[-1] if passage.headings else ""
    return "" if heading == passage.title else heading


def _first_sentence(text: str) -> str:
    """The first sentence; empty for a table, a list or code."""
    paragraph = text.strip().partition("\n\n")[0]
    sentence = " ".join(_SENTENCE.split(paragraph, maxsplit=1)[0].split())
    whole = sentence[-1:] in (".", "!", "?", "…") and len(sentence) <= _MAX_SENTENCE_CHARACTERS
    return sentence if whole and "|" not in sentence and sentence[:1].isalnum() else ""


def _clean(text: str) -> str:
    """A document's own text without anything that looks like a citation mark."""
    return " ".join(_CITATION.sub("", text).split())
