"""Texts that a client sends as token ids: of cl100k_base, the vocabulary of OpenAI's embedding models.

LangChain turns texts into these ids before it sends them, whatever the model is called. Our models have vocabularies of
their own, so the ids are read back into text. Ids of another vocabulary would read as text too, as nonsense: they are
found out because the text's own ids are others. The ids of a sentence or less may pass by chance, so the header
x-genaifactory-token-ids of the answer names the vocabulary.

cl100k_base.tiktoken.xz is the file that the tiktoken package (MIT) fetches from OpenAI at first use; a gateway fetches
nothing.
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
# As tiktoken has it.
_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
# A client cuts long texts between tokens, not between words or characters, so that a piece's ends may read otherwise.
_LOOSE_ENDS = 4
_MIN_CORE = 32

_loading = threading.Lock()


def texts(lists: Sequence[Sequence[int]], fields: Sequence[str]) -> list[str]:
    """The text of each list of ids. fields: what errors call them. For a thread: the first call takes half a second.

    Raises InvalidArgument for what no text has as its ids.
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
    """Without the halves of characters at both ends; what else is no UTF-8 becomes U+FFFD, which has other ids."""
    start = next((i for i, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), 3)
    return data[start:].decode("utf-8", "replace").removesuffix("\ufffd")


@functools.cache
def _loaded() -> tiktoken.Encoding:
    lines = lzma.decompress(VOCABULARY.read_bytes()).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    return tiktoken.Encoding(NAME, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _encoding() -> tiktoken.Encoding:
    with _loading:  # once, whoever comes first
        return _loaded()


def _unknown(field: str) -> InvalidArgument:
    return InvalidArgument(
        f"'{field}' holds token ids that are no text's in {NAME}, the only vocabulary that is read here; "
        "send texts (with LangChain: check_embedding_ctx_length=False).",
        field=field,
    )
