"""Texts in Vietnamese and English with sensitive values planted at known places; everything is made up."""

from __future__ import annotations

import base64
import json
import random
import string
from dataclasses import dataclass, replace

from genaifactory_safety.vietnamese import tax_code_is_valid

PROSE = (
    "Công ty cam kết bảo mật thông tin của khách hàng theo quy định hiện hành.",
    "Mức phí thường niên là 1.250.000 đồng, giảm 15% nếu thanh toán trước ngày 31/12/2024.",
    "Phiên bản 2.4.1 được phát hành lúc 10:30, sửa lỗi #1287 ở trang cài đặt.",
    "Trợ lý trả lời bằng tiếng Việt; nếu không biết, nó nói là không biết.",
    "Xin chào! Em có thể giúp gì cho anh/chị hôm nay ạ?",
    "Nhiệt độ trung bình 27,5 °C, lượng mưa 1.800 mm/năm.",
    "The meeting is on 2024-05-17 at 14:30 in room B204, please be on time.",
    "Revenue grew by 12.5% to $3,450,000 in Q3; see pages 12-15 of the report.",
    "Note: install the package first, then restart the service and check the logs.",
    "It's a well-known fact -- at least among engineers -- that tests pay off.",
    "e = mc^2, and x := y + 1 when a >= b; see https://example.org/docs?page=2&lang=vi for more.",
    "Đơn hàng 20240517001 sẽ được giao trong 3-5 ngày làm việc.",
    "| cột 1 | cột 2 |\n|-------|-------|\n| 12 | 34 |",
    "```python\nfor i in range(10):\n    print(i, total_count=i)\n```",
)


@dataclass(frozen=True)
class Planted:
    """A sentence that holds a sensitive value."""

    entity: str
    text: str
    value: str
    start: int = 0
    """Of the value: its offset in the sentence, or in the document."""


def plant(rng: random.Random) -> Planted:
    """One sentence with one value of a random kind."""
    entity, value, frames = rng.choice(_KINDS)(rng)
    text = rng.choice(frames).format(value)
    return Planted(entity, text, value, text.index(value))


def document(rng: random.Random, *, sentences: int) -> tuple[str, list[Planted]]:
    """A text of so many sentences, about a third with a planted value, and the planted values."""
    parts: list[str] = []
    planted: list[Planted] = []
    for _ in range(sentences):
        if rng.random() < 0.35:
            found = plant(rng)
            planted.append(replace(found, start=sum(map(len, parts)) + found.start))
            parts.append(found.text)
        else:
            parts.append(rng.choice(PROSE))
        parts.append(rng.choice((" ", " ", "\n", "\n\n", "  ")))
    return "".join(parts), planted


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _token(rng: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(alphabet, k=count))


