"""For every cut of a text the released text and the verdict are the same, and no part of a planted value leaves."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaifactory_common import specs
from genaifactory_common.normalise import normalise
from genaifactory_safety.policies import Policy, catalogue
from genaifactory_safety.scanner import StreamScanner
from genaifactory_safety.segments import OVERLAP_CHARACTERS, WINDOW_CHARACTERS
from genaifactory_safety.verdicts import Action
from tests.full import FULL

from .conftest import MASK, compiled, scan
from .planted import Planted, document

BLOCK_SECRETS = compiled(specs.Rule(entities=("SECRET",), output="block"), specs.Rule(entities=("PII",)))
TERMS = compiled(
    specs.Rule(entities=("PII",)),
    specs.Rule(entities=("SECRET",)),
    banned_terms=("không biết", "dự án mật", "room b204"),
)
DOCUMENTS = 250 if FULL else 100
"""Each with 40 cuts."""
PIECE_OF_A_VALUE = 6
"""So many consecutive characters of a value are a leak."""


def cuts_of(rng: random.Random, text: str, planted: list[Planted]) -> list[int]:
    """Random cuts in a random style: few, many, of a token's length, every character, or within one value."""
    match rng.randrange(5):
        case 0:
            return sorted(rng.choices(range(len(text) + 1), k=rng.randint(1, 4)))
        case 1:
            return sorted(rng.choices(range(len(text) + 1), k=len(text) // 3))
        case 2:
            return list(
                itertools.takewhile(lambda c: c < len(text), itertools.accumulate(iter(lambda: rng.randint(1, 8), 0)))
            )
        case 3 if planted:
            at = text.index(rng.choice(planted).text)
            return list(range(at, min(at + rng.randint(2, 90), len(text))))
        case _:
            width = rng.choice((1, 2, 5, 64, 700))
            return list(range(rng.randrange(width), len(text), width))


def leaks(released: str, planted: Iterable[Planted], text: str) -> list[str]:
    """Pieces of planted values in the released text that stand nowhere else in the original."""
    found = []
    released = re.sub(r"<[A-Z_]+>", "", released)
    for value in planted:
        rest = text.replace(value.value, "")
        for i in range(len(value.value) - PIECE_OF_A_VALUE + 1):
            piece = value.value[i : i + PIECE_OF_A_VALUE]
            if piece in released and piece not in rest:
                found.append(f"{value.entity}: {piece!r} of {value.text!r}")
    return found


@pytest.mark.slow
def test_random_cuts_release_the_same_and_leak_nothing() -> None:
    rng = random.Random(20240517)
    for _ in range(DOCUMENTS):
        text, planted = document(rng, sentences=rng.randint(3, 14))
        uncut = scan(text)
        assert not leaks(uncut[0], planted, text)
        spans = [range(value.start, value.start + len(value.value)) for value in planted]
        covered = {i for finding in uncut[1].findings for i in range(finding.start, finding.end)}
        assert all(covered.issuperset(span) for span in spans), text
        for finding in uncut[1].findings:
            # Nothing but planted values is masked.
            assert any(finding.start < s.stop and s.start < finding.end for s in spans), (text, finding)
        for _ in range(40):
            cuts = cuts_of(rng, text, planted)
            assert scan(text, MASK, cuts) == uncut, (text, cuts)


@pytest.mark.parametrize("policy", [BLOCK_SECRETS, TERMS], ids=["secrets block", "banned terms"])
def test_a_block_falls_at_the_same_place_for_every_cut(policy: Policy) -> None:
    rng = random.Random(7)
    blocked = 0
    for _ in range(60):
        text, planted = document(rng, sentences=8)
        uncut = scan(text, policy)
        assert not leaks(uncut[0], planted, text)
        if uncut[1].action is Action.BLOCK:
            blocked += 1
            *others, last = uncut[1].findings
            assert last.action is Action.BLOCK
            assert all(finding.action is not Action.BLOCK for finding in others)
            assert uncut[1].scanned_characters == last.end
        for _ in range(10):
            cuts = cuts_of(rng, text, planted)
            assert scan(text, policy, cuts) == uncut, (text, cuts)
    assert blocked > 10


HARD = (
    "0912", "345", "678", "1", "4111 ", "1111 ", "GB29 ", "NWBK ", "6016 ", " ", "  ", "\n", "\t", "\u2003", "\u2028",
    "@", "a", "example.com", ".", "-", "--", "-----BEGIN ", "RSA ", "PRIVATE KEY-----", "-----END PRIVATE KEY-----",
    "password", "secret", "=", " : ", '"', "'", "mật khẩu", " là ", "is", "\u200b", "\u0301", "\u0335", "４", "²",
    "AKIA", "IOSFODNN7EXAMPLE", "eyJhbGciOiJI", "gf-", "abcdefghijkl0", "CCCD", "001203004567", "STK", "(", ")", "+84",
    "đồng", "漢字", "à", "ế", "e\u0302\u0301", "😀", "đơn hàng", ":", "::", "fe80", "http://u:p@h", "123-45-6789", ",",
    "{", "}", "dự án", " mật", "dự", "x" * 40, "y" * 700, "z" * 1300, "1 " * 300, "B1234567", "51F-123.45", "Bearer ",
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(HARD) | st.text(max_size=3), max_size=40).map("".join),
    st.data(),
    st.sampled_from((MASK, BLOCK_SECRETS, TERMS)),
)
def test_the_result_does_not_depend_on_the_cut_for_any_text(text: str, data: st.DataObject, policy: Policy) -> None:
    uncut = scan(text, policy)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=30))
    assert scan(text, policy, cuts) == uncut
    if len(text) < 400:
        assert scan(text, policy, range(len(text))) == uncut


