"""Passages: slices of the text, whole sentences, bounded, overlapping, never across a heading."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaifactory_common.minilm import MiniLM
from genaifactory_retriever.chunking import Chunk, chunk
from genaifactory_retriever.documents import Block, assemble


def chunks_of(model: MiniLM, blocks: list[Block], max_tokens: int = 20, overlap_tokens: int = 6) -> list[Chunk]:
    return chunk(assemble(blocks), model.token_offsets, max_tokens=max_tokens, overlap_tokens=overlap_tokens)


def test_a_passage_never_crosses_a_heading(model: MiniLM) -> None:
    blocks = [Block("A", 1), Block("one"), Block("B", 2), Block("two"), Block("C", 1), Block("three")]
    assert [(c.headings, c.text) for c in chunks_of(model, blocks)] == [
        (("A",), "one"),
        (("A", "B"), "two"),
        (("C",), "three"),
    ]


def test_passages_hold_whole_sentences_and_share_some(model: MiniLM) -> None:
    text = "The first one is here. Then two. A third follows it. Now the fourth. The fifth ends."
    found = [c.text for c in chunks_of(model, [Block(text)])]
    assert found == [
        "The first one is here. Then two. A third follows it. Now the fourth.",
        "Now the fourth. The fifth ends.",
    ]


def test_a_sentence_that_is_too_long_is_cut_between_words(model: MiniLM) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    found = chunks_of(model, [Block(text)])
    assert all(piece in text.split() for c in found for piece in c.text.split())
    assert found[0].start == 0
    assert found[-1].end == len(text)


def test_an_overlong_word_is_cut(model: MiniLM) -> None:
    found = chunks_of(model, [Block("QUJD" * 500)])
    assert max(len(c.text) for c in found) <= 20 * 8
    assert "".join(c.text for c in found) == "QUJD" * 500


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    blocks=st.lists(
        st.tuples(st.text(alphabet="abc ăđ.!?\n漢😀-", max_size=200), st.sampled_from([0, 0, 0, 1, 2])), max_size=8
    ),
    max_tokens=st.integers(8, 40),
    overlap=st.integers(0, 7),
)
def test_any_text_is_cut_into_bounded_slices_that_contain_every_token(
    model: MiniLM, blocks: list[tuple[str, int]], max_tokens: int, overlap: int
) -> None:
    document = assemble([Block(text, level) for text, level in blocks])
    found = chunk(document, model.token_offsets, max_tokens=max_tokens, overlap_tokens=overlap)
    covered: set[int] = set()
    for c in found:
        assert c.text == document.text[c.start : c.end]
        assert c.text == c.text.strip()
        covered.update(range(c.start, c.end))
    for section in document.sections:
        body = document.text[section.start : section.end]
        for start, end in model.token_offsets(body):
            assert covered.issuperset(range(section.start + start, section.start + end)), (start, end)
        tokens = [start + section.start for start, _ in model.token_offsets(body)]
        for c in found:
            if section.start <= c.start < section.end:
                assert sum(c.start <= t < c.end for t in tokens) <= max_tokens


@pytest.mark.parametrize("text", ["", "\n\n", "   "])
def test_an_empty_text_has_no_passages(model: MiniLM, text: str) -> None:
    assert chunks_of(model, [Block(text)]) == []
