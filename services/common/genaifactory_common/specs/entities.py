"""Entity types for policies; written by make charts from the catalogue of genaifactory_safety."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[str, tuple[str, ...]] = {
    "PII": (
        "EMAIL_ADDRESS",
        "CREDIT_CARD",
        "IBAN_CODE",
        "IP_ADDRESS",
        "US_SSN",
        "PHONE_NUMBER",
        "VN_CCCD",
        "VN_CMND",
        "VN_TAX_CODE",
        "VN_PHONE",
        "VN_SOCIAL_INSURANCE",
        "VN_HEALTH_INSURANCE",
        "VN_BANK_ACCOUNT",
        "VN_PASSPORT",
        "VN_DRIVER_LICENSE",
        "VN_LICENSE_PLATE",
    ),
    "SECRET": (
        "SECRET_AWS_ACCESS_KEY",
        "SECRET_GITHUB_TOKEN",
        "SECRET_GITLAB_TOKEN",
        "SECRET_SLACK_TOKEN",
        "SECRET_OPENAI_KEY",
        "SECRET_GOOGLE_KEY",
        "SECRET_STRIPE_KEY",
        "SECRET_HUGGINGFACE_TOKEN",
        "SECRET_PACKAGE_TOKEN",
        "SECRET_TELEGRAM_TOKEN",
        "SECRET_JWT",
        "SECRET_PLATFORM_KEY",
        "SECRET_PRIVATE_KEY",
        "SECRET_URL_PASSWORD",
        "SECRET_CREDENTIAL",
    ),
    "BANNED": ("BANNED_TERM",),
}
"""Entity types by the group that stands for all of them."""
OTHERS = ("UNSCANNABLE",)
"""Entity types of no group."""
