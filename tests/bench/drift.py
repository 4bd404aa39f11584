"""False alarms and power of the drift check: `python -m tests.bench.drift [WINDOWS] [FOLDER]`.

Questions are sentences of Debian's installation guide (tests/data/debian_guide.py), embedded by MiniLM in process. Two
windows of 500 are drawn without an overlap; in the drifted ones a tenth of the current window comes from elsewhere:

- `language`: the other language of the guide;
- `topic`: the handbook of an invented company that comes with the platform, or the guide's licence (appendix F);
- `chapter`: one chapter of the guide among the others, by the same authors on the same subject. Not part of what is
  required: many of its sentences could stand in any chapter.

What else is recorded (scores, outcomes, ratings, documents) has the same distribution in both windows, so that
every signal is part of the verdict and the adjustment is that of real use.

FOLDER/windows.jsonl has a line for each pair of windows, which depends on its kind and number alone: a run that was
ended goes on, and one with more WINDOWS adds to it. After a change of a signal take another folder. FOLDER/drift.svg is
the plot of docs/drift.md, FOLDER/drift.html has all figures.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from genaifactory_pipelines.drift.protocol import Signal, Window
from genaifactory_pipelines.drift.registry import make_signals
from genaifactory_pipelines.drift.verdict import judge
from genaifactory_pipelines.reports import Report, bars
from genaifactory_pipelines.values import Values
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


class Judged(Values):
    """The verdict on a pair of windows: a line of windows.jsonl."""

    kind: str
    number: int
    by: tuple[str, ...]
    p_values: dict[str, float]
    """Of the signals that were judged."""


@dataclass(frozen=True)
class Kind:
    """Pairs of windows of one kind: where their questions come from."""

    pool: Sequence[str]
    foreign: Sequence[str]
    """A tenth of the current window is of these; none in clean windows."""
    count: int


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


def measure(kinds: Mapping[str, Kind], path: Path) -> list[Judged]:
    """The verdicts on all windows, those of the file and new ones, which are added to it. Blocks.

    Kinds take turns, so that a run that is ended has windows of each.
    """
    known = {(each.kind, each.number): each for each in _read(path)}
    wanted = sorted((number, name) for name, kind in kinds.items() for number in range(kind.count))
    if missing := [(name, number) for number, name in wanted if (name, number) not in known]:
        with tempfile.TemporaryDirectory() as cache:
            texts = [text for kind in kinds.values() for part in (kind.pool, kind.foreign) for text in part]
            vectors = embedded(texts, Path(cache))
        signals = make_signals()
        with path.open("a", encoding="utf-8") as file:
            for done, (name, number) in enumerate(missing, 1):
                known[name, number] = _judged(name, number, kinds[name], vectors, signals)
                file.write(f"{known[name, number].model_dump_json()}\n")
                file.flush()
                if done % 50 == 0 or done == len(missing):
                    print(f"{done:,} of {len(missing):,} windows", flush=True)
    return [known[name, number] for number, name in wanted]


def _judged(
    name: str, number: int, kind: Kind, vectors: Mapping[str, NDArray[np.float32]], signals: Sequence[Signal]
) -> Judged:
    chance = np.random.default_rng([number, *name.encode()])
    pair = windows(kind.pool, kind.foreign, vectors, chance)
    verdict = judge(signals, *pair, false_discovery_rate=FALSE_DISCOVERY_RATE)
    p_values = {each.signal: each.p_value for each in verdict.findings if each.judged}
    return Judged(kind=name, number=number, by=verdict.by, p_values=p_values)


def _read(path: Path) -> list[Judged]:
    """The lines of the file; a last one that was cut is dropped from it."""
    whole = path.read_bytes() if path.exists() else b""
    ended = whole[: whole.rfind(b"\n") + 1]
    path.write_bytes(ended)
    return [Judged.model_validate_json(line) for line in ended.splitlines()]


def share(judged: Sequence[Judged]) -> str:
    """The share of alarms with its exact interval (Clopper and Pearson)."""
    alarms = sum(bool(each.by) for each in judged)
    interval = stats.binomtest(alarms, len(judged)).proportion_ci(0.95)
    return f"{alarms} of {len(judged):,}, {alarms / len(judged):.1%} (95 %: {interval.low:.1%} to {interval.high:.1%})"


def plot(found: Mapping[str, Sequence[Judged]]) -> str:
    """The share of windows of each kind with an alarm, as SVG."""
    return bars(
        {name: round(100 * sum(bool(each.by) for each in judged) / len(judged), 1) for name, judged in found.items()}
    )


def report(found: Mapping[str, Sequence[Judged]]) -> str:
    """The figures as HTML."""
    page = Report("Drift check: false alarms and power", f"windows of {SIZE}, a tenth of the current one is foreign")
    page.table(("windows", "alarms", "by"), [(name, share(judged), _by(judged)) for name, judged in found.items()])
    page.heading("Share of windows with an alarm, %")
    page.drawing(plot(found))
    for signal in sorted({name for each in found[CLEAN] for name in each.p_values}):
        page.heading(f"{signal}: p-values of clean windows, which should be spread evenly or lie near 1")
        p_values = [each.p_values[signal] for each in found[CLEAN] if signal in each.p_values]
        counts, edges = np.histogram(p_values, 10, (0, 1))
        page.drawing(bars({f"{low:.1f} to {low + 0.1:.1f}": int(n) for low, n in zip(edges, counts, strict=False)}))
    return page.html()


def _by(judged: Sequence[Judged]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(n for each in judged for n in each.by).most_common())


def _standing_alone(svg: str) -> str:
    """The drawing as a file, which has no page to take its colours from."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff;color:#1b1f24" ', 1)


def _main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "drift-bench")
    folder.mkdir(exist_ok=True)
    given = texts(debian_guide.corpus())
    english, base = given.without(), given.without(LICENCE)
    few, fewer = max(10, count // 10), max(10, count // 30)
    kinds = {
        "language: Vietnamese in English": Kind(english, given.vietnamese, few),
        "language: English in Vietnamese": Kind(given.vietnamese, english, few),
        "topic: the handbook": Kind(english, given.handbook, few),
        "topic: the licence": Kind(base, given.english[LICENCE], few),
        **{f"chapter: {name}": Kind(given.without(name), given.english[name], fewer) for name in CHAPTERS},
        CLEAN: Kind(english, (), count),
    }
    started = time.process_time()
    judged = measure(kinds, folder / "windows.jsonl")
    found = {name: [each for each in judged if each.kind == name] for name in kinds}
    for name, each in found.items():
        print(f"{name:34}{share(each):48}{_by(each)}")
    print(f"{len(english):,} questions in English, {time.process_time() - started:.0f} s of CPU")
    (folder / "drift.html").write_text(report(found), encoding="utf-8")
    (folder / "drift.svg").write_text(_standing_alone(plot(found)), encoding="utf-8")
    print(f"Report: {folder / 'drift.html'}")


if __name__ == "__main__":
    _main()
