"""The checks of matches; examples are from the public registries."""

from __future__ import annotations

import pytest

from genaifactory_safety import checks

# SWIFT's IBAN registry, the example of each country.
IBANS = (
    "AL47212110090000000235698741", "AZ21NABZ00000000137010001944", "BR1800360305000010009795493C1",
    "CR05015202001026284066", "DE89370400440532013000", "DO28BAGR00000001212453611324",
    "FR1420041010050500013M02606", "GB29NWBK60161331926819", "JO94CBJO0010000000000131000302",
    "LC55HEMM000100010012001200023015", "MT84MALT011000012345MTLCAST001S", "MU17BOMM0101101030300200000MUR",
    "NO9386011117947", "PS92PALS000000000400123456702", "PT50000201231234567890154", "QA58DOHB00001234567890ABCDEFG",
    "SC18SSCB11010000000000001497USD", "TR330006100519786457841326", "XK051212012345678906",
)  # fmt: skip


@pytest.mark.parametrize("iban", IBANS)
def test_the_registrys_ibans_are_accepted_in_any_grouping_and_rejected_with_a_wrong_digit(iban: str) -> None:
    grouped = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
    assert all(map(checks.is_iban, (iban, grouped, grouped.replace(" ", "-"), iban.lower())))
    others = [iban[:i] + "9" + iban[i + 1 :] for i in range(2, len(iban)) if iban[i] in "0123456780"]
    assert others
    assert not any(map(checks.is_iban, others))


@pytest.mark.parametrize(
    "text",
    [
        "ZZ46370400440532013000",  # no such country
        "DE8937040044053201300",  # too short
        "DE893704004405320130001",  # too long
        "GB29123460161331926819",  # a bank's code has letters
        "DE00370400440532013097",
        "DE٨٩370400440532013000",
    ],
)
def test_a_text_that_only_looks_like_an_iban_is_rejected(text: str) -> None:
    assert not checks.is_iban(text)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("4111 1111 1111 1111", True),
        ("5555-5555-5555-4444", True),
        ("378282246310005", True),
        ("30569309025904", True),
        ("4111 1111 1111 1112", False),
        ("0000 0000 0000 0000", False),
        ("79927398713", False),  # Luhn's example: too short for a card
    ],
)
def test_a_card_number_needs_a_valid_length_and_check_digit(number: str, expected: bool) -> None:
    assert checks.is_card(number) is expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("536-90-4399", True),
        ("000-12-3456", False),
        ("666-12-3456", False),
        ("536-00-4399", False),
        ("536-90-0000", False),
        ("111-11-1111", False),
        ("078-05-1120", False),
    ],
)
def test_only_social_security_numbers_that_can_have_been_issued_are_accepted(number: str, expected: bool) -> None:
    assert checks.is_us_ssn(number) is expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [("+84 912 345 678", True), ("(212) 555-0123", True), ("+1 23", False), ("+999 12345678", False)],
)
def test_a_phone_number_needs_a_length_of_its_country(number: str, expected: bool) -> None:
    assert checks.is_phone(number) is expected
