"""Groundedness: claims that the passages support, contradict or do not hold, in Vietnamese and English."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import minilm
from genaifactory_local.testing import SAMPLE
from genaifactory_pipelines.evaluation import claims, tools
from genaifactory_pipelines.evaluation.evaluators.groundedness import Groundedness
from genaifactory_pipelines.evaluation.protocol import NO_EVIDENCE, Answer, Evidence, Item

pytestmark = pytest.mark.allow_blocking  # files of the tests' own

LABELLED = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "claims.jsonl").read_text(encoding="utf-8").splitlines()
]
"""Claims about the sample handbook, that it supports, contradicts or does not hold; written for this test."""
SEARCHED = Evidence(searched=True)
PASSAGES = (
    "Leave\nFull-time employees have 16 days of paid annual leave a year. After five years one more day is added.",
    "Nghỉ phép\nPhụ cấp công tác là 450.000 đồng mỗi ngày ở Hà Nội.",
)


def asked(question: str) -> Item:
    return Item("q", [types_pb2.Message(role=types_pb2.ROLE_USER, content=question)], expected=())


def supports(cache: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The support of each labelled claim by words, and with the meaning beside them; whether it is true."""
    model = minilm.load(cache)
    vectors: dict[str, np.ndarray] = {}

    def alike(one: str, other: str) -> float:
        for text in (one, other):
            if text not in vectors:
                vectors[text] = np.asarray(model.embed([text]))[0]
        return float(vectors[one] @ vectors[other])

    found = []
    for each in LABELLED:
        sections = (SAMPLE / each["document"]).read_text(encoding="utf-8").split("\n## ")[1:]
        windows = [window for section in sections for window in claims.windows(section)]
        (claim,) = claims.of(each["claim"])
        found.append((claims.support(claim, windows), claims.support(claim, windows, alike)))
    return (*np.array(found).T, np.array([each["label"] == "supported" for each in LABELLED]))


def auc(scores: np.ndarray, true: np.ndarray) -> float:
    """The chance that a true claim has more support than another."""
    one, other = scores[true][:, None], scores[~true][None, :]
    return float(np.mean((one > other) + 0.5 * (one == other)))


def test_true_claims_have_more_support_than_others_and_the_threshold_is_between_them(tmp_path: Path) -> None:
    by_words, with_meaning, true = supports(tmp_path)
    for scores in (by_words, with_meaning):
        assert auc(scores, true) >= 0.97
        assert np.mean(scores[true] >= claims.SUPPORTED) >= 0.97
        assert np.mean(scores[~true] < claims.SUPPORTED) >= 0.95


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Full-time employees have 16 days of annual leave [1].", 1),
        ("Full-time employees have 20 days of annual leave [1].", 0),
        ("Full-time employees have 16 days of annual leave. They also get a gift at Christmas.", 0.5),
        ("Phụ cấp công tác là 450,000 đồng mỗi ngày [2].", 1),
        ("Phụ cấp công tác là 540.000 đồng mỗi ngày [2].", 0),
        ("Phụ cấp công tác ở Huế là 450.000 đồng mỗi ngày [2].", 0),
        ("Nam has 16 days of paid annual leave a year.", 1),  # the question has the name
        ("Which year do you mean?", 1),
        ("", 1),
    ],
)
async def test_each_claim_must_be_supported_with_its_numbers_and_names(text: str, score: float) -> None:
    found = await Groundedness().score(asked("How much leave has Nam?"), Answer(text, passages=PASSAGES), SEARCHED)
    assert found == score


async def test_a_refusal_claims_nothing_and_an_answer_without_passages_is_ungrounded() -> None:
    item, text = asked("How much leave?"), "I do not know. The documents do not answer this question."
    assert await Groundedness().score(item, Answer(text, refused=True, passages=PASSAGES), SEARCHED) == 1
    assert await Groundedness().score(item, Answer("Leave lasts ten days."), SEARCHED) == 0
    assert Groundedness().excludes(item, NO_EVIDENCE.setup) == "need a route that searches documents"
    assert not Groundedness().excludes(item, SEARCHED.setup)


async def test_a_text_that_passages_share_is_embedded_once() -> None:
    embedded: list[str] = []

    class Counting:
        async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
            """See Embedder."""
            embedded.extend(texts)
            return [(1.0, 0.0)] * len(texts)

    evidence = Evidence(searched=True, embed=tools.embedding(Counting(), "minilm"))
    answer = Answer("Full-time employees have 16 days of annual leave.", passages=PASSAGES)
    for _ in range(2):
        assert await Groundedness().score(asked("How much?"), answer, evidence) == 1
    assert len(embedded) == len(set(embedded))
