"""False alarms and power of the drift check: `python -m tests.bench.drift [WINDOWS] [REPORT.html]`.

Questions are sentences of Debian's installation guide (tests/data/debian_guide.py), embedded by MiniLM in process. Two
windows of 500 are drawn without an overlap; in the drifted ones a tenth of the current window comes from elsewhere:

- `language`: the other language of the guide;
- `topic`: the handbook of an invented company that comes with the platform, or the guide's licence (appendix F);
- `chapter`: one chapter of the guide among the others, by the same authors on the same subject. Not part of what is
  required: many of its sentences could stand in any chapter.

What else is recorded (scores, outcomes, ratings, documents) has the same distribution in both windows, so that
every signal is part of the verdict and the adjustment is that of real use.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from selectolax.lexbor import LexborHTMLParser

from genaifactory_common import language, minilm
from genaifactory_local import testing
from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.drift import window
from genaifactory_pipelines.drift.protocol import Window
from genaifactory_pipelines.drift.registry import make_signals
from genaifactory_pipelines.drift.verdict import Verdict, judge
from genaifactory_pipelines.reports import Report, bars
from tests.data import debian_guide

SIZE = 500
SHARE = 0.1
FALSE_DISCOVERY_RATE = 0.01
CLEAN = "clean"
LICENCE = "apf"
CHAPTERS = ("ch01", "apb")
_START = datetime(2026, 11, 1, tzinfo=UTC)
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n\s*\n")


@dataclass(frozen=True)
class Texts:
    """Questions by where they come from."""

    english: Mapping[str, Sequence[str]]
    """By chapter."""
    vietnamese: Sequence[str]
    handbook: Sequence[str]
    """In English."""

    def without(self, *chapters: str) -> list[str]:
        """English questions of the other chapters."""
        return [text for chapter, found in self.english.items() if chapter not in chapters for text in found]


@dataclass
class Measured:
    """Verdicts on windows of one kind."""

    count: int = 0
    alarms: int = 0
    by: Counter[str] = field(default_factory=Counter)
    p_values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    effects: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, verdict: Verdict) -> None:
        """Counts a verdict."""
        self.count += 1
        self.alarms += verdict.drifted
        self.by.update(verdict.by)
        for finding in verdict.findings:
            if finding.judged:
                self.p_values[finding.signal].append(finding.p_value)
                self.effects[finding.signal].append(finding.effect)

    def share(self) -> str:
        """The share of alarms with its exact interval (Clopper and Pearson)."""
        interval = stats.binomtest(self.alarms, self.count).proportion_ci(0.95)
        share = self.alarms / self.count
        return f"{self.alarms} of {self.count:,}, {share:.1%} (95 %: {interval.low:.1%} to {interval.high:.1%})"


def texts(pages: Sequence[debian_guide.Page]) -> Texts:
    """Sentences of the guide and of the handbook, each once. Blocks."""
    english: defaultdict[str, list[str]] = defaultdict(list)
    vietnamese: list[str] = []
    for page in pages:
        for text in _sentences(page.html):
            if page.language == "en":
                english[re.split(r"s|\.", page.name)[0]].append(text)
            elif language.nearest(text) == "vi":  # many sentences have never been translated
                vietnamese.append(text)
    handbook = [
        text for path in sorted(testing.SAMPLE.glob("*.md")) for text in _split(path.read_text(encoding="utf-8"))
    ]
    return Texts(
        {chapter: list(dict.fromkeys(found)) for chapter, found in english.items()},
        list(dict.fromkeys(vietnamese)),
        [text for text in dict.fromkeys(handbook) if language.nearest(text) == "en"],
    )


def embedded(questions: Sequence[str], cache: Path) -> dict[str, NDArray[np.float32]]:
    """The vector of each question. Blocks, for about 10 ms each."""
    model = minilm.load(cache)
    return {text: model.embed([text])[0] for text in dict.fromkeys(questions)}


def windows(
    pool: Sequence[str],
    foreign: Sequence[str],
    vectors: Mapping[str, NDArray[np.float32]],
    chance: np.random.Generator,
) -> tuple[Window, Window]:
    """A reference and a current window; a tenth of the current one is foreign, if anything is."""
    drawn = [pool[position] for position in chance.choice(len(pool), 2 * SIZE, replace=False)]
    if foreign:
        count = round(SHARE * SIZE)
        drawn[-count:] = [foreign[at] for at in chance.choice(len(foreign), count, replace=count > len(foreign))]
    return (
        made(drawn[:SIZE], vectors, chance, _START),
        made(drawn[SIZE:], vectors, chance, _START + timedelta(days=7)),
    )


def made(
    questions: Sequence[str], vectors: Mapping[str, NDArray[np.float32]], chance: np.random.Generator, start: datetime
) -> Window:
    """A window of these questions, whose answers and ratings are drawn by lot."""
    interactions = [_interaction(number, text, chance, start) for number, text in enumerate(questions)]
    return window.make(interactions, window.sample(interactions, len(interactions)), vectors)


def _interaction(number: int, question: str, chance: np.random.Generator, start: datetime) -> Interaction:
    outcome = chance.choice(["answered", "blocked", "failed"], p=[0.97, 0.02, 0.01])
    found = chance.random() > 0.05
    answered, document = outcome == "answered" and found, f"guide/{min(chance.geometric(0.2), 30)}.html"
    rating = chance.choice(["up", "down", ""], p=[0.16, 0.04, 0.8])
    return Interaction.model_validate(
        {
            "schema_version": 1,
            "request_id": f"{start:%m%d}-{number:05}",
            "start_time": start + timedelta(minutes=number),
            "task": "rag",
            "route": chance.choice(["rag", "help"], p=[0.8, 0.2]),
            "model": "m",
            "prompt_version": "rag@1",
            "index_version": "v1",
            "passages": [{"score": chance.beta(5, 2)}] if found else [],
            "citations": [{"passage_id": "p", "document_id": document}] if answered else [],
            "input": [{"role": "user", "content": question, "tool_calls": [], "images": []}],
            "output": "x" * int(chance.lognormal(5, 0.6)) if answered else "",
            "outcome": outcome,
            "refused": not found,
            "conversation_id": "",
            "feedback": [{"time": None, "rating": rating, "correction": "", "ground_truth": None}] if rating else [],
        }
    )


def _sentences(html: str) -> list[str]:
    tree = LexborHTMLParser(html)
    for node in tree.css("div.navheader, div.navfooter, div.toc, pre"):
        node.decompose()
    return [sentence for node in tree.css("p") for sentence in _split(node.text(deep=True))]


def _split(text: str) -> list[str]:
    found = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
    return [sentence for sentence in found if 5 <= len(sentence.split()) <= 60]


def measure(kinds: Mapping[str, tuple[Sequence[str], Sequence[str]]], counts: Mapping[str, int]) -> dict[str, Measured]:
    """Verdicts on windows of each kind: of a pool of questions and of foreign ones. Blocks."""
    with tempfile.TemporaryDirectory() as cache:
        vectors = embedded([text for parts in kinds.values() for part in parts for text in part], Path(cache))
    signals = make_signals()
    found: dict[str, Measured] = {}
    for name, (pool, foreign) in kinds.items():
        chance = np.random.default_rng(11)
        found[name] = Measured()
        for number in range(1, counts[name] + 1):
            parts = windows(pool, foreign, vectors, chance)
            found[name].add(judge(signals, *parts, false_discovery_rate=FALSE_DISCOVERY_RATE))
            if number in (counts[name], counts[name] // 2):
                print(f"{name:34}{found[name].share():48}{dict(found[name].by.most_common())}", flush=True)
    return found


def report(found: Mapping[str, Measured]) -> str:
    """The figures as HTML."""
    page = Report("Drift check: false alarms and power", f"windows of {SIZE}, a tenth of the current one is foreign")
    page.table(
        ("windows", "alarms", "by"),
        [
            (name, each.share(), ", ".join(f"{signal} {count}" for signal, count in each.by.most_common()))
            for name, each in found.items()
        ],
    )
    page.heading("Share of windows with an alarm, %")
    page.drawing(bars({name: round(100 * each.alarms / each.count, 1) for name, each in found.items()}))
    for signal, p_values in found[CLEAN].p_values.items():
        page.heading(f"{signal}: p-values of clean windows, which should be spread evenly or lie near 1")
        counts, edges = np.histogram(p_values, 10, (0, 1))
        page.drawing(bars({f"{low:.1f} to {low + 0.1:.1f}": int(n) for low, n in zip(edges, counts, strict=False)}))
    return page.html()


def _main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    given = texts(debian_guide.corpus())
    english, base = given.without(), given.without(LICENCE)
    kinds: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "language: Vietnamese in English": (english, given.vietnamese),
        "language: English in Vietnamese": (given.vietnamese, english),
        "topic: the handbook": (english, given.handbook),
        "topic: the licence": (base, given.english[LICENCE]),
        **{f"chapter: {name}": (given.without(name), given.english[name]) for name in CHAPTERS},
        CLEAN: (english, ()),
    }
    few = max(10, count // 12)
    started = time.perf_counter()
    found = measure(kinds, {name: count if name == CLEAN else few for name in kinds})
    print(f"{len(english):,} questions in English, {time.perf_counter() - started:.0f} s")
    path = Path(sys.argv[2] if len(sys.argv) > 2 else "drift.html")
    path.write_text(report(found), encoding="utf-8")
    print(f"Report: {path}")


if __name__ == "__main__":
    _main()
