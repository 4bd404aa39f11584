"""Token ids in place of texts, as LangChain sends them: their text is embedded, or they are refused."""

from __future__ import annotations

import hashlib
import inspect
import lzma
import random

import pytest
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st

from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway.openai import token_ids
from tests.unit.gateway.conftest import Gateway

ENCODING = token_ids._encoding()
PLAIN = st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"]))
VIETNAMESE = "Mỗi nhân viên toàn thời gian có 16 ngày nghỉ phép hưởng lương mỗi năm, tính từ ngày ký hợp đồng. 🏖️ "


def test_the_vocabulary_is_tiktokens() -> None:
    digest = hashlib.sha256(lzma.decompress(token_ids.VOCABULARY.read_bytes())).hexdigest()
    own = inspect.getsource(tiktoken_ext.openai_public.cl100k_base)
    assert digest in own
    assert token_ids._PATTERN in own


@given(PLAIN)
def test_the_ids_of_any_text_decode_to_it(text: str) -> None:
    assert token_ids.texts([ENCODING.encode_ordinary(text)], ["input"]) == [text]


@settings(max_examples=30)
@given(st.integers(0, 400), st.integers(60, 500))
def test_a_piece_of_a_long_text_decodes_without_its_partial_characters(start: int, size: int) -> None:
    ids = ENCODING.encode_ordinary(VIETNAMESE * 30)
    (text,) = token_ids.texts([ids[start : start + size]], ["input"])
    assert text in VIETNAMESE * 30
    assert len(text.encode()) >= len(ENCODING.decode_bytes(ids[start : start + size])) - 6


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [-1],
        [100_256],
        [100_257],  # <|endoftext|>
        [10**30],
        [101, 7592, 2088, 102],  # "hello world" of BERT, and so of MiniLM
        [12, 12],  # "--", which is one token
        [0x80 + 50],
    ],
    ids=str,
)
def test_ids_that_encode_no_text_are_refused(ids: list[int]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        token_ids.texts([[9906], ids], ["input[0]", "input[1]"])
    assert caught.value.field == "input[1]"


@pytest.mark.parametrize("size", [200, 5000])
def test_random_ids_are_refused(size: int) -> None:
    chance = random.Random(size)
    for _ in range(20):
        with pytest.raises(InvalidArgument):
            token_ids.texts([[chance.randrange(256, 100_256) for _ in range(size)]], ["input"])


def test_ids_of_another_vocabulary_are_refused() -> None:
    """A vocabulary with the same tokens in another order: every id is valid, and every text is wrong."""
    order = list(range(ENCODING.n_vocab))
    random.Random(7).shuffle(order)
    text = inspect.getsource(token_ids)
    with pytest.raises(InvalidArgument, match="check_embedding_ctx_length=False"):
        token_ids.texts([[order[i] for i in ENCODING.encode_ordinary(text)]], ["input"])


async def test_ids_and_texts_have_the_same_vectors(gateway: Gateway) -> None:
    texts = ["Huế", "annual leave", VIETNAMESE]
    ids = [ENCODING.encode_ordinary(text) for text in texts]
    for one, other in ((texts, ids), (texts[0], ids[0])):
        answers = [await gateway.post("/v1/embeddings", {"model": "minilm", "input": i}) for i in (one, other)]
        assert answers[0].json() == answers[1].json()
        assert "x-genaifactory-token-ids" not in answers[0].headers
        assert answers[1].headers["x-genaifactory-token-ids"] == "cl100k_base"
    assert list(gateway.orchestrator.embed_requests[1].texts) == texts


async def test_three_hundred_thousand_ids_are_one_request(gateway: Gateway) -> None:
    ids = ENCODING.encode_ordinary("annual leave " * 150)
    body = {"model": "minilm", "input": [ids] * 1000}
    response = await gateway.post("/v1/embeddings", body)
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 1000
    response = await gateway.post("/v1/embeddings", b'{"model":"minilm","input":[' + b"[1]," * 400_000 + b"[1]]}")
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("given_", "field", "says"),
    [
        ([1, "a"], "input[1]", "valid integer"),
        (["a", 1], "input[1]", "valid string"),
        ([[1], "a"], "input[1]", "valid list"),
        ([[1], [1.5]], "input[1][0]", "valid integer"),
        ([[9906], []], "input[1]", "must not be empty"),
        ([True], "input[0]", "valid string"),
        ([{"a": 1}], "input[0]", "valid string"),
        ([101, 7592, 2088, 102], "input", "cl100k_base"),
        ([220], "input[0]", "must not be empty"),  # a space
        ([[9906]] * 2049, "input", "at most 2048"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_errors_name_the_wrong_input(gateway: Gateway, given_: list[object], field: str, says: str) -> None:
    response = await gateway.post("/v1/embeddings", {"model": "minilm", "input": given_})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert says in error["message"]
    assert gateway.orchestrator.embed_requests == []
