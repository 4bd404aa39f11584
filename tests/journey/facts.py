"""The right answer to each question that the project shows: one table for the first hour and for the tests.

`make run` must answer every question that README, docs, banner, charts, help and samples show. A new one needs a line
here: the document that answers it, and words that the answer must contain.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """What an answer must cite and contain."""

    document: str
    """Id of the document that it must cite."""
    words: str


FACTS = {
    "How many days of annual leave do I have?": Fact("sample/leave.md", "16 days"),
    "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?": Fact("sample/nghi-phep.md", "16 ngày"),
    "Summarise the handbook.": Fact("sample/leave.md", "Sick leave"),
    "What must I do when I lose my hardware key?": Fact(
        "sample/it-security.md", "A lost hardware key is reported to the IT desk within one hour."
    ),
    "Pin của cảm biến Lúa 3 dùng được bao lâu?": Fact("sample/san-pham.md", "bốn năm"),
    "How long is the warranty of a gateway?": Fact("sample/products.md", "gateways of 24 months"),
}
