"""Telling Vietnamese from English."""

from __future__ import annotations

import unicodedata

import pytest

from genaifactory_retriever.language import detect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Làm thế nào để phân vùng đĩa cứng?", "vi"),
        (unicodedata.normalize("NFD", "Làm thế nào để phân vùng đĩa cứng?"), "vi"),
        ("lam the nao de phan vung dia cung cua toi", "vi"),
        ("Cài đặt Debian GNU/Linux", "vi"),
        ("How do I partition the disk?", "en"),
        ("The café's menu is on the website and the résumé is there too.", "en"),
        ("Preparing Files for USB Memory Stick Booting", "en"),
        ("Où est la bibliothèque? Elle est près de l'église où nous étions.", ""),
        ("1234 !!!", ""),
        ("", ""),
        ("東京はどこですか", ""),
    ],
)
def test_the_language_of_a_text(text: str, expected: str) -> None:
    assert detect(text) == expected
