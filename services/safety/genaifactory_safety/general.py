"""Recognisers of personal data of every country, and of the United States."""

from __future__ import annotations

import ipaddress

from genaifactory_common.normalise import UNSPACED
from genaifactory_safety import checks
from genaifactory_safety.recogniser import Pattern, StrictRecogniser

# Neither within a longer number nor the decimals of one.
NUMBER_START = r"(?<![0-9])(?<![0-9][.,])"
NUMBER_END = r"(?![0-9])"
_WORD = rf"[^\W{UNSPACED}]"
_LOCAL = rf"[^\s@\"(),:;<>\[\]\\{UNSPACED}]"
# The forms of addresses are Presidio 2.2.366's (https://github.com/microsoft/presidio, Microsoft, MIT licence).
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_PREFIX = r"(?:/(?:12[0-8]|1[01]\d|[1-9]?\d))?"
_HEX = "[0-9A-Fa-f]{1,4}"
_IPV6_START = r"(?<![\w:])"
_IPV6 = "|".join(
    (
        rf"(?:{_HEX}:){{7}}{_HEX}",
        rf"(?:{_HEX}:){{1,7}}:",
        rf":(?::{_HEX}){{1,7}}",
        *(rf"(?:{_HEX}:){{1,{before}}}(?::{_HEX}){{1,{7 - before}}}" for before in range(6, 0, -1)),
    )
)
_IPV6_FORMS = [
    ("IPv4-mapped", rf"{_IPV6_START}::(?:ffff(?::0{{1,4}})?:)?{_IPV4}{_PREFIX}\b"),
    (
        "IPv4-embedded",
        rf"{_IPV6_START}(?:(?:{_HEX}:){{1,5}}:(?:{_HEX}:){{0,4}}|(?:{_HEX}:){{6}}){_IPV4}{_PREFIX}\b",
    ),
    ("IPv6", rf"{_IPV6_START}(?:{_IPV6})(?:%[0-9a-zA-Z]+)?{_PREFIX}(?![\w:]|\.\d)"),
]
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
            accept=checks.is_card,
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
            accept=checks.is_iban,
            min_digits=6,
        ),
        *(
            StrictRecogniser(
                "IP_ADDRESS",
                [Pattern(name, form, 0.6) for name, form in forms],
                accept=_is_ip,
                doubtful=True,
                labels=("ip", "ipv4", "ipv6", "dia chi ip", "ip address"),
                min_digits=min_digits,
                literals=literals,
                hint=hint,
            )
            for forms, min_digits, literals, hint in (
                ([("IPv4", rf"\b{_IPV4}(?:/(?:[0-2]?\d|3[0-2]))?\b")], 4, (), r"\d\.\d+\.\d+\.\d"),
                (_IPV6_FORMS, 0, (":",), r":[0-9A-Fa-f]{0,4}:"),
            )
        ),
        StrictRecogniser(
            "US_SSN",
            [Pattern("ssn", rf"{NUMBER_START}\d{{3}}([- .])\d{{2}}\1\d{{4}}{NUMBER_END}", 0.6)],
            accept=checks.is_us_ssn,
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
            accept=checks.is_phone,
            doubtful=True,
            labels=("phone", "telephone", "mobile", "cell", "call", "tel", "fax", "whatsapp", "dien thoai", "sdt"),
            min_digits=8,
        ),
    ]


def _is_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_interface(text).ip
    except ValueError:
        return False
    # These identify nobody, and are common in manuals.
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)
