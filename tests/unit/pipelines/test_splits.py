"""Splits without leakage, balance, and near-duplicates."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets import duplicates, splits
from genaifactory_pipelines.datasets.splits import Splits
from tests.unit.pipelines.examples import example, examples, question


def test_case_punctuation_and_lookalikes_make_no_difference() -> None:
    one = duplicates.shingles("What is RAID6, and when do I use it?")
    assert duplicates.similarity(one, duplicates.shingles("ｗｈａｔ is raid6 - and when do I use it")) == 1.0
    assert duplicates.similarity(one, duplicates.shingles("How do I set the time zone?")) < 0.1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="abc ", min_size=1, max_size=30), max_size=30))
def test_each_pair_that_is_reported_is_as_similar_as_it_says_and_identical_texts_always_are(texts: list[str]) -> None:
    found = {(later, earlier): similarity for later, earlier, similarity in duplicates.pairs(texts, 0.6)}
    sets = [duplicates.shingles(text) for text in texts]
    for (later, earlier), similarity in found.items():
        assert later > earlier
        assert duplicates.similarity(sets[later], sets[earlier]) == similarity >= 0.6
    for later in range(len(texts)):
        for earlier in range(later):
            if sets[later] == sets[earlier]:
                assert (later, earlier) in found


def test_nearly_all_pairs_above_the_threshold_are_found() -> None:
    chance = random.Random(1)
    texts = []
    for number in range(300):
        words = [question(number * 3 + i) for i in range(4)]
        texts.append(" ".join(words))
        words[chance.randrange(4)] = question(5000 + number)
        texts.append(" ".join(words))
    sets = [duplicates.shingles(text) for text in texts]
    wanted = {(i, j) for i in range(len(texts)) for j in range(i) if duplicates.similarity(sets[i], sets[j]) >= 0.5}
    found = {(later, earlier) for later, earlier, _ in duplicates.pairs(texts, 0.5)}
    assert found <= wanted
    assert len(wanted) > 100
    assert len(found) >= 0.85 * len(wanted)


def test_the_newest_are_tested_on_and_nothing_is_in_two_splits() -> None:
    parts = splits.split(examples(100), validation=0.1, test=0.2)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [70, 10, 20]
    newest = [max(each.time for each in part if each.time) for part in (parts.train, parts.validation)]
    oldest = [min(each.time for each in part if each.time) for part in (parts.validation, parts.test)]
    assert newest[0] < oldest[0]
    assert newest[1] < oldest[1]
    assert splits.leaks(parts) == []


def test_a_conversation_stays_together_with_its_newest_question() -> None:
    items = examples(50)
    items[0] = example(0, group="c-49")
    parts = splits.split(items, validation=0.1, test=0.2)
    assert {"req-00000", "req-00049"} <= {each.id for each in parts.test}


def test_questions_that_are_nearly_the_same_stay_together() -> None:
    items = examples(50)
    items[0] = example(0, input=f"{question(49)} please")
    parts = splits.split(items, validation=0.1, test=0.2)
    assert {"req-00000", "req-00049"} <= {each.id for each in parts.test}


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(10, 60), st.integers(1, 12))
def test_a_split_is_whole_disjoint_and_does_not_depend_on_the_order(
    chance: random.Random, count: int, conversations: int
) -> None:
    items = [example(number, group=f"c-{chance.randrange(conversations + number // 2 + 1)}") for number in range(count)]
    try:
        parts = splits.split(items, validation=0.1, test=0.2)
    except InvalidArgument:
        return
    ids = [each.id for part in (parts.train, parts.validation, parts.test) for each in part]
    assert sorted(ids) == [each.id for each in items]
    assert splits.leaks(parts) == []
    chance.shuffle(items)
    assert splits.split(items, validation=0.1, test=0.2) == parts


def test_a_split_that_would_be_empty_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"The validation split is empty: 30 examples are 1 groups") as refused:
        splits.split(examples(30, group="c"), validation=0.1, test=0.2)
    assert refused.value.field == "validation"


def test_what_two_splits_share_is_named() -> None:
    copy = example(7, input=question(1) + "!")
    assert splits.leaks(Splits((example(1),), (example(2),), (copy,))) == [
        "'req-00001' in train and 'req-00007' in test belong together"
    ]


def test_a_topic_of_many_examples_is_cut_down_to_so_many_times_the_median() -> None:
    items = [example(number, topic="common" if number < 60 else f"topic {number // 5}") for number in range(100)]
    kept, left_out = splits.balanced(items, most_times_median=2)
    assert sum(each.topic == "common" for each in kept) == 10
    assert {each.topic for each in left_out} == {"common"}
    assert len(kept) + len(left_out) == 100
    assert splits.balanced(items[::-1], most_times_median=2)[0] == kept
    assert splits.balanced([], most_times_median=2) == ([], [])
