"""Object storage (S3, Google Cloud Storage, Azure) by obstore: where its errors become ours.

Credentials, regions and endpoints are in the environment, under the names that the providers' own tools read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genaifactory_common.errors import InvalidArgument, NotFound, Unavailable
from genaifactory_common.redaction import without_secrets

logger = logging.getLogger(__name__)

_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")


def opened(url: str) -> Any:
    """The store of s3://, gs:// or az://BUCKET/PREFIX. Blocks, since it may read credentials from files."""
    from obstore import store

    return store.from_url(url)


@contextmanager
def translated(url: str, *, field: str) -> Iterator[None]:
    """Raises a store's errors in the block as InvalidArgument, NotFound or Unavailable, but not FileNotFoundError."""
    from obstore import exceptions

    shown = without_secrets(url)
    refused = InvalidArgument(
        f"The storage refuses access to {shown}: check the credentials in the environment.", field=field
    )
    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise refused from None
    except (exceptions.InvalidPathError, exceptions.UnknownConfigurationKeyError, ValueError) as error:
        raise InvalidArgument(f"{shown} cannot be read: {without_secrets(str(error))}", field=field) from None
    except exceptions.BaseError as error:
        match _status(error):
            case "401" | "403":
                raise refused from None
            case "404":
                raise NotFound(f"There is no {shown}.", field=field) from None
        logger.warning("reading %s failed: %s", shown, without_secrets(str(error)))
        raise Unavailable(f"{shown} cannot be read now ({type(error).__name__}); the log says why.") from None


def _status(error: Exception) -> str:
    """The HTTP status of a request that failed, which errors of listings have in their text alone; empty: none."""
    found = _STATUS.search(str(error))
    return found[1] if found else ""
