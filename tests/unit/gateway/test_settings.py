"""Wrong settings are refused at the start."""

from __future__ import annotations

import base64
import socket

import pytest
from pydantic import SecretStr, ValidationError

from genaifactory_gateway.http.server import HttpServer
from genaifactory_gateway.settings import Http, Settings
from tests.unit.gateway.conftest import Start

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize("key", ["", "abc", "%%%", base64.b64encode(bytes(31)).decode()])
def test_an_invalid_signing_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="context_private_key"):
        Settings(context_private_key=SecretStr(key))


def test_the_signing_key_is_read_from_the_environment_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIFACTORY_CONTEXT_PRIVATE_KEY", KEY)
    settings = Settings()
    assert settings.signer().current.private_key == bytes(range(32))
    assert KEY not in f"{settings!r} {settings}"


async def test_an_address_that_is_taken_is_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = HttpServer(Http(address=address))
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await server.listening(_nobody, drain_seconds=1).__aenter__()


async def _nobody(*_: object) -> None:
    raise AssertionError("nothing is asked")
