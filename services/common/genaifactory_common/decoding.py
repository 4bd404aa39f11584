"""Decodes bytes to text: by their byte order mark, by a declared charset, or by a guess where only one is plausible."""

from __future__ import annotations

import codecs
import re
import unicodedata

from genaifactory_common import formats
from genaifactory_common.errors import InvalidArgument

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

WESTERN, VIETNAMESE = "windows-1252", "windows-1258"
"""Windows encodings of Western languages, a superset of ISO 8859-1 (Latin-1), and of Vietnamese."""

# Damaged UTF-8, which would decode as Western text full of "Ã©".
_UTF8_LETTER = re.compile(rb"[\xc3-\xc6][\x80-\xbf]|\xe1[\xba\xbb][\x80-\xbf]|\xe2\x80[\x80-\xbf]")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]{1,40})", re.IGNORECASE)
_NO_TEXT = frozenset((formats.PDF, formats.DOCX, formats.XLSX, formats.PPTX, formats.EPUB, formats.EML))
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
# French, German, Spanish, Portuguese, Italian, Dutch and the Nordic languages. Without š ž ð þ ý, which show that text
# is Central European, Turkish or Baltic.
_WESTERN_LETTERS = frozenset("àáâãäåæçèéêëìíîïñòóôõöøùúûüÿœßªº")
_VIETNAMESE_LETTERS = frozenset("àáảãạăằắẳẵặâầấẩẫậèéẻẽẹêềếểễệìíỉĩịòóỏõọôồốổỗộơờớởỡợùúủũụưừứửữựỳýỷỹỵđ")
# Signs that in both encodings are within a word only where another encoding has a letter.
_SIGN_IN_WORD = re.compile(r"[^\W\d_][€‚ƒ„†‡ˆ‰‹›•˜™¡-©«-¹»-¿×÷₫]+[^\W\d_]")
_CAPITAL_IN_WORD = re.compile(r"[a-zà-öø-ÿ][À-ÖØ-ÞŒŠŽŸ]")
_LONG_RUN = re.compile(r"[^\W\d_a-zA-Z]{4}")
_MAX_GUESSED_BYTES = 4 << 20  # takes a second; more text than a document may hold
_MOST_MARKED_WESTERN = 0.33
_MOST_MARKED_VIETNAMESE = 0.6
_TONES = frozenset("\u0300\u0301\u0303\u0309\u0323")


def decode(data: bytes, declared: str | None = None) -> str:
    """The text. Raises InvalidArgument.

    By its byte order mark, else as declared, else as UTF-8, else as Western or Vietnamese Windows text if only one of
    them is plausible: answers would quote a wrong guess.
    """
    return _decoded(data, declared)[0]


def declared_charset(page: bytes) -> str | None:
    """The charset that the first kilobytes of an HTML page declare."""
    found = _CHARSET.search(page[:4096])
    return found.group(1).decode("ascii").lower() if found else None


def guessed_encoding(data: bytes, media_type: str) -> str:
    """WESTERN or VIETNAMESE for a text file that is decoded so by a guess; empty otherwise."""
    if media_type in _NO_TEXT or (media_type == "text/html" and declared_charset(data)):
        return ""
    try:
        return _decoded(data, None)[1]
    except InvalidArgument:
        return ""


def _decoded(data: bytes, declared: str | None) -> tuple[str, str]:
    """The text, and its encoding where that is guessed."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            declared = encoding
    try:
        text = data.decode(declared or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        if declared is None and (guess := _guess(data)) is not None:
            return guess
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise InvalidArgument(
            f"The document is not {(declared or 'UTF-8')[:40]} text{where}; save it as UTF-8.", field="data"
        ) from None
    if "\x00" in text:
        raise InvalidArgument("The document holds NUL bytes: it is not text of this type.", field="data")
    return text, ""


def _guess(data: bytes) -> tuple[str, str] | None:
    if len(data) > _MAX_GUESSED_BYTES or _UTF8_LETTER.search(data):
        return None
    western, vietnamese = _western(data), _vietnamese(data)
    if western is not None and vietnamese not in (None, western):
        return None
    if western is not None:
        return western, WESTERN
    return None if vietnamese is None else (vietnamese, VIETNAMESE)


def _western(data: bytes) -> str | None:
    text = _plausible(data, "cp1252", _WESTERN_LETTERS, _MOST_MARKED_WESTERN)
    letters = set(text.lower()) if text is not None else set()
    # Hungarian's ő and ű decode as õ and û; no Western language has both õ or û and ö or ü.
    return None if letters & {"õ", "û"} and letters & {"ö", "ü"} else text


def _vietnamese(data: bytes) -> str | None:
    """In NFC. Windows writes a letter and then its tone mark, whose bytes are no letters in other encodings."""
    text = _plausible(data, "cp1258", _VIETNAMESE_LETTERS, _MOST_MARKED_VIETNAMESE)
    return text if text is not None and not _TONES.isdisjoint(data.decode("cp1258")) else None


def _plausible(data: bytes, encoding: str, letters: frozenset[str], most_marked: float) -> str | None:
    """The text if it is plausible for languages with these letters beside a to z."""
    try:
        text = unicodedata.normalize("NFC", data.decode(encoding))
    except UnicodeDecodeError:
        return None
    if any(pattern.search(text) for pattern in (_CONTROL, _SIGN_IN_WORD, _CAPITAL_IN_WORD, _LONG_RUN)):
        return None
    marked = [letter for letter in text.lower() if not letter.isascii() and (letter.isalpha() or letter in _TONES)]
    if not letters.issuperset(marked) or len(marked) > most_marked * sum(map(str.isalpha, text)):
        return None
    return text
