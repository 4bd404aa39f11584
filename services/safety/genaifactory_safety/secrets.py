"""Recognisers of credentials: tokens with an issuer's prefix, keys in PEM, and values of names such as "password"."""

from __future__ import annotations

import re

from genaifactory_common.normalise import UNSPACED
from genaifactory_safety.recogniser import Pattern, StrictRecogniser

PRIVATE_KEY = "SECRET_PRIVATE_KEY"
PEM_HEADER = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,24} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
PEM_FOOTER = re.compile(r"-----END (?:[A-Z0-9]{1,24} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
PEM_FOOTER_CHARACTERS = 160
"""At least as long as the longest footer."""

_CODE_NAME = (
    r"(?i:(?<![^\W_])(?:mk|pin|otp)|pass(?:word|wd|code)|passwd|pwd|mật[ _]?khẩu|mat[ _]khau"
    r"|mã (?:pin|otp|xác thực))"
)
ASSIGNED_NAME = (
    r"(?:(?i:passphrase|secret|token|credentials?|api[ _-]?key|access[ _-]?key|secret[ _-]?key|private[ _-]?key"
    r"|auth[ _-]?key|account[ _-]?key|encryption[ _-]?key|signing[ _-]?key|kh[oó][aá] bí mật|mã bí mật)"
    rf"|{_CODE_NAME})"
)
"""Matches the end of a name whose value is a secret."""
SEPARATOR = r"(?:\s?(?:[:=]{1,2}|=>|:=)\s?|\s(?i:is|là|la)\s?:?\s?)"

_NAME_LITERALS = (
    "pass", "pwd", "secret", "token", "credential", "key", "khẩu", "khau", "bí mật", "mk", "pin", "otp", "xác thực",
    "bearer", "basic",
)  # fmt: skip
"""Every such name holds one of these, lower case."""
NAME_CHARACTERS = 64
"""The greatest distance between the beginnings of a name and of its value."""


def recognisers() -> list[StrictRecogniser]:
    """New recognisers of this module's entities."""
    tokens = [
        ("SECRET_AWS_ACCESS_KEY", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16,}", ("akia", "asia", "abia", "acca")),
        (
            "SECRET_GITHUB_TOKEN",
            r"gh[pousr]_[A-Za-z0-9_]{30,}|github_pat_[A-Za-z0-9_]{22,}",
            ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        ),
        ("SECRET_GITLAB_TOKEN", r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat)-[\w.\-]{16,}", ("gl",)),
        (
            "SECRET_SLACK_TOKEN",
            r"(?:xox[a-z]|xapp)-[A-Za-z0-9-]{10,}|hooks\.slack\.com/(?:services|workflows)/[\w/]{20,}",
            ("xox", "xapp-", "hooks.slack.com"),
        ),
        ("SECRET_OPENAI_KEY", r"(?<![A-Za-z0-9])sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}", ("sk-",)),
        ("SECRET_GOOGLE_KEY", r"AIza[\w-]{30,}|GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,}", ("aiza", "gocspx-", "ya29.")),
        ("SECRET_STRIPE_KEY", r"(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}", ("sk_", "rk_", "whsec_")),
        ("SECRET_HUGGINGFACE_TOKEN", r"hf_[A-Za-z0-9]{30,}", ("hf_",)),
        ("SECRET_PACKAGE_TOKEN", r"npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}", ("npm_", "pypi-")),
        ("SECRET_TELEGRAM_TOKEN", r"(?<!\d)\d{8,10}:AA[\w-]{30,}", (":aa",)),
        ("SECRET_JWT", r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)*={0,2}", ("eyj",)),
        ("SECRET_PLATFORM_KEY", r"(?<![A-Za-z0-9])gf-[\w-]{20,}", ("gf-",)),
    ]
    return [
        *(
            StrictRecogniser(entity, [Pattern(entity, form.replace(r"\w", "A-Za-z0-9_"), 1.0)], literals=literals)
            for entity, form, literals in tokens
        ),
        StrictRecogniser(PRIVATE_KEY, [Pattern("header", PEM_HEADER.pattern, 1.0)], literals=("-----begin ",)),
        StrictRecogniser(
            "SECRET_URL_PASSWORD",
            [
                Pattern(
                    "userinfo",
                    rf"[A-Za-z][A-Za-z0-9+.\-]{{1,20}}://[^\s/:@\"'<>{UNSPACED}]{{0,64}}:(?P<entity>[^\s/\"'<>{UNSPACED}]{{1,256}})@",
                    1.0,
                )
            ],
            literals=("://",),
            behind=NAME_CHARACTERS + 32,
        ),
        StrictRecogniser(
            "SECRET_CREDENTIAL",
            [
                Pattern(
                    "bearer", r"(?i:bearer|basic)\s+(?P<entity>(?=[A-Za-z_.~+/\-]*\d)[A-Za-z0-9_.~+/\-]{16,}=*)", 0.9
                ),
                Pattern(
                    "quoted",
                    rf"{ASSIGNED_NAME}[\"'`\])]{{0,2}}{SEPARATOR}(?P<quote>[\"'`])(?P<entity>(?![<$*{{])[^\"'`\n]{{4,256}})(?P=quote)",
                    0.8,
                ),
                # Digits alone count for codes that people remember, not for "max_token: 4096".
                Pattern("code", rf"{_CODE_NAME}[\"'`\])]{{0,2}}{SEPARATOR}[\"'`]?(?P<entity>\d{{4,12}})(?![\w])", 0.8),
                Pattern(
                    "assigned",
                    rf"{ASSIGNED_NAME}[\"'`\])]{{0,2}}{SEPARATOR}[\"'`]?(?P<entity>(?!\d+(?:[\s.,;:)\]}}]|$))[^\s\"'`<>{UNSPACED}]{{4,}})",
                    0.8,
                ),
            ],
            accept=_is_credential,
            literals=_NAME_LITERALS,
            behind=NAME_CHARACTERS,
        ),
    ]


_CODE = re.compile(r"[A-Za-z_][\w.]*[(\[]|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+[,;.)]*$|[$%]?[({<]|\*+$|[.…]+$|https?://")
_NAME_OF_SECRET = re.compile(ASSIGNED_NAME)


def _is_credential(value: str) -> bool:
    if " " in value:  # only the quoted form matches blanks: a passphrase
        return not value.isspace()
    value = value.rstrip(".,;:!?)")
    if len(value) < 4 or _CODE.match(value) or (_NAME_OF_SECRET.search(value) and value.isidentifier()):
        return False
    letters, digits = sum(c.isalpha() for c in value), sum(c.isdigit() for c in value)
    if digits == len(value):
        return True
    if letters == len(value):
        # "password: required" is a word; capitals within make it none.
        return len(value) >= 8 and not (value.islower() or value[1:].islower() or value.isupper())
    return len(value) >= 6
