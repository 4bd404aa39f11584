"""The entities that are found, in which forms, and the texts that pass unmasked."""

from __future__ import annotations

import unicodedata

import pytest

from genaifactory_common import specs
from genaifactory_safety.policies import catalogue, groups
from genaifactory_safety.vietnamese import tax_code_is_valid

from .conftest import MASK, compiled, scan
from .planted import luhn

FOUND = [
    ("EMAIL_ADDRESS", "Viết cho an.nguyen+work@mail.example.com.vn nhé", "an.nguyen+work@mail.example.com.vn"),
    ("EMAIL_ADDRESS", "ask alice@corp.internal.", "alice@corp.internal"),
    ("CREDIT_CARD", "4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("CREDIT_CARD", "thẻ 5555555555554444.", "5555555555554444"),
    ("CREDIT_CARD", "amex 3782-822463-10005", "3782-822463-10005"),
    ("CREDIT_CARD", "2-series 2221 0000 0000 0009", "2221 0000 0000 0009"),
    ("CREDIT_CARD", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
    ("CREDIT_CARD", '{"card":"4111111111111111","n":1}', "4111111111111111"),
    ("IBAN_CODE", "IBAN GB29 NWBK 6016 1331 9268 19 is mine", "GB29 NWBK 6016 1331 9268 19"),
    ("IBAN_CODE", "de89370400440532013000", "de89370400440532013000"),
    ("IP_ADDRESS", "from 203.0.113.7 today", "203.0.113.7"),
    ("IP_ADDRESS", "host 2001:db8:85a3::8a2e:370:7334 is down", "2001:db8:85a3::8a2e:370:7334"),
    ("US_SSN", "his SSN is 536-22-1867.", "536-22-1867"),
    ("PHONE_NUMBER", "call +44 20 7946 0958 now", "+44 20 7946 0958"),
    ("PHONE_NUMBER", "call (415) 555-2671 now", "(415) 555-2671"),
    ("VN_PHONE", "Gọi 0912345678.", "0912345678"),
    ("VN_PHONE", "Gọi 0912.345.678", "0912.345.678"),
    ("VN_PHONE", "Gọi 091 234 5678 nhé", "091 234 5678"),
    ("VN_PHONE", "+84 912 345 678", "+84 912 345 678"),
    ("VN_PHONE", "(+84) 912345678", "(+84) 912345678"),
    ("VN_PHONE", "84912345678", "84912345678"),
    ("VN_PHONE", "VP: (024) 3825 1234", "(024) 3825 1234"),
    ("VN_PHONE", "VP: 028.3822.9999", "028.3822.9999"),
    ("VN_PHONE", "số 0 9 1 2 3 4 5 6 7 8", "0 9 1 2 3 4 5 6 7 8"),
    ("VN_CCCD", "Số căn cước công dân: 001203004567", "001203004567"),
    ("VN_CCCD", "CCCD 001 203 004 567", "001 203 004 567"),
    ("VN_CCCD", "so can cuoc cong dan 079301234567", "079301234567"),
    ("VN_CCCD", "001203004567 (số CCCD của tôi)", "001203004567"),
    ("VN_CMND", "CMND số 012345678 do CA Hà Nội cấp", "012345678"),
    ("VN_TAX_CODE", "MST: 0100109106", "0100109106"),
    ("VN_TAX_CODE", "chi nhánh 0100109106-001", "0100109106-001"),
    ("VN_SOCIAL_INSURANCE", "Mã số BHXH 7912345678", "7912345678"),
    ("VN_SOCIAL_INSURANCE", "bảo hiểm xã hội: 7912345678", "7912345678"),
    ("VN_HEALTH_INSURANCE", "thẻ BHYT DN4010123456789", "DN4010123456789"),
    ("VN_BANK_ACCOUNT", "STK 19034567890123 Techcombank", "19034567890123"),
    ("VN_BANK_ACCOUNT", "số tài khoản ngân hàng của tôi là 1234 5678 901", "1234 5678 901"),
    ("VN_BANK_ACCOUNT", "1234567890123 (STK Vietcombank)", "1234567890123"),
    ("VN_PASSPORT", "Hộ chiếu số B1234567", "B1234567"),
    ("VN_DRIVER_LICENSE", "GPLX: 790123456789", "790123456789"),
    ("VN_LICENSE_PLATE", "xe 51F-123.45 màu đen", "51F-123.45"),
    ("VN_LICENSE_PLATE", "biển số 30A 12345", "30A 12345"),
    ("SECRET_AWS_ACCESS_KEY", "id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("SECRET_GITHUB_TOKEN", "ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
    ("SECRET_GITHUB_TOKEN", "github_pat_11ABCDE0Y0" + "x" * 60, "github_pat_11ABCDE0Y0" + "x" * 60),
    ("SECRET_GITLAB_TOKEN", "glpat-abcDEF123456ghijkl78", "glpat-abcDEF123456ghijkl78"),
    ("SECRET_SLACK_TOKEN", "xoxb-123456789012-abcdefABCDEF", "xoxb-123456789012-abcdefABCDEF"),
    ("SECRET_OPENAI_KEY", "sk-proj-abcDEF123456abcDEF123456", "sk-proj-abcDEF123456abcDEF123456"),
    ("SECRET_GOOGLE_KEY", "AIzaSyA-1234567890abcdefghijklmnopqrstu", "AIzaSyA-1234567890abcdefghijklmnopqrstu"),
    ("SECRET_STRIPE_KEY", "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc", "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc"),
    ("SECRET_HUGGINGFACE_TOKEN", "hf_" + "aBcD" * 9, "hf_" + "aBcD" * 9),
    ("SECRET_PACKAGE_TOKEN", "npm_" + "aBc1" * 9, "npm_" + "aBc1" * 9),
    ("SECRET_TELEGRAM_TOKEN", "123456789:AAE" + "x" * 32, "123456789:AAE" + "x" * 32),
    ("SECRET_JWT", "t eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"),
    ("SECRET_PLATFORM_KEY", "gf-Zx9_abcdefghijklmnopqrstuvwxyz", "gf-Zx9_abcdefghijklmnopqrstuvwxyz"),
    ("SECRET_URL_PASSWORD", "postgresql://app:s3cr3t@db/prod", "s3cr3t"),
    ("SECRET_CREDENTIAL", 'password = "correct horse battery staple"', "correct horse battery staple"),
    ("SECRET_CREDENTIAL", "mật khẩu: Hoa@2024", "Hoa@2024"),
    ("SECRET_CREDENTIAL", "mật khẩu của em là: mat khau la Hunter22", "Hunter22"),
    ("SECRET_CREDENTIAL", "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
    ("SECRET_CREDENTIAL", '{"api_key":"k3y-for-tests"}', "k3y-for-tests"),
    ("SECRET_CREDENTIAL", "Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
    ("SECRET_CREDENTIAL", "mã OTP: 482913", "482913"),
]


@pytest.mark.parametrize(("entity", "text", "value"), FOUND, ids=[f"{e}: {t[:40]}" for e, t, _ in FOUND])
def test_a_value_is_found_as_its_entity_and_nothing_else_is_masked(entity: str, text: str, value: str) -> None:
    released, verdict = scan(text)
    assert released == text.replace(value, f"<{entity}>")
    assert [text[f.start : f.end] for f in verdict.findings] == [value]


def test_the_table_covers_every_entity() -> None:
    covered = {entity for entity, _, _ in FOUND} | {"SECRET_PRIVATE_KEY"}
    members = groups(catalogue())
    assert covered == {*members["PII"], *members["SECRET"]}


LEFT_ALONE = [
    "Năm 2024, công ty đạt doanh thu 1.250.000.000 đồng, tăng 12,5% so với năm 2023.",
    "Giá: 15.990.000đ, giảm còn 12.490.000đ từ 01/06/2024 đến 30/06/2024.",
    "Đơn hàng số 202405170012 sẽ được giao ngày 17/05/2024 lúc 14:30.",
    "Mã đơn hàng 0912345678, mã vận đơn 001203004567.",
    "Số tài khoản của quý khách đã bị trừ 1500000 đồng ngày 2024-05-17.",
    "Phiên bản 2.4.1 (build 20240517), phiên bản 10.0.19.1 và Windows 10.0.19041.1.",
    "Toạ độ 21.0285, 105.8542; dân số 100.300.000 người; số π là 3.14159265358979.",
    "ISBN 9786041234567, mã vạch 8934563138164.",
    "Điều 12, khoản 3, Nghị định 13/2023/NĐ-CP ngày 17/4/2023.",
    "Order 20240517-00123 was shipped on 2024-05-17T10:30:45Z.",
    "Invoice 1234567890 for $1,234.56 is due 12/31/2024; tracking number 7712345678.",
    "Version 3.11.7, release 2024.05.1, commit 9fceb02d0ae598e95dc970b74767f19372d61af8.",
    "uuid 123e4567-e89b-12d3-a456-426614174000, sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4",
    "The service listens on 127.0.0.1:8080 and 0.0.0.0:443, also on [::1]:50051.",
    "Ratio 16:9, time 10:30:45, chapter 3.2.1, range 100-200, score 3-2, 24/7.",
    "max_tokens=4096, temperature: 0.7, prompt_tokens: 1234567, token limit: 128000",
    "password: required, token = get_token(request), api_key: str, secret = os.environ['SECRET']",
    "Mật khẩu: phải có ít nhất 8 ký tự. Quên mật khẩu? Nhấn vào đây.",
    "Your password is case sensitive and the secret is safe; the key is under the mat.",
    "npm install @scope/package@1.2.3 && pip install 'uvicorn[standard]==0.30.1'",
    "Follow @example on social media, or see https://example.org/a/b?x=1&y=2#z.",
    "-----BEGIN CERTIFICATE-----\nMIIBhTCCASugAwIBAgIQIRi6zePL6mKjOipn+dNuaTAKBggqhkjO\n-----END CERTIFICATE-----",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30",
    "| 2019 | 2020 | 2021 | 2022 |\n|---:|---:|---:|---:|\n| 1,204 | 1,310 | 1,422 | 1,511 |",
    "sk-learn-like-naming-of-css-classes and gf-short, AKIA alone, eyJ alone",
    "x = [1, 2, 3]; y: dict[str, int] = {}; assert x == y or x != z  # see #1234",
    "Chương 1: Giới thiệu -- một hướng dẫn; ghi chú: đọc kỹ trước khi dùng!",
]  # fmt: skip


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_ordinary_text_with_numbers_passes_unmasked(text: str) -> None:
    released, verdict = scan(text)
    assert released == text
    assert verdict.findings == ()
    assert verdict.scanners == ("pii", "secrets")


EVASIONS = [
    ("a zero-width space", "4111 1111 11\u200b11 1111", "CREDIT_CARD"),
    ("a soft hyphen", "alice@exam\u00adple.com", "EMAIL_ADDRESS"),
    ("a word joiner in every place", "\u2060".join("AKIAIOSFODNN7EXAMPLE"), "SECRET_AWS_ACCESS_KEY"),
    ("fullwidth digits", "４１１１１１１１１１１１１１１１", "CREDIT_CARD"),
    ("a fullwidth email", "ａｌｉｃｅ＠ｅｘａｍｐｌｅ．ｃｏｍ", "EMAIL_ADDRESS"),
    ("mathematical digits", "𝟰𝟭𝟭𝟭 𝟭𝟭𝟭𝟭 𝟭𝟭𝟭𝟭 𝟭𝟭𝟭𝟭", "CREDIT_CARD"),
    ("Arabic digits", "٤١١١ ١١١١ ١١١١ ١١١١", "CREDIT_CARD"),
    ("struck digits", "".join(d + "\u0336" for d in "4111111111111111"), "CREDIT_CARD"),
    ("en dashes", "4111–1111–1111–1111", "CREDIT_CARD"),
    ("no-break spaces", "4111\u00a01111\u00a01111\u00a01111", "CREDIT_CARD"),
    ("two spaces", "4111  1111  1111  1111", "CREDIT_CARD"),
    ("a bidirectional override", "\u202e4111111111111111", "CREDIT_CARD"),
    ("variation selectors", "sk-proj-\ufe0fabcDEF123456abcDEF123456", "SECRET_OPENAI_KEY"),
]


@pytest.mark.parametrize(("text", "entity"), [(t, e) for _, t, e in EVASIONS], ids=[name for name, _, _ in EVASIONS])
def test_characters_that_hide_a_value_from_a_pattern_are_ignored_and_masked_with_it(text: str, entity: str) -> None:
    for cuts in ((), range(len(text))):
        released, verdict = scan(f"x {text} y", MASK, cuts)
        assert [finding.entity for finding in verdict.findings] == [entity]
        assert released.removeprefix("x \u202e") in (f"x <{entity}> y", f"<{entity}> y")


def test_decomposed_vietnamese_is_read_as_composed() -> None:
    text = unicodedata.normalize("NFD", "Số tài khoản của tôi là 1903456789, mật khẩu: Hoa@2024")
    assert scan(text, MASK, range(len(text)))[0].endswith(
        unicodedata.normalize("NFD", "là <VN_BANK_ACCOUNT>, mật khẩu: <SECRET_CREDENTIAL>")
    )


def test_offsets_count_code_points_of_the_original_text() -> None:
    text = "😀 é e\u0301 ４１１１ 1111 1111 1111\u200b!"
    finding = scan(text)[1].findings[0]
    assert text[finding.start : finding.end] == "４１１１ 1111 1111 1111\u200b"


@pytest.mark.parametrize("length", range(14, 20))
def test_a_card_needs_its_check_digit(length: int) -> None:
    number = luhn("4532015112", length)
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert scan(number)[0] == "<CREDIT_CARD>"
    assert scan(wrong)[0] == wrong


def test_a_tax_codes_check_digit_is_verified() -> None:
    assert tax_code_is_valid("0100109106")  # Viettel
    assert tax_code_is_valid("0101243150")  # MISA
    assert not tax_code_is_valid("0100109107")
    assert not tax_code_is_valid("0000000000")


def test_a_valid_check_digit_alone_does_not_make_a_number_a_tax_code() -> None:
    assert scan("mẫu 0100109106 mới")[0] == "mẫu 0100109106 mới"


def test_min_score_decides_about_numbers_without_a_label() -> None:
    eager = compiled(specs.Rule(entities=("VN_CCCD",), min_score=0.3))
    assert scan("số 001203004567 đây", eager)[0] == "số <VN_CCCD> đây"
    assert scan("số 001203004567 đây")[0] == "số 001203004567 đây"


def test_overlapping_findings_are_masked_as_one_and_leave_no_rest() -> None:
    released, verdict = scan("see https://bob:s3cret@mail.example.com/x")
    assert released in ("see https://bob:<EMAIL_ADDRESS>/x", "see https://bob:<SECRET_URL_PASSWORD>/x")
    assert len(verdict.findings) == 1
