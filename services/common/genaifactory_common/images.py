"""Images in messages: bounds, formats, estimated tokens, and their form in records.

The rules of every service that receives them. Only headers are read: the model decodes an image, the platform never
does. The platform fetches nothing for a client: an address in a request could name what only the platform reaches
(server-side request forgery, CWE-918), so the bytes come with the request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument, TooLarge

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
MAX_IMAGES = 16
"""In the messages of one request."""
MAX_IMAGE_BYTES = 4 << 20
MAX_TOTAL_BYTES = 8 << 20
"""Of all images of a request. As base64 they fit the largest body that a gateway can be set to accept (12 MiB), with
room for text, and that fits a gRPC message (16 MiB)."""
MAX_SIDE_PIXELS = 8192
MAX_PIXELS = 4096 * 4096
"""Decoded, that is 50 MB."""

_TYPES = "image/png, image/jpeg, image/webp or image/gif"
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
# Against files made to consume CPU: cameras write some tens of segments before the frame.
_MAX_JPEG_SEGMENTS = 1024
# Markers of JPEG (ITU-T T.81, table B.1): frames, and those without a length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))
_DATA_FOLLOWS = frozenset((0xD9, 0xDA))
_PATCH_PIXELS = 28
_MIN_TOKENS, _MAX_TOKENS = 1445, 16384


def from_data_url(url: str) -> types_pb2.Image:
    """The image of a data URL (RFC 2397); `check` its bytes. Raises InvalidArgument, without a field.

    The message never repeats the URL, which may hold a secret.
    """
    head = _DATA_URL.match(url)
    if head is None:
        if re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
            raise InvalidArgument(
                "The platform fetches no addresses for a client; send the image itself, as a URL "
                "'data:image/png;base64,…'."
            )
        raise InvalidArgument(f"It must be a URL 'data:TYPE;base64,…' with the TYPE {_TYPES}.")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("What follows 'base64,' must be base64 (RFC 4648), with its padding.") from None
    return types_pb2.Image(media_type=head[1].lower(), data=data)


def data_url(image: types_pb2.Image) -> str:
    """The image as a data URL."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def check(messages: Sequence[types_pb2.Message], conversation_id: str = "") -> None:
    """Raises InvalidArgument or TooLarge with the field for images that are refused.

    conversation_id: of the stored conversation that the messages belong to; it stores no images, so it accepts none.
    """
    count = total = 0
    for i, message in enumerate(messages):
        for j, image in enumerate(message.images):
            at = f"messages[{i}].images[{j}]"
            if message.role != types_pb2.ROLE_USER:
                raise InvalidArgument("Images are allowed only in a user's message.", field=at)
            count += 1
            total += len(image.data)
            if count > MAX_IMAGES:
                raise InvalidArgument(f"The messages may hold at most {MAX_IMAGES} images.", field=at)
            if total > MAX_TOTAL_BYTES:
                raise TooLarge(f"The images may have at most {MAX_TOTAL_BYTES} bytes together.", field=f"{at}.data")
            _check_one(image, message, at)
    if count and conversation_id:
        raise InvalidArgument(
            "A stored conversation keeps no images: leave 'conversation_id' out, and send the whole conversation in "
            "'messages'.",
            field="conversation_id",
        )


def first(messages: Iterable[types_pb2.Message]) -> str | None:
    """The field of the first image; None where there is none."""
    return next((f"messages[{i}].images[0]" for i, message in enumerate(messages) if message.images), None)


