"""CPU microseconds per 1,000 characters of the guardrails, and of Presidio's default analyzer on the same text.

Run: uv run --with presidio-analyzer==2.2.366 python tests/bench/safety.py. Presidio runs its default recognisers for
English on a blank spaCy pipeline, so without a model; it neither streams nor looks for secrets or Vietnamese numbers.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import NlpArtifacts, SpacyNlpEngine

from genaifactory_common import specs
from genaifactory_safety.policies import Policy, catalogue, compile_policy
from genaifactory_safety.scanner import StreamScanner
from genaifactory_safety.verdicts import Direction

PROSE = (
    "Trợ lý trả lời bằng tiếng Việt hoặc tiếng Anh, dẫn nguồn từ tài liệu nội bộ và nói rằng nó không biết khi không "
    "có tài liệu nào phù hợp. The assistant quotes its sources, and every answer is checked before it leaves. "
)
NUMBERS = (
    "Năm 2024 doanh thu đạt 1.250.000 đồng, tăng 12,5% so với năm 2023; phiên bản 2.4.1 phát hành ngày 17/05/2024. "
    "Order 20240517 was shipped at 10:30 for $1,234.56, see page 12 of the manual. "
)
PERSONAL = (
    "Anh An, CCCD 001203004567, gọi 0912 345 678 hoặc viết cho an@example.com để nhận lại thẻ 4111 1111 1111 1111. "
    "His key AKIAIOSFODNN7EXAMPLE and password: Hoa@2024 were in the mail to bob@example.org yesterday. "
)
TOKEN_CHARACTERS = 4


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description="CPU of the guardrails and of Presidio")
    arguments.add_argument("--characters", type=int, default=20_000, help="length of each text (default: %(default)s)")
    arguments.add_argument("--repeats", type=int, default=5, help="the best of so many counts (default: %(default)s)")
    chosen = arguments.parse_args()
    policy = compile_policy(
        specs.Policy(name="bench", rules=(specs.Rule(entities=("PII", "SECRET")),)), Direction.OUTPUT, catalogue()
    )
    presidio = _presidio()
    print(f"{'CPU µs per 1,000 characters':<34}{'whole':>10}{'by token':>10}{'Presidio':>10}{'ratio':>8}")
    for name, sample in (("prose", PROSE), ("prose with numbers", NUMBERS), ("personal data everywhere", PERSONAL)):
        text = (sample * (chosen.characters // len(sample) + 1))[: chosen.characters]
        pieces = [text[i : i + TOKEN_CHARACTERS] for i in range(0, len(text), TOKEN_CHARACTERS)]
        # Presidio's default is slow on one long text; it gets paragraphs.
        paragraphs = [text[i : i + 1_000] for i in range(0, len(text), 1_000)]

        def by_presidio(paragraphs: list[str] = paragraphs) -> None:
            for paragraph in paragraphs:
                presidio.analyze(paragraph, language="en")

        whole = _best(functools.partial(_scan, policy, [text]), chosen.repeats) / len(text) * 1e9
        stream = _best(functools.partial(_scan, policy, pieces), chosen.repeats) / len(text) * 1e9
        peer = _best(by_presidio, chosen.repeats) / len(text) * 1e9
        print(f"{name:<34}{whole:>10.0f}{stream:>10.0f}{peer:>10.0f}{peer / whole:>7.1f}x")


def _scan(policy: Policy, pieces: list[str]) -> None:
    scanner = StreamScanner(policy)
    for piece in pieces:
        scanner.push(piece)
    scanner.finish()


def _best(work: Callable[[], None], repeats: int) -> float:
    """CPU seconds of the quickest run."""
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


class _BlankNlpEngine(SpacyNlpEngine):
    """A spaCy pipeline without a model, whose lemmas are the words themselves."""

    def __init__(self) -> None:
        super().__init__(models=[{"lang_code": "en", "model_name": "blank"}])
        self.nlp: Any = {"en": spacy.blank("en")}

    def process_text(self, text: str, language: str) -> NlpArtifacts:
        """The artifacts with lemmas, which context words are matched with."""
        artifacts = super().process_text(text, language)
        artifacts.lemmas = [token.lower_ for token in artifacts.tokens]
        return artifacts


def _presidio() -> AnalyzerEngine:
    # EmailRecognizer would fetch the list of public suffixes.
    offline: Any = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())
    tldextract.extract = offline
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"])
    return AnalyzerEngine(registry=registry, nlp_engine=_BlankNlpEngine(), supported_languages=["en"])


if __name__ == "__main__":
    main()
