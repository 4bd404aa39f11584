"""Questions without the masks of guardrails."""

from __future__ import annotations

import pytest

from genaifactory_common.masking import mask, question_without_masks


@pytest.mark.parametrize(
    ("masked", "asked"),
    [
        ("My mail is <EMAIL_ADDRESS>, what is RAID6?", "what is RAID6?"),
        ("What is RAID6? My mail is <EMAIL_ADDRESS>.", "What is RAID6?"),
        ("Email của tôi là <EMAIL_ADDRESS>, RAID6 là gì?", "RAID6 là gì?"),
        ("I am <VN_CCCD>, phone <VN_PHONE>.\nHow many days of leave do I have?", "How many days of leave do I have?"),
        ("Can <EMAIL_ADDRESS> take annual leave?", "Can take annual leave?"),
        ("Send the leave form to <EMAIL_ADDRESS>. Thanks", "Send the leave form to . Thanks"),
        ("<EMAIL_ADDRESS>", ""),
        ("<EMAIL_ADDRESS>, <VN_PHONE>.", ""),
        ("What does <HTML> mean?", "What does <HTML> mean?"),
        ("Is 1 < 2 and A_B > C?", "Is 1 < 2 and A_B > C?"),
    ],
)
def test_masks_and_clauses_that_only_introduce_them_are_removed(masked: str, asked: str) -> None:
    assert question_without_masks(masked) == asked


def test_a_mask_as_guardrails_write_it_is_removed() -> None:
    assert question_without_masks(f"Can {mask('CREDIT_CARD')} be paid with?") == "Can be paid with?"
