"""The key with which the gateway signs callers: made once, and its public half copied to where it is checked.

It is not rotated: the services hold one public key at a time, so a new one would make them refuse every call until all
of them have it. To replace it, delete its data, run the issuer, and restart the services.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from genaifactory_common.errors import InvalidArgument
from genaifactory_common.identity import Signer
from genaifactory_operator.configuration import ContextKey
from genaifactory_operator.secret import Change, Secret

PRIVATE, PUBLIC = "GENAIFACTORY_CONTEXT_PRIVATE_KEY", "GENAIFACTORY_CONTEXT_PUBLIC_KEY"
"""Keys of the Secrets, and the settings that read them."""


def due(wanted: ContextKey | None, secrets: Mapping[str, Secret]) -> tuple[Change, ...]:
    """What is to be changed. Raises InvalidArgument when the private Secret holds something that is no key."""
    if wanted is None:
        return ()
    private = secrets[wanted.private_secret]
    text = private.data.get(PRIVATE)
    if not text:
        made = base64.b64encode(Signer.generate().private_key)
        return (Change(private, {PRIVATE: made}, "a new key for the callers' contexts: there is none"),)
    try:
        signer = Signer(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidArgument(
            f"The Secret {private.name} holds no key in {PRIVATE}: it must be 32 bytes in base64. Delete it to have a "
            "new one made."
        ) from None
    public = base64.b64encode(signer.public_key)
    return tuple(
        Change(secrets[name], {PUBLIC: public}, "the public key of the callers' contexts")
        for name in wanted.public_secrets
        if secrets[name].data.get(PUBLIC) != public
    )