def test_a_scan_in_segments_finds_all_that_the_recognisers_find_in_the_whole_text() -> None:
    rng = random.Random(3)
    recognisers = [r for members in catalogue().values() for r in members if not r.doubtful]
    checked = 0
    for _ in range(400):
        text = "".join(rng.choices(HARD, k=rng.randint(5, 40)))
        covered = {i for finding in scan(text)[1].findings for i in range(finding.start, finding.end)}
        whole = normalise(text)
        for candidate in (found for recogniser in recognisers for found in recogniser.find(whole.text)):
            start, end = whole.original(candidate.start, candidate.end)
            if candidate.score >= 0.5 and end - start <= OVERLAP_CHARACTERS:
                checked += 1
                missed = [i for i in range(start, end) if i not in covered and not text[i].isspace()]
                assert not missed, (text, candidate.recogniser.entity, text[start:end])
    assert checked > 150


def test_ordinary_prose_leaves_word_by_word() -> None:
    scanner = StreamScanner(MASK)
    text = "Trợ lý trả lời bằng tiếng Việt, và nói rằng nó không biết nếu không có tài liệu. "
    held = 0
    for i, character in enumerate(text):
        scanner.push(character)
        held = max(held, scanner.held)
        if character == " ":
            assert scanner.held == 0, text[: i + 1]
    assert held <= max(map(len, text.split()))


def test_a_year_delays_the_text_by_one_word() -> None:
    scanner = StreamScanner(MASK)
    assert scanner.push("Năm 2024 ") == "Năm "
    assert scanner.push("công ") == "2024 công "


def test_a_number_waits_for_the_label_that_may_follow_it() -> None:
    scanner = StreamScanner(MASK)
    assert scanner.push("Số 001203004567 là ") == "Số "
    assert scanner.push("số CCCD của tôi, và đây là một đoạn dài hơn nữa.").startswith("<VN_CCCD> là số CCCD")


