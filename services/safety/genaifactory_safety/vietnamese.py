"""Recognisers of Vietnamese personal data. Most of it is bare digits, so the labels around a number decide.

Names of people and addresses are not recognised: without a model they cannot be distinguished from other words.
"""

from __future__ import annotations

import re

from genaifactory_safety.checks import digits_of
from genaifactory_safety.general import NUMBER_END, NUMBER_START
from genaifactory_safety.recogniser import Pattern, StrictRecogniser

_IDENTITY = (
    "cccd", "can cuoc cong dan", "can cuoc", "so dinh danh", "ma dinh danh", "dinh danh ca nhan", "cmnd", "cmt",
    "chung minh nhan dan", "chung minh thu", "citizen id", "citizen identity", "id card", "identity card",
    "identity number", "national id", "giay to tuy than",
)  # fmt: skip

_PHONE = (
    "sdt", "so dien thoai", "dien thoai", "dt", "di dong", "dtdd", "hotline", "zalo", "lien he", "goi", "phone",
    "mobile", "tel", "call", "whatsapp", "viber",
)  # fmt: skip
_ACCOUNT = (
    "stk", "so tai khoan", "so tk", "tai khoan so", "tai khoan ngan hang", "tk ngan hang", "tai khoan",
    "account number", "account no", "bank account", "acct",
)  # fmt: skip

_DATE = re.compile(r"(?:19|20)\d\d([-. ])[01]\d\1[0-3]\d|[0-3]?\d([-.])[01]?\d\2(?:19|20)\d\d")
# Circular 59/2021/TT-BCA: codes of provinces and cities at birth.
_PROVINCES = frozenset(
    (1, 2, 4, 6, 8, 10, 11, 12, 14, 15, 17, 19, 20, 22, 24, 25, 26, 27, 30, 31, 33, 34, 35, 36, 37, 38, 40, 42, 44, 45,
     46, 48, 49, 51, 52, 54, 56, 58, 60, 62, 64, 66, 67, 68, 70, 72, 74, 75, 77, 79, 80, 82, 83, 84, 86, 87, 89, 91, 92,
     93, 94, 95, 96)
)  # fmt: skip
# Excludes an amount of money or a quantity.
_NOT_AMOUNT = r"(?!\s?(?:đ|đồng|vnđ|VNĐ|vnd|VND|usd|USD|eur|EUR|triệu|tỷ|nghìn|ngàn|k|%|km|kg|m2)(?!\w))(?![.,]\d)"
_ALONE = r"(?<![0-9A-Za-z_])(?<![0-9][.,])"
_ALONE_END = rf"(?![0-9A-Za-z_]){_NOT_AMOUNT}"


