"""Mail to blocks: sender, recipients, date, text, forwarded mails, and the names of attachments."""

from __future__ import annotations

import email
from collections.abc import Iterable, Iterator
from email import policy
from email.message import EmailMessage, MIMEPart
from typing import Any

from genaifactory_common import decoding
from genaifactory_common.errors import InvalidArgument
from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing.formats import html
from genaifactory_retriever.parsing.formats import text as parse_text

_SHOWN = ("From", "To", "Cc", "Date")


def parse(data: bytes) -> tuple[str, Iterable[Block]]:
    """The subject, and blocks. Raises InvalidArgument for a file without mail headers, TooLarge."""
    message = email.message_from_bytes(data, policy=_policy())
    if not any(name in message for name in (*_SHOWN, "Subject", "Message-ID")):
        raise InvalidArgument("The document has no header of a mail, such as From or Subject.", field="data")
    return str(message.get("Subject", "")), _mail(message, 1)


def _policy() -> policy.EmailPolicy[EmailMessage]:
    """Python's policy, with counts of the parts, and of header characters at each access."""
    parts = bounds.Count("EML", "parts", bounds.MAIL_PARTS)
    characters = bounds.Count("EML", "characters of headers", bounds.MAIL_HEADER_CHARACTERS)

    def part(policy: Any) -> EmailMessage:
        parts.add()
        return EmailMessage(policy)

    def header(name: str, value: str) -> Any:
        characters.add(len(value))
        return policy.default.header_factory(name, value)

    return policy.EmailPolicy(message_factory=part, header_factory=header)


def _mail(message: EmailMessage, depth: int) -> Iterator[Block]:
    yield Block(str(message.get("Subject", "")), min(depth, 6))
    if people := " | ".join(f"{name}: {value}" for name in _SHOWN if (value := message[name])):
        yield Block(people)
    body = message.get_body(("plain", "html"))
    if body is not None:
        yield from _text(body)
    names: list[str] = []
    for part in message.iter_attachments():
        if part.get_content_type() == "message/rfc822" and depth < bounds.FORWARDED_MAILS:
            yield from _mail(part.get_content(), depth + 1)
        else:
            names.append(part.get_filename() or part.get_content_type())
    if names:
        yield Block(f"Attachments: {', '.join(names)}")


def _text(part: MIMEPart) -> Iterator[Block]:
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    charset = part.get_content_charset()
    try:
        text = decoding.decode(data, charset)
    except InvalidArgument:  # declared charsets of mails are often wrong
        text = decoding.decode(data)
    if part.get_content_type() == "text/html":
        yield from html.parse(text)[1]
    else:
        yield from parse_text.parse(text)
