"""Decodes texts that clients send as token ids of cl100k_base, the vocabulary of OpenAI's embedding models.

LangChain sends these ids in place of texts, for any model name. Our models have other vocabularies, so the ids are
decoded to text. Ids of another vocabulary decode to nonsense, which is detected, since encoding that text gives other
ids. Ids of a sentence or less may pass by chance, so the header x-genaifactory-token-ids of the response names the
vocabulary.

cl100k_base.tiktoken.xz is the file that the tiktoken package (MIT) downloads from OpenAI at first use; the gateway
downloads nothing.
"""

from __future__ import annotations

import base64
import functools
import lzma
import threading
from collections.abc import Sequence
from pathlib import Path

import tiktoken

from genaifactory_common.errors import InvalidArgument

NAME = "cl100k_base"
VOCABULARY = Path(__file__).with_name("cl100k_base.tiktoken.xz")
# Of tiktoken.
_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
# Clients cut long texts between tokens, not words or characters, so the ids at the ends of a piece may differ.
_LOOSE_ENDS = 4
_MIN_CORE = 32

_loading = threading.Lock()


def texts(lists: Sequence[Sequence[int]], fields: Sequence[str]) -> list[str]:
    """The text of each list of ids. fields: their names in errors. For a thread: the first call takes half a second.

    Raises InvalidArgument for ids that are not the encoding of a text.
    """
    return [_text(ids, field) for ids, field in zip(lists, fields, strict=True)]


def _text(ids: Sequence[int], field: str) -> str:
    if not ids:
        raise InvalidArgument(f"'{field}' must not be empty.", field=field)
    encoding = _encoding()
    if not 0 <= min(ids) <= max(ids) < encoding.n_vocab:
        raise _unknown(field)
    data = encoding.decode_bytes(ids)
    core = list(ids[_LOOSE_ENDS:-_LOOSE_ENDS])
    cut = len(core) >= _MIN_CORE
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if not cut:
            raise _unknown(field) from None
        text = _whole_characters(data)
    own = encoding.encode_ordinary(text)
    if own != ids and not (cut and any(own[i : i + len(core)] == core for i in range(2 * _LOOSE_ENDS + 1))):
        raise _unknown(field)
    return text


def _whole_characters(data: bytes) -> str:
    """The text without partial characters at both ends; other invalid UTF-8 becomes U+FFFD, which has other ids."""
    start = next((i for i, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), 3)
    return data[start:].decode("utf-8", "replace").removesuffix("\ufffd")


@functools.cache
def _loaded() -> tiktoken.Encoding:
    lines = lzma.decompress(VOCABULARY.read_bytes()).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    return tiktoken.Encoding(NAME, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _encoding() -> tiktoken.Encoding:
    with _loading:  # one thread loads
        return _loaded()


def _unknown(field: str) -> InvalidArgument:
    return InvalidArgument(
        f"'{field}' contains token ids that are not the encoding of a text in {NAME}, the only supported vocabulary; "
        "send texts (with LangChain: check_embedding_ctx_length=False).",
        field=field,
    )
