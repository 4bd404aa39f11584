"""The content of OpenAI's messages (text, refusals, images) and its conversion; and the base model of all bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images
from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway import jsonbody, rules

_DETAILS = {
    None: types_pb2.Image.DETAIL_UNSPECIFIED,
    "auto": types_pb2.Image.DETAIL_UNSPECIFIED,
    "low": types_pb2.Image.DETAIL_LOW,
    "high": types_pb2.Image.DETAIL_HIGH,
}


class Body(BaseModel):
    """Base of every part of a body: strict types; unknown fields are errors, about which `fields.read` decides."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lenient: ClassVar[bool] = True
    """Whether unknown fields are ignored, as clients of OpenAI's API expect."""
    max_values: ClassVar[int] = jsonbody.MAX_VALUES
    """Members of all its objects and arrays together."""


def branch(**branches: type) -> Discriminator:
    """Selects the branch of a union by the JSON type, so that an error names one branch: `~` and its name."""

    def choose(value: Any) -> str | None:
        return next((f"~{name}" for name, kind in branches.items() if isinstance(value, kind)), None)

    kinds: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
    wanted = " or ".join(kinds[kind] for kind in branches.values())
    return Discriminator(choose, custom_error_type="union_type", custom_error_message=f"Input should be {wanted}")


class TextPart(Body):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """A refusal in an assistant's message."""

    type: Literal["refusal"]
    refusal: str


def _image(url: Any) -> types_pb2.Image:
    try:
        if not isinstance(url, str):
            raise InvalidArgument("Input should be a valid string.")
        return images.from_data_url(url)
    except InvalidArgument as error:
        raise PydanticCustomError("image", "{why}", {"why": error.message.rstrip(".")}) from None


class ImageUrl(Body):
    """An image, by value."""

    image: Annotated[types_pb2.Image, PlainValidator(_image)] = Field(alias="url")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Body):
    """An image in a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _part(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"~{kind}" if kind in ("text", "refusal", "image_url") else None


Part = Annotated[
    Annotated[TextPart, Tag("~text")]
    | Annotated[RefusalPart, Tag("~refusal")]
    | Annotated[ImagePart, Tag("~image_url")],
    Discriminator(
        _part,
        custom_error_type="part_type",
        custom_error_message="Input should be a part {'type': 'text', 'text': …} or {'type': 'image_url', "
        "'image_url': {'url': 'data:…'}}; this platform accepts no audio and no files",
    ),
]
Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[Part], Field(max_length=rules.MAX_PARTS), Tag("~parts")],
    branch(text=str, parts=list),
]


def text_and_images(
    content: str | Sequence[TextPart | RefusalPart | ImagePart] | None,
) -> tuple[str, list[types_pb2.Image]]:
    """The text, its parts as lines, and the images, each with its position in the text."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts: list[str] = []
    shown = []
    for part in content:
        if isinstance(part, ImagePart):
            image, position = part.image_url.image, len("\n".join(texts))
            detail = _DETAILS[part.image_url.detail]
            shown.append(
                types_pb2.Image(media_type=image.media_type, data=image.data, detail=detail, position=position)
            )
        else:
            texts.append(part.text if isinstance(part, TextPart) else part.refusal)
    return "\n".join(texts), shown


def image_as_sent(content: object, field: str) -> str:
    """The path in the client's message for a path in ours: "content[1].image_url.url" for "images[0].data"."""
    place = re.match(r"images\[(\d+)\](\.(?:data|media_type))?", field)
    parts = content if isinstance(content, list) else []
    numbers = [i for i, part in enumerate(parts) if isinstance(part, ImagePart)]
    if place is None or int(place[1]) >= len(numbers):
        return "content"
    return f"content[{numbers[int(place[1])]}].image_url" + (".url" if place[2] else "")
