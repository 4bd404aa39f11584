"""Names of files, whatever their bytes, as text that can be printed, sent and typed again."""

from __future__ import annotations

import os
import unicodedata

# They join letters and emoji into one sign, so they are part of a name.
_JOINERS = "\u200c\u200d"
# Controls, invisible formats such as those that turn the direction of text, line and paragraph ends, and stray bytes.
_UNPRINTABLE = frozenset(("Cc", "Cf", "Zl", "Zp", "Cs"))


def printable(name: str) -> str:
    """The name in NFC; each byte of what cannot be printed, or is not UTF-8, as %XX.

    name: as Python's os functions return it, with stray bytes as surrogates. Two names may get the same text.
    """
    return "".join(_written(character) for character in unicodedata.normalize("NFC", name))


def _written(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    try:
        data = os.fsencode(character)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        data = character.encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)
