"""Images in messages: checks, bounds and estimated tokens, with files that Pillow writes."""

from __future__ import annotations

import base64
import io
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image as Pillow

from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, images
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_common.testing.images import image, png
from genaifactory_gateway.settings import Http

USER, ASSISTANT = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT


def shows(
    *shown: types_pb2.Image, content: str = "What is it?", role: types_pb2.Role.ValueType = USER
) -> types_pb2.Message:
    return types_pb2.Message(role=role, content=content, images=shown)


def written(form: str, size: tuple[int, int] = (301, 207), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, size, 1).save(file, form, **options)
    return file.getvalue()


def refused(*messages: types_pb2.Message, **more: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        images.check(messages, **more)
    return caught.value


EXIF = Pillow.Exif()
EXIF[0x010E] = "a description " * 100
FILES = {
    "png": ("image/png", written("PNG")),
    "png with alpha": ("image/png", written("PNG", mode="RGBA")),
    "baseline jpeg": ("image/jpeg", written("JPEG")),
    "progressive jpeg": ("image/jpeg", written("JPEG", progressive=True)),
    "jpeg with exif and a profile": ("image/jpeg", written("JPEG", exif=EXIF, icc_profile=bytes(200_000))),
    "lossy webp": ("image/webp", written("WEBP")),
    "lossless webp": ("image/webp", written("WEBP", lossless=True)),
    "extended webp": ("image/webp", written("WEBP", exif=EXIF)),
    "gif": ("image/gif", written("GIF", mode="P")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_pillow_is_accepted_and_its_size_is_read_from_its_header(name: str) -> None:
    media_type, data = FILES[name]
    message = shows(types_pb2.Image(media_type=media_type, data=data))
    images.check([message])
    assert images._header(data) == (media_type, 301, 207)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_altered_file_is_accepted_or_refused_with_its_field(name: str) -> None:
    media_type, data = FILES[name]
    dice = random.Random(name)
    for cut in range(min(len(data), 300)):
        _check_raises_only_invalid_argument(types_pb2.Image(media_type=media_type, data=data[:cut]))
    for _ in range(2000):
        damaged = bytearray(data[:400])
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        _check_raises_only_invalid_argument(types_pb2.Image(media_type=media_type, data=bytes(damaged)))


def _check_raises_only_invalid_argument(shown: types_pb2.Image) -> None:
    message, field = shows(shown), None
    try:
        images.check([message])
    except InvalidArgument as error:
        field = error.field or "none"
    assert field is None or field.startswith("messages[0].images[0].")
    assert field is not None or images.estimated_tokens([message]) >= 1445


WRONG: dict[str, tuple[Callable[[], types_pb2.Image], str, str]] = {
    "bytes of another type": (lambda: image(FILES["gif"][1]), "media_type", "its bytes are image/gif"),
    "no image at all": (lambda: image(b"%PDF-1.7"), "media_type", "its bytes are none of image/png"),
    "an empty file": (lambda: types_pb2.Image(media_type="image/png"), "media_type", "its bytes are none of"),
    "a vector graphic": (lambda: image(b"<svg/>", media_type="image/svg+xml"), "media_type", "must be image/png"),
    "a header without a size": (lambda: image(png()[:20]), "data", "broken"),
    "no width": (lambda: image(png(0, 5)), "data", "broken"),
    "too many pixels": (lambda: image(png(4096, 4097)), "data", "4096 x 4097 pixels"),
    "too long a side": (lambda: image(png(8193, 1)), "data", "8192 a side"),
    "too many bytes": (lambda: image(png() + bytes(images.MAX_IMAGE_BYTES)), "data", "at most 4194304"),
    "a digest": (lambda: image(digest=types_pb2.ImageDigest(sha256="0" * 64)), "digest", "only records"),
    "an unknown detail": (lambda: image(detail=7), "detail", "LOW, HIGH"),
    "a place beyond the text": (lambda: image(position=12), "position", "11 characters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_image_is_refused_with_its_field(name: str) -> None:
    made, field, why = WRONG[name]
    error = refused(shows(), shows(image(), made()))
    assert error.field == f"messages[1].images[1].{field}"
    assert why in error.message


def test_a_header_that_claims_gigapixels_is_refused_without_decoding() -> None:
    bomb = bytearray(png())
    bomb[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    begin = time.process_time()
    assert isinstance(refused(shows(image(bytes(bomb)))), TooLarge)
    assert time.process_time() - begin < 0.1


def test_a_jpeg_of_a_million_segments_is_refused_at_once() -> None:
    bomb = b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000
    begin = time.process_time()
    assert "broken" in refused(shows(image(bomb, media_type="image/jpeg"))).message
    assert time.process_time() - begin < 0.1


def test_only_messages_of_users_may_have_images() -> None:
    for role in (ASSISTANT, types_pb2.ROLE_SYSTEM, types_pb2.ROLE_TOOL):
        assert refused(shows(image(), role=role)).field == "messages[0].images[0]"


def test_the_number_and_the_bytes_of_all_images_together_are_bounded() -> None:
    images.check([shows(*[image()] * 8), shows(*[image()] * 8)])
    error = refused(shows(*[image()] * 8), shows(*[image()] * 9))
    assert (error.field, "at most 16 images" in error.message) == ("messages[1].images[8]", True)
    large = image(png() + bytes(3 << 20))
    images.check([shows(large, large)])
    error = refused(shows(large, large, large))
    assert (type(error), error.field) == (TooLarge, "messages[0].images[2].data")


def test_a_stored_conversation_accepts_no_images() -> None:
    images.check([shows()], conversation_id="c")
    assert refused(shows(image()), conversation_id="c").field == "conversation_id"


def test_the_bounds_of_a_request_are_consistent() -> None:
    largest_body = next(m.le for m in Http.model_fields["max_body_bytes"].metadata if hasattr(m, "le"))
    as_base64 = -(-images.MAX_TOTAL_BYTES // 3) * 4
    assert images.MAX_IMAGE_BYTES <= images.MAX_TOTAL_BYTES
    assert as_base64 + (1 << 20) <= largest_body <= channels.MAX_MESSAGE_BYTES - (1 << 20)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://169.254.169.254/latest/meta-data",
        "HTTP://localhost:50051/",
        "file:///etc/passwd",
        "gopher://x",
    ],
)
def test_an_address_is_never_fetched_and_the_error_names_the_alternative(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        images.from_data_url(url)
    assert "fetches no addresses" in caught.value.message
    assert "data:image/png;base64," in caught.value.message
    assert url not in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["", "x", "data:image/png,abc", "data:;base64,", "data:image/png;charset=x;base64,AA==", "data:image/png;base64,A",
     "data:image/png;base64,AA==\n", "data:image/png;base64,A A=", "data:image/png;base64,_-8="],
)  # fmt: skip
def test_a_malformed_data_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        images.from_data_url(url)


def test_a_data_url_survives_parsing_and_formatting() -> None:
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    read = images.from_data_url(url)
    assert (read.media_type, read.data) == ("image/png", png())
    assert images.data_url(read) == url


def test_an_images_tokens_are_estimated_by_its_pixels_within_bounds() -> None:
    def tokens(width: int, height: int) -> int:
        header = bytearray(png())
        header[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        return images.estimated_tokens([shows(image(bytes(header)))])

    assert tokens(1, 1) == 1445
    assert tokens(2048, 1024) == 74 * 37
    assert tokens(4096, 4096) == 16384
    assert images.estimated_tokens([shows(image(), image()), shows(), shows(image())]) == 3 * 1445


def test_a_record_keeps_a_digest_in_place_of_the_bytes() -> None:
    message = shows(image(detail=types_pb2.Image.DETAIL_LOW, position=3))
    kept = images.without_bytes(message).images[0]
    assert (kept.data, kept.media_type, kept.position, kept.digest.size_bytes) == (b"", "image/png", 3, len(png()))
    assert len(kept.digest.sha256) == 64
    assert message.images[0].data == png()  # the request's own is unchanged


@pytest.mark.parametrize(
    ("content", "places", "parts"),
    [
        ("a\nb", [1], ["a", 0, "b"]),
        ("a\nb", [1, 1], ["a", 0, 1, "b"]),
        ("a\nb\nc", [1, 3], ["a", 0, "b", 1, "c"]),
        ("ab", [0], [0, "ab"]),
        ("ab", [2], ["ab", 0]),
        ("ab", [1], ["a", 0, "b"]),
        ("", [0, 0], [0, 1]),
        ("ab", [2, 0], [1, "ab", 0]),
    ],
)
def test_texts_and_images_are_returned_in_their_order(content: str, places: list[int], parts: list[str | int]) -> None:
    shown = [image(png(1 + number), position=place) for number, place in enumerate(places)]
    found = list(images.parts(shows(*shown, content=content)))
    assert found == [shown[part] if isinstance(part, int) else part for part in parts]
