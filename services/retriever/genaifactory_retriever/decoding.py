"""Bytes to text: by the mark at their beginning, by what they declare, or by what they look like."""

from __future__ import annotations

import codecs
import re
import unicodedata

from genaifactory_common.errors import InvalidArgument

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_MARKED_LETTER = re.compile("(.)([\u0300\u0301\u0303\u0309\u0323])")
_VOWELS = frozenset("aeiouyAEIOUYăâêôơưĂÂÊÔƠƯ")


def decode(data: bytes, declared: str | None = None) -> str:
    """The text; UTF-8 unless it has a mark or declares something else. Raises InvalidArgument."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            declared = encoding
    try:
        text = data.decode(declared or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise InvalidArgument(
            f"The document is not {(declared or 'UTF-8')[:40]} text{where}; save it as UTF-8.", field="data"
        ) from None
    if "\x00" in text:
        raise InvalidArgument("The document holds NUL bytes: it is not text of this type.", field="data")
    return text


def guessed(data: bytes) -> str:
    """As `decode`, but text that is not UTF-8 is what Windows writes in Vietnam or in the West."""
    try:
        return decode(data)
    except InvalidArgument:
        if b"\x00" in data or any(data.startswith(mark) for mark, _ in _MARKS):
            raise
    vietnamese = data.decode("cp1258", errors="replace")
    marks = _MARKED_LETTER.findall(vietnamese)
    # Marks of tone are letters of their own there; in a Western text the same bytes stand anywhere.
    fitting = sum(letter in _VOWELS for letter, _ in marks)
    if fitting > len(marks) - fitting and "\ufffd" not in vietnamese:
        return unicodedata.normalize("NFC", vietnamese)
    return data.decode("cp1252", errors="replace")