def test_an_unbroken_run_is_masked_and_memory_stays_bounded() -> None:
    scanner = StreamScanner(MASK)
    released = "".join(scanner.push("a1b2c3d4" * 50) for _ in range(2_000))
    assert scanner.held <= WINDOW_CHARACTERS
    released += scanner.push(" và tiếp tục.") + scanner.finish()
    assert released == "<UNSCANNABLE> và tiếp tục."
    finding = scanner.verdict().findings[0]
    assert (finding.start, finding.end, finding.scanner) == (0, 800_000, "length")


def test_an_unbroken_run_passes_where_the_policy_allows_everything() -> None:
    watching = compiled(specs.Rule(entities=("PII", "SECRET"), output="allow"))
    text = "a1b2c3d4" * 1_000 + " alice@example.com"
    released, verdict = scan(text, watching, range(0, len(text), 7))
    assert released == text
    assert (verdict.action, [f.entity for f in verdict.findings][-1]) == (Action.ALLOW, "EMAIL_ADDRESS")


def test_a_private_key_is_suppressed_to_its_footer_however_long_it_is() -> None:
    scanner = StreamScanner(MASK)
    released = scanner.push("Khoá: -----BEGIN RSA PRI") + scanner.push("VATE KEY-----\n")
    for _ in range(5_000):
        released += scanner.push("MIIEpAIBAAKCAQEA7bq8n0aE0fXkq\n")
        assert scanner.held <= WINDOW_CHARACTERS
    released += scanner.push("-----END RSA PRIV") + scanner.push("ATE KEY-----\nHết.") + scanner.finish()
    assert released == "Khoá: <SECRET_PRIVATE_KEY>\nHết."


def test_a_private_key_without_a_footer_is_suppressed_to_the_end() -> None:
    text = "x -----BEGIN PRIVATE KEY-----\nMIIE alice@example.com and more prose."
    released, verdict = scan(text)
    assert released == "x <SECRET_PRIVATE_KEY>"
    assert verdict.findings[0].end == len(text)


def test_a_private_key_header_does_not_hide_other_data_where_keys_are_allowed() -> None:
    policy = compiled(specs.Rule(entities=("SECRET_PRIVATE_KEY",), output="allow"), specs.Rule(entities=("PII",)))
    released, verdict = scan("-----BEGIN PRIVATE KEY----- alice@example.com", policy)
    assert released == "-----BEGIN PRIVATE KEY----- <EMAIL_ADDRESS>"
    assert [f.action for f in verdict.findings] == [Action.ALLOW, Action.MASK]


def test_nothing_leaves_after_a_block() -> None:
    scanner = StreamScanner(BLOCK_SECRETS)
    released = scanner.push("Đây là khoá AKIAIOSFODNN7EXAMPLE và ")
    assert released == "Đây là khoá "
    assert scanner.blocked
    assert scanner.push("phần còn lại") == ""
    assert scanner.finish() == ""
    assert scanner.verdict().action is Action.BLOCK


def test_a_long_table_of_numbers_is_scanned_in_windows_and_a_card_across_them_is_found() -> None:
    card = "4111 1111 1111 1111"
    for shift in range(40):
        text = "12 " * (330 + shift) + card + " " + "34 " * 500
        released, verdict = scan(text, MASK, range(0, len(text), 11))
        assert [f.entity for f in verdict.findings] == ["CREDIT_CARD"], shift
        assert released == text.replace(card, "<CREDIT_CARD>")


@pytest.mark.parametrize(
    "text",
    ["12 " * 40_000, "a=b " * 30_000, "x,1" * 40_000, "password: " * 12_000, "a@" * 60_000, "Một câu văn. " * 9_000],
)
def test_time_is_linear_in_the_text(text: str) -> None:
    def seconds(part: str) -> float:
        begun = time.process_time()
        scan(part, MASK, range(0, len(part), 50))
        return time.process_time() - begun

    eighth = min(seconds(text[: len(text) // 8]) for _ in range(2))
    # Quadratic would be 64 times; a linear scan 8.
    assert seconds(text) < 24 * eighth + 0.05
