"""A real bilingual corpus: Debian's installation guide in Vietnamese and English, and retrieval judgements out of it.

The judgements come from the guide's structure alone, never from a ranking of ours:

- `title`: a section's title is a query; the section's own text is what it must find (gain 2), and the text of the
  sections below it (gain 1).
- `reference`: a sentence that points to another page ("For more information see …") is a query, without the pointer;
  the section that it points to is what it must find, judged the same way. Passages of the page that the sentence
  stands on are left out of the ranking, since they hold the query itself.

So that no query can find its answer by its own words, the corpus is indexed without them: every title is cut down to
its number, and tables of contents, navigation and the text of cross-references are taken out. Titles that stand on
several sections are judged for all of them. Queries are split in two halves by section number: one to choose weights
with (`tune`), one to report (`held_out`); both languages of a section are on the same side.

A good part of the Vietnamese guide has never been translated: such a section says in English what its Vietnamese
title names. These queries stay in, as hard for every method. Titles and sentences that are in English themselves are
no Vietnamese queries and are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest
from selectolax.lexbor import LexborHTMLParser, LexborNode

PACKAGE = "installation-guide-amd64"
LANGUAGES = ("vi", "en")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / PACKAGE
_NUMBER = re.compile(r"^(?:[^\W\d_]+\s+)?((?:\d+|[A-F])(?:\.\d+)*)\.\s*(.*)$", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_POINTER = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Page:
    """One page of the guide."""

    language: str
    name: str
    """File name, the same in each language."""
    html: str

    @property
    def document_id(self) -> str:
        return f"{self.language}/{self.name}"


@dataclass(frozen=True)
class Query:
    """A query and what it must find."""

    kind: str
    """'title' or 'reference'."""
    language: str
    text: str
    gains: dict[str, int]
    """Section number -> gain."""
    page: str
    """For a reference: the page that it stands on, left out of the ranking; else empty."""
    held_out: bool


class CorpusUnavailable(Exception):
    """The guide cannot be had on this machine."""


def corpus() -> list[Page]:
    """All pages in both languages; fetched on first use with apt (no root). Blocks. Raises CorpusUnavailable."""
    root = _fetched() / "usr/share/doc" / PACKAGE
    return [
        Page(language, path.name, path.read_text(encoding="utf-8"))
        for language in LANGUAGES
        for path in sorted((root / language).glob("*.html"))
    ]


def corpus_or_skip() -> list[Page]:
    """As `corpus`, but skips the test where the guide cannot be had; in CI that is a failure."""
    try:
        return corpus()
    except CorpusUnavailable as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"the corpus is missing: {error}")
        pytest.skip(str(error))


def _fetched() -> Path:
    target = CACHE / "files"
    if target.exists():
        return target
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise CorpusUnavailable(f"{PACKAGE} comes from apt, which this machine has not")
    work = CACHE / f"work-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=work, check=True, capture_output=True, timeout=120)
        (package,) = work.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, work / "files"], check=True, capture_output=True, timeout=60)
        (work / "files").replace(target)
    except subprocess.SubprocessError as error:
        detail = getattr(error, "stderr", None) or b""
        raise CorpusUnavailable(
            f"apt-get download {PACKAGE} failed: {detail.decode(errors='replace')[-300:]}"
        ) from error
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def without_answers(pages: list[Page]) -> list[Page]:
    """The pages as the benchmark indexes them: titles cut to their numbers, no pointers, no tables of contents.

    Pages without any other text are left out.
    """
    cut = (Page(page.language, page.name, _without_answers(page.html)) for page in pages)
    return [page for page in cut if page.html]


def _without_answers(html: str) -> str:
    tree = LexborHTMLParser(html)
    for node in tree.css("div.navheader, div.navfooter, div.toc, head > title, a.xref, div.titlepage + p.title"):
        node.decompose()
    for node in tree.css("h1.title, h2.title, h3.title, h4.title, h5.title, h6.title"):
        number = _split_title(node)[0]
        node.inner_html = number and f"{number}."
    titles = sum(len(node.text().split()) for node in tree.css("h1, h2, h3, h4, h5, h6"))
    return (tree.html or "") if tree.body is not None and len(tree.body.text().split()) > titles else ""


def section_of(headings: Sequence[str]) -> str:
    """The number of the section that a passage of the benchmark's corpus stands in."""
    return headings[-1].removesuffix(".") if headings else ""


