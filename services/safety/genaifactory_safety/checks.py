"""Checks of matches: checksums, structures, and numbers that are never issued."""

from __future__ import annotations

import re

import phonenumbers

# The national part of an IBAN by country, in the notation of SWIFT's IBAN registry (ISO 13616-2): a letters, n digits,
# c either.
_IBAN_STRUCTURES = """
AD:8n12c AE:19n AL:8n16c AT:16n AZ:4a20c BA:16n BE:12n BG:4a6n8c BH:4a14c BR:23n1a1c BY:4c4n16c CH:5n12c CR:18n
CY:8n16c CZ:20n DE:18n DK:14n DO:4c20n EE:16n EG:25n ES:20n FI:14n FO:14n FR:10n11c2n GB:4a14n GE:2c16n GI:4a15c GL:14n
GR:7n16c GT:24c HR:17n HU:24n IE:4c14n IL:19n IQ:4a15n IS:22n IT:1a10n12c JO:4a4n18c KW:4a22c KZ:3n13c LB:4n20c
LC:4a24c LI:5n12c LT:16n LU:3n13c LV:4a13c LY:21n MC:10n11c2n MD:20c ME:18n MK:3n10c2n MR:23n MT:4a5n18c MU:4a19n3a
NL:4a10n NO:11n PK:4c16n PL:24n PS:4c21n PT:21n QA:4a21c RO:4a16c RS:18n SA:2n18c SC:4a20n3a SE:20n SI:15n SK:20n
SM:1a10n12c TL:19n TN:20n TR:5n17c UA:6n19c VA:18n VG:4c16n XK:16n
"""
_CLASSES = {"a": "[A-Z]", "n": "[0-9]", "c": "[A-Z0-9]"}
_IBAN_FORMS = {
    country: re.compile(re.sub(r"(\d+)([anc])", lambda part: f"{_CLASSES[part[2]]}{{{part[1]}}}", structure))
    for country, _, structure in (entry.partition(":") for entry in _IBAN_STRUCTURES.split())
}
# Printed as examples on cards and in advertisements; the Social Security Administration does not issue them.
_SSN_SAMPLES = frozenset(("123456789", "987654320", "078051120"))


def digits_of(text: str) -> str:
    """The digits of a match, without what separates them."""
    return "".join(c for c in text if c.isdigit())


def is_card(text: str) -> bool:
    """Whether it has a payment card's length and check digit (Luhn's, ISO/IEC 7812-1)."""
    digits = digits_of(text)
    return 14 <= len(digits) <= 19 and len(set(digits)) > 1 and _luhn(digits)


def _luhn(digits: str) -> bool:
    ones = [int(digit) for digit in digits[::-2]]
    doubled = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(ones) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether it has its country's structure and valid check digits (ISO 7064, MOD 97-10). Ignores blanks, hyphens."""
    iban = text.replace(" ", "").replace("-", "").upper()
    form = _IBAN_FORMS.get(iban[:2])
    if form is None or not form.fullmatch(iban, 4):
        return False
    number = "".join(str(int(c, 36)) for c in f"{iban[4:]}{iban[:2]}00")
    return iban[2:4] == f"{98 - int(number) % 97:02}"


def is_us_ssn(text: str) -> bool:
    """Whether a social security number of nine digits can have been issued: no part is zeros, and it is no sample."""
    digits = digits_of(text)
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return (
        len(set(digits)) > 1
        and area not in ("000", "666")
        and group != "00"
        and serial != "0000"
        and digits not in _SSN_SAMPLES
    )


def is_phone(text: str) -> bool:
    """Whether a number, with a country prefix or of North America, has a length that is in use there."""
    try:
        number = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException:
        return False
    return bool(phonenumbers.is_possible_number(number))