def luhn(prefix: str, length: int) -> str:
    """A number of this length with a valid check digit (Luhn)."""
    body = prefix.ljust(length - 1, "7")
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(body))]
    return body + str(-sum(d // 10 + d % 10 for d in doubled) % 10)


_Kind = tuple[str, str, tuple[str, ...]]


def _email(rng: random.Random) -> _Kind:
    value = (
        f"{_token(rng, 7, string.ascii_lowercase)}.{_digits(rng, 3)}@mail.{rng.choice(('com', 'com.vn', 'internal'))}"
    )
    return "EMAIL_ADDRESS", value, ("Email: {}.", "Hãy viết cho {} nhé", "contact <{}>, thanks", '{{"email":"{}"}}')


def _card(rng: random.Random) -> _Kind:
    digits = luhn(rng.choice(("4", "52", "35")) + _digits(rng, 9), 16)
    separator = rng.choice(("", " ", "-"))
    value = separator.join(digits[i : i + 4] for i in range(0, 16, 4))
    return "CREDIT_CARD", value, ("Thẻ của tôi: {}.", "pay with {} please", "số thẻ {} hết hạn 09/27")


def _mobile(rng: random.Random) -> _Kind:
    digits = rng.choice(("90", "38", "70", "56", "81")) + _digits(rng, 7)
    value = rng.choice(
        (
            f"0{digits}",
            f"0{digits[:2]} {digits[2:5]} {digits[5:]}",
            f"+84 {digits[:2]} {digits[2:5]} {digits[5:]}",
            f"0{digits[:2]}.{digits[2:5]}.{digits[5:]}",
            f"(+84) {digits}",
        )
    )
    return (
        "VN_PHONE",
        value,
        ("Gọi {} để được hỗ trợ.", "SĐT: {}", "my number is {}, call me", "Zalo {} (giờ hành chính)"),
    )


def _cccd(rng: random.Random) -> _Kind:
    digits = rng.choice(("001", "079", "048", "031")) + rng.choice("0123") + _digits(rng, 8)
    value = rng.choice((digits, " ".join(digits[i : i + 3] for i in range(0, 12, 3))))
    frames = ("Số CCCD: {}.", "căn cước công dân số {} cấp năm 2021", "can cuoc {}", "{} là số CCCD của tôi")
    return "VN_CCCD", value, frames


def _tax_code(rng: random.Random) -> _Kind:
    while not tax_code_is_valid(digits := "01" + _digits(rng, 8)):
        pass
    value = digits + rng.choice(("", "-001"))
    return "VN_TAX_CODE", value, ("MST: {}", "mã số thuế {} tại Hà Nội", "tax code {}.")


def _account(rng: random.Random) -> _Kind:
    value = "1" + _digits(rng, rng.choice((9, 12, 13)))
    return "VN_BANK_ACCOUNT", value, ("STK {} Vietcombank", "chuyển vào số tài khoản {} nhé", "account number: {}")


def _ssn(rng: random.Random) -> _Kind:
    return (
        "US_SSN",
        f"5{_digits(rng, 2)}-4{rng.randint(1, 9)}-{rng.randint(1000, 9999)}",
        ("SSN {}.", "it is {} I think"),
    )


def _iban(rng: random.Random) -> _Kind:
    value = rng.choice(("GB29 NWBK 6016 1331 9268 19", "DE89370400440532013000", "FR14 2004 1010 0505 0001 3M02 606"))
    return "IBAN_CODE", value, ("IBAN: {}.", "send it to {} today")


def _secret(rng: random.Random) -> _Kind:
    entity, value = rng.choice(
        (
            ("SECRET_AWS_ACCESS_KEY", "AKIA" + _token(rng, 16, string.ascii_uppercase + "234567")),
            ("SECRET_GITHUB_TOKEN", "ghp_" + _token(rng, 36)),
            ("SECRET_GITLAB_TOKEN", "glpat-" + _token(rng, 20)),
            ("SECRET_SLACK_TOKEN", "xoxb-" + _digits(rng, 12) + "-" + _token(rng, 24)),
            ("SECRET_OPENAI_KEY", "sk-proj-A1" + _token(rng, 46)),
            ("SECRET_GOOGLE_KEY", "AIza" + _token(rng, 35)),
            ("SECRET_PLATFORM_KEY", "gf-" + _token(rng, 43, string.ascii_letters + string.digits + "-_")),
        )
    )
    return entity, value, ("key: {}", "export KEY={}", "Khoá là {}, đừng để lộ.", '{{"k":"{}","n":1}}')


def _jwt(rng: random.Random) -> _Kind:
    def part(content: dict[str, str]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    body = part({"sub": _token(rng, rng.randint(10, 400))})
    value = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{body}.{_token(rng, 43)}"
    return "SECRET_JWT", value, ("token {} expires soon", "Authorization: Bearer {}", "cookie={};")


def _password(rng: random.Random) -> _Kind:
    value = _token(rng, 5, string.ascii_letters) + "7!" + _token(rng, 5)
    frames = ('password = "{}"', "mật khẩu: {}", "mật khẩu là {} nhé", "DB_PASSWORD={}", '"client_secret":"{}"')
    return "SECRET_CREDENTIAL", value, frames


def _passphrase(rng: random.Random) -> _Kind:
    words = " ".join(_token(rng, rng.randint(4, 9), string.ascii_lowercase) for _ in range(5))
    return "SECRET_CREDENTIAL", words, ('password: "{}"', "mật khẩu: '{}'", 'passphrase = "{}" # xoay vòng')


def _private_key(rng: random.Random) -> _Kind:
    kind = rng.choice(("RSA ", "", "EC ", "OPENSSH ", "ENCRYPTED "))
    lines = "\n".join(_token(rng, 64, string.ascii_letters + string.digits + "+/") for _ in range(rng.randint(2, 40)))
    value = f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"
    return "SECRET_PRIVATE_KEY", value, ("Khoá:\n{}\n", "here: {} done")


_KINDS = (
    _email, _card, _mobile, _cccd, _tax_code, _account, _ssn, _iban, _secret, _secret, _jwt, _password, _passphrase,
    _private_key,
)  # fmt: skip