def queries(pages: list[Page]) -> list[Query]:
    """The benchmark's queries, out of the pages as they are."""
    return [query for language in LANGUAGES for query in _queries([p for p in pages if p.language == language])]


@dataclass(frozen=True)
class _Section:
    number: str
    title: str
    page: str
    anchor: str


def _queries(pages: list[Page]) -> Iterator[Query]:
    language = pages[0].language
    trees = {page.name: LexborHTMLParser(page.html) for page in pages}
    sections = [section for page in pages for section in _sections(page.name, trees[page.name])]
    written = numbers_with_text(pages)
    by_target: dict[str, _Section] = {}
    for section in sections:
        by_target.setdefault(section.page, section)
        by_target[f"{section.page}#{section.anchor}"] = section
    titles: dict[str, list[_Section]] = defaultdict(list)
    for section in sections:
        titles[section.title.lower()].append(section)
    for same in titles.values():
        gains = {k: v for section in same for k, v in _gains(section.number, written).items()}
        if gains and _is_written_in(language, same[0].title):
            yield Query("title", language, same[0].title, gains, "", _held_out(same[0].number))
    for page in pages:
        for text, target in _references(page.name, trees[page.name], by_target):
            gains = _gains(target.number, written)
            if gains and _is_written_in(language, text):
                yield Query("reference", language, text, gains, page.name, _held_out(target.number))


def _sections(page: str, tree: LexborHTMLParser) -> Iterator[_Section]:
    for node in tree.css(
        "div.titlepage h1.title, div.titlepage h2.title, div.titlepage h3.title, div.titlepage h4.title"
    ):
        number, title = _split_title(node)
        anchor = node.css_first("a[name]")
        if number and title and anchor is not None:
            yield _Section(number, title, page, anchor.attributes.get("name") or "")


def _split_title(node: LexborNode) -> tuple[str, str]:
    found = _NUMBER.match(" ".join(node.text(deep=True).replace("\u00a0", " ").split()))
    return (found.group(1), found.group(2)) if found else ("", "")


def numbers_with_text(pages: list[Page]) -> set[str]:
    """Sections that have text of their own in the benchmark's corpus."""
    numbers = set()
    for page in without_answers(pages):
        number = ""
        for node in LexborHTMLParser(page.html).css("h1.title, h2.title, h3.title, h4.title, h5.title, p, pre, li, td"):
            text = node.text(deep=True).strip()
            if "title" in (node.attributes.get("class") or "") and (node.tag or "").startswith("h"):
                number = text.removesuffix(".")
            elif number and len(text) > 20:
                numbers.add(number)
    return numbers


def _gains(number: str, written: set[str]) -> dict[str, int]:
    """Empty when the section has no text of its own: its title then names a list of others."""
    if number not in written:
        return {}
    return {other: 2 if other == number else 1 for other in written if f"{other}.".startswith(f"{number}.")}


def _references(page: str, tree: LexborHTMLParser, by_target: dict[str, _Section]) -> Iterator[tuple[str, _Section]]:
    for paragraph in tree.css("p"):
        links = [
            (link, by_target.get((link.attributes.get("href") or "").removeprefix("./")))
            for link in paragraph.css("a.xref")
        ]
        for link, target in links:
            if target is None or target.page == page:
                continue
            for other, _ in links:
                other.inner_html = _POINTER if other.mem_id == link.mem_id else ""
            for sentence in _SENTENCE_END.split(paragraph.text(deep=True)):
                if _POINTER in sentence:
                    text = " ".join(sentence.replace(_POINTER, " ").split())
                    if len(text.split()) >= 6:  # "See also ." asks nothing
                        yield text, target


def _is_written_in(language: str, text: str) -> bool:
    """Untranslated sentences of the Vietnamese guide are no Vietnamese queries; those have diacritics."""
    return language != "vi" or any(character.isalpha() and not character.isascii() for character in text)


def _held_out(number: str) -> bool:
    return crc32(number.encode()) % 2 == 0