def estimated_tokens(messages: Iterable[types_pb2.Message]) -> int:
    """An upper estimate of the tokens of the checked images of messages, for a reservation before the work.

    One for each 28 x 28 pixels, at most 16,384: Qwen2.5-VL at its default max_pixels, the most among widely used open
    models. At least 1,445: the most by OpenAI's rule of tiles of 512 pixels (85 + 170 for each of 8).
    https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, https://platform.openai.com/docs/guides/images-vision
    """
    tokens = 0
    for message in messages:
        for image in message.images:
            _, width, height = _header(image.data)
            patches = -(-width // _PATCH_PIXELS) * -(-height // _PATCH_PIXELS)
            tokens += min(max(patches, _MIN_TOKENS), _MAX_TOKENS)
    return tokens


def without_bytes(message: types_pb2.Message) -> types_pb2.Message:
    """The message with a digest instead of each image's bytes, for records; the same message if it has no images."""
    if not message.images:
        return message
    kept = types_pb2.Message()
    kept.CopyFrom(message)
    for image in kept.images:
        digest = types_pb2.ImageDigest(sha256=hashlib.sha256(image.data).hexdigest(), size_bytes=len(image.data))
        image.digest.CopyFrom(digest)  # in a oneof: replaces the bytes
    return kept


def parts(message: types_pb2.Message) -> Iterator[str | types_pb2.Image]:
    """The message's texts and images in their order; no empty text."""
    begin, joint = 0, ""
    for image in sorted(message.images, key=lambda image: image.position):
        if text := message.content[begin : image.position].removeprefix(joint):
            yield text
        yield image
        begin, joint = image.position, "\n"  # which joined the texts around it
    if text := message.content[begin:].removeprefix(joint):
        yield text


def _check_one(image: types_pb2.Image, message: types_pb2.Message, at: str) -> None:
    if image.HasField("digest"):
        raise InvalidArgument("An image of a request is its bytes; only records hold a digest.", field=f"{at}.digest")
    if image.media_type not in MEDIA_TYPES:
        raise InvalidArgument(f"The image's media type must be {_TYPES}.", field=f"{at}.media_type")
    if image.detail not in types_pb2.Image.Detail.values():
        raise InvalidArgument("The detail must be LOW, HIGH or left out.", field=f"{at}.detail")
    if image.position > len(message.content):
        raise InvalidArgument(
            f"The position must be within the content's {len(message.content)} characters.", field=f"{at}.position"
        )
    if len(image.data) > MAX_IMAGE_BYTES:
        raise TooLarge(
            f"The image has {len(image.data)} bytes; at most {MAX_IMAGE_BYTES} are accepted.", field=f"{at}.data"
        )
    try:
        media_type, width, height = _header(image.data)
    except IndexError:
        raise _no_image(at) from None
    if media_type != image.media_type:
        raise InvalidArgument(
            f"The image is declared as {image.media_type}, but its bytes are {media_type or 'none of ' + _TYPES}.",
            field=f"{at}.media_type",
        )
    if not (width and height):
        raise _no_image(at)
    if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_PIXELS:
        raise TooLarge(
            f"The image has {width} x {height} pixels; at most {MAX_PIXELS} are accepted, {MAX_SIDE_PIXELS} a side. "
            "Scale it down: models do that with large images anyway.",
            field=f"{at}.data",
        )


def _no_image(at: str) -> InvalidArgument:
    return InvalidArgument("The image's header is broken: it has no width and height.", field=f"{at}.data")


def _header(data: bytes) -> tuple[str, int, int]:
    """Media type by the file's signature, width and height in pixels; ("", 0, 0) for other files, 0 where a header has
    no size. Raises IndexError where the file ends before its header does."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        sized = data[12:16] == b"IHDR"
        return "image/png", _number(data, 16, 4, "big") * sized, _number(data, 20, 4, "big")
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg", *_jpeg_size(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif", _number(data, 6, 2, "little"), _number(data, 8, 2, "little")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp", *_webp_size(data)
    return "", 0, 0


def _webp_size(data: bytes) -> tuple[int, int]:
    """RFC 9649, section 2: the lossy, the lossless and the extended header."""
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            return _number(data, 26, 2, "little") & 0x3FFF, _number(data, 28, 2, "little") & 0x3FFF
        case b"VP8L" if data[20:21] == b"\x2f":
            bits = _number(data, 21, 4, "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return _number(data, 24, 3, "little") + 1, _number(data, 27, 3, "little") + 1
    return 0, 0


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Of the first frame (ITU-T T.81, B.2.2)."""
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _FRAMES:
            return _number(data, at + 7, 2, "big"), _number(data, at + 5, 2, "big")
        if marker in _DATA_FOLLOWS:
            break
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            at += 2 + _number(data, at + 2, 2, "big")
    return 0, 0


def _number(data: bytes, at: int, size: int, order: str) -> int:
    if at + size > len(data):
        raise IndexError("the file ends before its header does")
    return int.from_bytes(data[at : at + size], "big" if order == "big" else "little")
