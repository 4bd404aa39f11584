"""The caller of the current request."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from genaifactory_common import identity, testing
from genaifactory_common.errors import PermissionDenied, Unauthenticated


def test_outside_of_a_request_there_is_no_caller() -> None:
    with pytest.raises(Unauthenticated, match="no caller context"):
        identity.current()
    assert identity.passes() is None
    assert identity.request_id() == ""


def test_the_error_of_a_missing_permission_names_it() -> None:
    testing.CALLER.require("chat")
    with pytest.raises(PermissionDenied, match="'developer' has no permission 'operate'"):
        testing.CALLER.require("operate")


async def test_each_task_has_its_own_caller() -> None:
    async def act(tenant: str) -> str:
        testing.act_as(replace(testing.CALLER, tenant=tenant))
        await asyncio.sleep(0)
        return identity.current().tenant

    assert list(await asyncio.gather(act("one"), act("two"))) == ["one", "two"]
    with pytest.raises(Unauthenticated):
        identity.current()
