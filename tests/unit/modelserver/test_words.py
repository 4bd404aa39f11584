"""Words: languages, folding, what a question is about."""

from __future__ import annotations

import unicodedata
from typing import Literal

import pytest

from genaifactory_modelserver.engines.extractive import words
from genaifactory_modelserver.engines.extractive.question import Question


def test_the_two_ways_to_place_a_tone_mark_are_one_word() -> None:
    assert words.form("hoà") == words.form("hòa")
    assert words.form("thúy") == words.form("thuý")
    assert words.form("má").exact != words.form("mà").exact
    assert words.form("đĩa").folded == "dia"
    assert words.form("installing").stem == words.form("Installation").stem


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_text_matches_whatever_its_normal_form(form: Literal["NFC", "NFD"]) -> None:
    question = Question(["Thời hạn bảo hành?"])
    match = question.match(unicodedata.normalize(form, "được bảo hành 24 tháng"), marked=True)
    assert match is not None
    assert {question.terms[i].form.folded for i in match.exact} == {"bao", "hanh"}


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("Làm thế nào để cài đặt ổ đĩa?", ["cai", "dat", "o", "dia"]),
        ("Cho tôi biết giờ làm việc", ["gio", "lam", "viec"]),
        ("How long does the delivery take to arrive?", ["delivery", "take", "arrive"]),
        ("Can you tell me who the IT lead is?", ["it", "lead"]),
        ("lam sao de doi mat khau", ["doi", "mat", "khau"]),
    ],
)
def test_question_words_say_nothing(question: str, terms: list[str]) -> None:
    assert [term.form.folded for term in Question([question]).terms] == terms


def test_a_syllable_apart_from_its_neighbour_counts_half() -> None:
    question = Question(["bảo hành thế nào?"])
    apart, together = question.match("bảo vệ tòa nhà", marked=True), question.match("được bảo hành", marked=True)
    assert apart is not None
    assert together is not None
    assert list(apart.quality.values()) == [0.5]
    assert list(together.quality.values()) == [1.0, 1.0]


def test_marks_that_differ_are_another_syllable_where_both_sides_are_written_with_marks() -> None:
    marked, bare = Question(["giá mít?"]), Question(["gia mit bao nhieu"])
    for question, least in ((marked, 0.0), (bare, 0.8)):
        match = question.match("người già", marked=True)
        assert match is not None
        assert (max(match.quality.values()) >= 0.4) == (least > 0)


def test_an_endless_question_has_a_bounded_number_of_terms() -> None:
    assert len(Question(["before?", " ".join(f"w{i}" for i in range(9_000))]).terms) <= 48


@pytest.mark.parametrize(
    ("question", "is_asked"),
    [
        ("When is the office closed?", True),
        ("The office closes when?", True),
        ("Khi nào tôi được hoàn tiền?", True),
        ("What must I do when I lose my key?", False),
        ("When I travel abroad, who pays?", False),
        ("Who pays when the laptop breaks?", False),
    ],
)
def test_a_when_that_begins_a_condition_asks_for_no_time(question: str, is_asked: bool) -> None:
    assert words.asks_for_number(question) is is_asked


@pytest.mark.parametrize(
    "question",
    ["What must I do when I am sick?", "what do we do if it rains", "Tôi phải làm gì khi bị ốm?", "phai lam gi khi om"],
)
def test_what_to_do_asks_for_steps(question: str) -> None:
    assert words.asks_for_steps(question)


@pytest.mark.parametrize("forms", [("lose", "losing", "lost"), ("take", "taken", "took"), ("child", "children")])
def test_irregular_forms_are_one_word(forms: tuple[str, ...]) -> None:
    assert len({words.form(form).stem for form in forms}) == 1


def test_the_noun_leave_is_not_the_past_of_a_verb() -> None:
    assert words.form("leave").stem != words.form("left").stem