def recognisers() -> list[StrictRecogniser]:
    """New recognisers of this module's entities."""
    return [
        StrictRecogniser(
            "VN_CCCD",
            [Pattern("12 digits", rf"{NUMBER_START}0\d{{2}}[ .-]?\d{{3}}[ .-]?\d{{3}}[ .-]?\d{{3}}{NUMBER_END}", 0.4)],
            accept=_is_cccd,
            labels=_IDENTITY,
            doubtful=True,
            min_digits=12,
        ),
        StrictRecogniser(
            "VN_CMND",
            [Pattern("9 digits", rf"{_ALONE}\d{{3}}[ .-]?\d{{3}}[ .-]?\d{{3}}{_ALONE_END}", 0.1)],
            labels=_IDENTITY,
            doubtful=True,
            min_digits=9,
        ),
        StrictRecogniser(
            "VN_TAX_CODE",
            [
                Pattern("branch", rf"{NUMBER_START}\d{{10}} ?- ?\d{{3}}{NUMBER_END}", 0.6),
                Pattern("10 digits", rf"{_ALONE}\d{{10}}{_ALONE_END}", 0.3),
                Pattern("grouped", rf"{_ALONE}\d{{2}}[ .]\d{{4}}[ .]\d{{4}}{_ALONE_END}", 0.3),
            ],
            accept=_is_tax_code,
            labels=("mst", "ma so thue", "ma so doanh nghiep", "msdn", "msthue", "tax code", "tax id", "tax number"),
            doubtful=True,
            min_digits=10,
        ),
        StrictRecogniser(
            "VN_PHONE",
            [
                Pattern(
                    "mobile",
                    rf"{NUMBER_START}(?:\(\+?84\)|\+?84|0084|0)[ .-]?(?:\(0\)[ .-]?)?"
                    rf"(?:3[2-9]|5[25689]|7[06-9]|8[1-9]|9[0-9])(?:[ .-]?\d){{7}}{NUMBER_END}",
                    0.8,
                ),
                # With a separator before every digit.
                Pattern("spelt", rf"{NUMBER_START}0[ .-][35789](?:[ .-]\d){{8}}{NUMBER_END}", 0.8),
                Pattern(
                    "landline",
                    rf"{NUMBER_START}(?:\((?:0|\+?84)?2\d{{1,2}}\)|(?:\(\+?84\)|\+?84|0)[ .-]?2\d{{1,2}})"
                    rf"(?:[ .-]?\d){{7,8}}{NUMBER_END}",
                    0.6,
                ),
            ],
            accept=_is_phone,
            labels=_PHONE,
            doubtful=True,
            min_digits=10,
        ),
        StrictRecogniser(
            "VN_SOCIAL_INSURANCE",
            [Pattern("10 digits", rf"{_ALONE}\d{{10}}{_ALONE_END}", 0.1)],
            labels=("bhxh", "bao hiem xa hoi", "ma so bao hiem", "so bao hiem", "social insurance"),
            doubtful=True,
            min_digits=10,
        ),
        StrictRecogniser(
            "VN_HEALTH_INSURANCE",
            [
                Pattern("15 characters", r"(?<![0-9A-Za-z])[A-Z]{2}-?[1-5][ -]?\d{2}[ -]?\d{10}(?![0-9A-Za-z])", 0.55),
                Pattern("10 digits", rf"{_ALONE}\d{{10}}{_ALONE_END}", 0.1),
            ],
            labels=("bhyt", "bao hiem y te", "health insurance"),
            doubtful=True,
            min_digits=10,
        ),
        StrictRecogniser(
            "VN_BANK_ACCOUNT",
            [Pattern("6 to 19 digits", rf"{_ALONE}\d(?:[ .-]?\d){{5,18}}{_ALONE_END}", 0.1)],
            accept=_is_not_date,
            labels=_ACCOUNT,
            doubtful=True,
            min_digits=6,
        ),
        StrictRecogniser(
            "VN_PASSPORT",
            [Pattern("letter and digits", r"(?<![0-9A-Za-z])[A-Z]?\d{7,8}(?![0-9A-Za-z])", 0.1)],
            labels=("ho chieu", "so ho chieu", "passport"),
            doubtful=True,
            min_digits=7,
        ),
        StrictRecogniser(
            "VN_DRIVER_LICENSE",
            [Pattern("12 digits", rf"{_ALONE}\d{{12}}{_ALONE_END}", 0.1)],
            labels=("gplx", "giay phep lai xe", "bang lai", "bang lai xe", "driving licence", "driver license"),
            doubtful=True,
            min_digits=12,
        ),
        StrictRecogniser(
            "VN_LICENSE_PLATE",
            [
                Pattern("dotted", rf"{_ALONE}[1-9]\d ?-?[A-Z](?:[A-Z]|\d)?[ -]\d{{3}}\.\d{{2}}(?![0-9A-Za-z])", 0.6),
                Pattern("plain", rf"{_ALONE}[1-9]\d ?-?[A-Z](?:[A-Z]|\d)?[ -]?\d{{4,5}}(?![0-9A-Za-z])", 0.3),
            ],
            labels=("bien so", "bien so xe", "bien kiem soat", "bks", "license plate", "licence plate", "plate number"),
            doubtful=True,
            min_digits=6,
        ),
    ]


def tax_code_is_valid(digits: str) -> bool:
    """Whether the last of ten digits is the check digit of a mã số thuế (weights modulo 11)."""
    if len(set(digits)) == 1:
        return False
    weighted = sum(
        int(digit) * weight for digit, weight in zip(digits, (31, 29, 23, 19, 17, 13, 7, 5, 3), strict=False)
    )
    return 10 - weighted % 11 == int(digits[9])


def _is_tax_code(text: str) -> bool:
    return tax_code_is_valid(digits_of(text)[:10])


def _is_cccd(text: str) -> bool:
    # Province, century and sex (0-3 are born before 2100), year of birth, six digits at random. There is no checksum.
    digits = digits_of(text)
    return int(digits[:3]) in _PROVINCES and digits[3] in "0123"


def _is_not_date(text: str) -> bool:
    return not _DATE.match(text)


def _is_phone(text: str) -> bool:
    digits = digits_of(text.replace("(0)", ""))
    national = digits.removeprefix("0084").removeprefix("84") if not digits.startswith("02") else digits[1:]
    national = national.removeprefix("0")
    return len(national) == (10 if national.startswith("2") else 9)
