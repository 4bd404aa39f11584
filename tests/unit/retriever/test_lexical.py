"""Terms, BM25 and coverage: Vietnamese with and without diacritics, English stems."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from genaifactory_common import english
from genaifactory_retriever import analysis, lexical


class Corpus:
    """Passages with their statistics, scored as a store would."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        encoded = [lexical.passage((), text) for text in texts]
        self.vectors = [vector for _, vector in encoded]
        self.frequencies: Counter[int] = Counter()
        for counts, _ in encoded:
            self.frequencies.update(counts.keys())

    def scores(self, query: str) -> list[float]:
        weights = lexical.query_weights(analysis.words(query))
        vector = lexical.query_vector(weights, self.frequencies, len(self.texts))
        wanted = dict(zip(vector.indices, vector.values, strict=True))
        return [
            sum(wanted.get(i, 0) * v for i, v in zip(stored.indices, stored.values, strict=True))
            for stored in self.vectors
        ]

    def coverage(self, query: str) -> float:
        return lexical.coverage(analysis.words(query), self.texts, self.frequencies, len(self.texts))


CORPUS = Corpus(
    "Khởi động máy tính từ thanh bộ nhớ USB.",
    "Khoi dong may tinh tu thanh bo nho USB.",
    "Khói đen bốc lên trong đồng ruộng.",
    "The partitions were resized by the installer.",
    "Rice grows in the delta of the river.",
)


def test_an_exact_match_beats_one_without_diacritics() -> None:
    exact, bare, other, *_ = CORPUS.scores("khởi động")
    assert exact > bare > other > 0


def test_a_query_without_diacritics_finds_both_forms() -> None:
    exact, bare, other, *rest = CORPUS.scores("khoi dong may tinh")
    assert min(exact, bare) > other
    assert rest == [0, 0]


def test_decomposed_text_is_the_same_text() -> None:
    query = "khởi động"
    assert CORPUS.scores(unicodedata.normalize("NFD", query)) == CORPUS.scores(query)


def test_both_styles_of_tone_marks_are_one_word() -> None:
    assert analysis.words("hoà thuỷ quý") == analysis.words("hòa thủy quý")


def test_the_letter_d_with_stroke_folds_to_d() -> None:
    assert [word.folded for word in analysis.words("Đĩa đặt")] == ["dia", "dat"]


def test_english_forms_of_a_word_match() -> None:
    assert CORPUS.scores("resizing a partition")[3] > 0


def test_rare_words_weigh_more_than_common_ones() -> None:
    corpus = Corpus("the boot loader", "the boot disk", "the boot menu", "the rescue mode")
    scores = corpus.scores("boot rescue")
    assert scores[3] > max(scores[:3])


def test_neighbouring_syllables_count_more_than_scattered_ones() -> None:
    corpus = Corpus("phân vùng của đĩa", "vùng này được phân ra", "x")
    together, apart, _ = corpus.scores("phân vùng")
    assert together > apart


def test_a_query_of_unknown_words_has_an_empty_vector() -> None:
    vector = lexical.query_vector(lexical.query_weights(analysis.words("zzz")), {}, 5)
    assert vector.indices == []


def test_a_very_long_query_is_bounded() -> None:
    assert len(lexical.query_weights(analysis.words(" ".join(f"w{i}" for i in range(4000))))) <= 512


@pytest.mark.parametrize(
    ("query", "least", "most"),
    [
        ("How were the partitions resized?", 1.0, 1.0),
        ("What is the capital of France?", 0.0, 0.0),
        ("Làm sao khởi động từ USB?", 0.8, 1.0),
        ("lam sao khoi dong tu USB", 0.6, 1.0),
        ("Thủ đô của nước Pháp là gì?", 0.0, 0.1),
        ("Do the partitions grow coconuts?", 0.2, 0.7),
    ],
)
def test_coverage_is_the_share_of_informative_terms_in_the_best_passage(query: str, least: float, most: float) -> None:
    assert least <= CORPUS.coverage(query) <= most + 1e-9


def test_a_query_without_informative_words_has_full_coverage() -> None:
    assert CORPUS.coverage("what is it?") == 1.0
    assert Corpus().coverage("what is it?") == 0.0


HANDBOOK = Corpus(
    "A lost hardware key is reported to the IT desk within one hour.",
    "Days that are not taken by then are lost; they are not paid out.",
    "Mothers have six months of maternity leave.",
    "Vé máy bay được đặt trước ít nhất 10 ngày.",
)


@pytest.mark.parametrize(
    "question",
    [
        "What must I do when I lose my hardware key?",
        "What happens to the days that I do not take?",
        "Which days must I get to take?",
        "How long is the maternity leave?",
    ],
)
def test_modal_and_question_words_do_not_lower_the_coverage(question: str) -> None:
    asked = analysis.words(english.QUESTION_PHRASES.sub(" ", question))
    assert lexical.coverage(asked, HANDBOOK.texts, HANDBOOK.frequencies, 4) == 1.0


def test_an_irregular_form_finds_the_passages_of_the_others() -> None:
    lost, taken, *_ = HANDBOOK.scores("losing keys")
    assert min(lost, taken) > 0
    assert HANDBOOK.scores("take")[1] > 0


def test_a_vietnamese_word_without_marks_counts_though_it_looks_like_a_function_word() -> None:
    assert HANDBOOK.coverage("ve may") == 1.0
    assert HANDBOOK.coverage("ve may rua") < 0.9
