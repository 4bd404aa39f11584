"""Settings from the environment, for the command line: a wrong one is an error of one line."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from genaifactory_common import settings
from genaifactory_common.errors import InvalidArgument

AnySettings = TypeVar("AnySettings", bound=settings.Common)


def load(kind: type[AnySettings]) -> AnySettings:
    """Raises InvalidArgument that names the environment variable."""
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = settings.variable(first["loc"])
        raise InvalidArgument(f"The environment variable {name} is wrong: {first['msg']}.", field=name) from None
