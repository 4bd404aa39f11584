"""Cutting passages into what may be quoted."""

from __future__ import annotations

import pytest

from genaifactory_modelserver.engines.extractive.sentences import Kind, units, windows


def texts(passage: str, *, starts_inside: bool = False) -> list[str]:
    return [" ".join(unit.text.split()) for unit in units(passage, starts_inside=starts_inside)]


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        ("One is here. Two is here! Three is here…", ["One is here.", "Two is here!", "Three is here…"]),
        ("Dr. Smith met J. R. Tolkien, e.g. in 1930. They ate.", ["Dr. Smith met J. R. Tolkien, e.g. in 1930."]),
        ("Put it in class A. Then lock it.", ["Put it in class A.", "Then lock it."]),
        ("It was written by J. Smith. He died.", ["It was written by J. Smith."]),
        ("*In italics all of it. Here to the end.*", ["In italics all of it.", "Here to the end."]),
        ("**Note.** This one is bold enough.", ["This one is bold enough."]),
        ("TP. Hồ Chí Minh có 3 trung tâm. TS. Lê Văn An phụ trách.", None),
        ("Giá là 1.500.000 đồng. Ưu đãi 10.5 phần trăm.", ["Giá là 1.500.000 đồng.", "Ưu đãi 10.5 phần trăm."]),
        ('He said "go now." Then he left them.', ['He said "go now."', "Then he left them."]),
        ("A line that was wrapped at about seventy characters by its\nauthor ends here.", None),
        ("Does it run? It runs on every phone.", ["It runs on every phone."]),
        ("The end has no full stop", ["The end has no full stop"]),
        ("Yes.", []),
        ("", []),
        ("\n\n \n", []),
    ],
)
def test_sentences_end_where_they_end(passage: str, expected: list[str] | None) -> None:
    found = texts(passage)
    if expected is None:  # nothing is lost
        assert " ".join(found) == " ".join(passage.split())
    else:
        assert found == expected


def test_headings_are_context_and_never_quoted() -> None:
    passage = (
        "# Bảo hành\n\nThời hạn là 24 tháng.\n\nĐổi trả\n\nĐổi trong vòng 7 ngày.\n\n1. Liên hệ\n\nGọi số 1900 1234."
    )
    assert [(unit.text, unit.context) for unit in units(passage)] == [
        ("Thời hạn là 24 tháng.", "Bảo hành"),
        ("Đổi trong vòng 7 ngày.", "Đổi trả"),
        ("Gọi số 1900 1234.", "Liên hệ"),
    ]


def test_a_short_line_without_a_full_stop_is_quoted_where_it_is_no_title() -> None:
    passage = (
        "Office rules\n\nThe Wi-Fi is called Heron\n\nThe desk opens at 9\n\nAsk Lan for a badge on your first day."
    )
    assert [(unit.text, unit.context) for unit in units(passage)] == [
        ("The Wi-Fi is called Heron", "Office rules"),
        ("The desk opens at 9", "The Wi-Fi is called Heron"),
        ("Ask Lan for a badge on your first day.", "The desk opens at 9"),
    ]
    assert texts("Call us at any time\n\n# Sick leave\n\nRest at home.") == ["Call us at any time", "Rest at home."]


def test_a_question_in_the_text_is_the_context_of_its_answer() -> None:
    found = list(units("## Hỏi đáp\n\nCó được trả góp không?\n\nĐược, qua thẻ tín dụng."))
    assert [(unit.text, unit.context) for unit in found] == [("Được, qua thẻ tín dụng.", "Có được trả góp không?")]


def test_a_list_is_its_items_and_then_the_whole() -> None:
    passage = "Bring these papers:\n- your passport\n- two photos\n\n1. Sign the form.\n2. Pay the fee."
    found = list(units(passage))
    assert [(unit.kind, " ".join(unit.text.split())) for unit in found] == [
        (Kind.ITEM, "your passport"),
        (Kind.ITEM, "two photos"),
        (Kind.LIST, "Bring these papers: - your passport - two photos"),
        (Kind.ITEM, "Sign the form."),
        (Kind.ITEM, "Pay the fee."),
        (Kind.LIST, "1. Sign the form. 2. Pay the fee."),
    ]
    assert found[2].led_in
    assert found[0].context == "Bring these papers:"


def test_a_table_is_its_rows_under_the_names_of_its_columns() -> None:
    found = list(units("| Plan | Price |\n|---|---|\n| Basic | $10 |\n| Team | $25 |"))
    assert [(unit.text, unit.context) for unit in found[:2]] == [
        ("Basic | $10", "Plan | Price"),
        ("Team | $25", "Plan | Price"),
    ]
    assert found[2].kind is Kind.LIST


def test_a_list_too_long_to_quote_is_cut_between_items() -> None:
    passage = "\n".join(f"- item number {i} of a very long list of items" for i in range(50))
    whole = next(unit for unit in units(passage) if unit.kind is Kind.LIST)
    assert len(whole.text.split()) <= 140
    assert whole.text.endswith("list of items")


def test_citation_marks_are_cut_off_and_what_carries_one_inside_is_left_out() -> None:
    assert texts(
        "Water boils at 100 degrees.[4][12] Ice melts at [3] zero degrees. Steam is hot [5]. Snow is very cold."
    ) == [
        "Water boils at 100 degrees.",
        "Snow is very cold.",
    ]


def test_the_rest_of_a_cut_sentence_is_left_out_only_where_it_was_cut() -> None:
    passage = "rest of a sentence. A whole sentence here."
    assert texts(passage, starts_inside=True) == ["A whole sentence here."]
    assert texts(passage) == ["rest of a sentence.", "A whole sentence here."]


def test_windows_are_the_text_and_a_passage_is_one() -> None:
    paragraph = "Một đoạn văn không dài lắm, có vài câu. " * 5 + "\n\n"
    text = paragraph * 100
    parts = list(windows(text))
    assert "".join(parts) == text
    assert all(len(part) <= 4096 for part in parts)
    assert all(part.endswith("\n") for part in parts[:-1])
    assert list(windows(paragraph)) == [paragraph]
    assert "".join(windows("x" * 10_000)) == "x" * 10_000
