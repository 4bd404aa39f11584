"""Personal data that looks the same in every country, and that of the United States; built on Presidio's checks."""

from __future__ import annotations

import ipaddress

import phonenumbers
from presidio_analyzer import Pattern
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    IbanRecognizer,
    IpRecognizer,
    UsSsnRecognizer,
)

from genaifactory_safety.normalise import UNSPACED
from genaifactory_safety.recogniser import StrictRecogniser, digits_of, presidio_accepts

# Neither within a longer number nor the decimals of one.
NUMBER_START = r"(?<![0-9])(?<![0-9][.,])"
NUMBER_END = r"(?![0-9])"
_WORD = rf"[^\W{UNSPACED}]"
_LOCAL = rf"[^\s@\"(),:;<>\[\]\\{UNSPACED}]"
_IBAN_FORM = r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}"


def recognisers() -> list[StrictRecogniser]:
    """New recognisers of this module's entities."""
    return [
        StrictRecogniser(
            "EMAIL_ADDRESS",
            # Presidio's pattern without its look-up of public suffixes, which misses alice@mail.internal.
            [Pattern("email", rf"{_LOCAL}+@(?:{_WORD}+(?:-+{_WORD}+)*\.)+(?![\d_]){_WORD}(?:{_WORD}|-)*", 1.0)],
            literals=("@",),
        ),
        StrictRecogniser(
            "CREDIT_CARD",
            [
                Pattern(
                    "groups", rf"{NUMBER_START}[2-6]\d{{3}}[ .-]?\d{{4}}[ .-]?\d{{4}}[ .-]?\d{{1,7}}{NUMBER_END}", 1.0
                ),
                Pattern("4-6-4", rf"{NUMBER_START}3\d{{3}}[ .-]?\d{{6}}[ .-]?\d{{4,5}}{NUMBER_END}", 1.0),
                Pattern("spelt", rf"{NUMBER_START}[2-6](?:[ .-]\d){{13,18}}{NUMBER_END}", 1.0),
            ],
            accept=_is_card,
            min_digits=14,
        ),
        StrictRecogniser(
            "IBAN_CODE",
            [
                Pattern(
                    "iban",
                    rf"{_IBAN_FORM}(?:[ -]?[A-Za-z0-9]{{1,3}})?(?![A-Za-z0-9])",
                    1.0,
                ),
                # The text after an IBAN may look like its last group.
                Pattern(
                    "iban, then a word",
                    rf"{_IBAN_FORM}(?![A-Za-z0-9])",
                    1.0,
                ),
            ],
            accept=_is_iban,
            min_digits=6,
        ),
        *(
            StrictRecogniser(
                "IP_ADDRESS",
                [pattern for pattern in IpRecognizer.PATTERNS if pattern.name in names],
                accept=_is_ip,
                doubtful=True,
                labels=("ip", "ipv4", "ipv6", "dia chi ip", "ip address"),
                min_digits=min_digits,
                literals=literals,
                hint=hint,
            )
            for names, min_digits, literals, hint in (
                (("IPv4",), 4, (), r"\d\.\d+\.\d+\.\d"),
                (("IPv6", "IPv4_mapped", "IPv4_embedded"), 0, (":",), r":[0-9A-Fa-f]{0,4}:"),
            )
        ),
        StrictRecogniser(
            "US_SSN",
            [Pattern("ssn", rf"{NUMBER_START}\d{{3}}([- .])\d{{2}}\1\d{{4}}{NUMBER_END}", 0.6)],
            accept=presidio_accepts(UsSsnRecognizer()),
            doubtful=True,
            labels=("ssn", "social security", "social security number"),
            min_digits=9,
            languages=("en",),
        ),
        StrictRecogniser(
            "PHONE_NUMBER",
            [
                Pattern("international", r"(?<![0-9])(?:\+|\(\+)\d[\d .()\-]{6,20}\d(?!\d)", 0.75),
                Pattern("international, shortest", r"(?<![0-9])\+\d{8,15}(?!\d)", 0.75),
                Pattern(
                    "north american", rf"{NUMBER_START}\(?[2-9]\d{{2}}\)?[ .-]\d{{3}}[ .-]\d{{4}}{NUMBER_END}", 0.6
                ),
            ],
            accept=_is_phone,
            doubtful=True,
            labels=("phone", "telephone", "mobile", "cell", "call", "tel", "fax", "whatsapp", "dien thoai", "sdt"),
            min_digits=8,
        ),
    ]


def _is_card(text: str) -> bool:
    digits = digits_of(text)
    return 14 <= len(digits) <= 19 and len(set(digits)) > 1 and _luhn(digits)


_CARD = CreditCardRecognizer()
_IBAN = IbanRecognizer()
_IP = presidio_accepts(IpRecognizer())


def _luhn(digits: str) -> bool:
    return bool(_CARD.validate_result(digits))


def _is_iban(text: str) -> bool:
    return _IBAN.validate_result(text.replace(" ", "").replace("-", "").upper()) is True


def _is_ip(text: str) -> bool:
    if not _IP(text):
        return False
    address = ipaddress.ip_interface(text).ip
    # These name nobody and fill every manual.
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def _is_phone(text: str) -> bool:
    try:
        number = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException:
        return False
    return bool(phonenumbers.is_possible_number(number))
