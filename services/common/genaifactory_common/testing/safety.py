"""A fake safety service: masks and blocks a test's words, and fails on request.

fake = FakeSafety(mask={"0912345678": "<PHONE>"}, block=("bomb",))
async with served(fake.app(VERIFIER)) as channel: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import tokens
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry


class FakeSafety(safety_pb2_grpc.SafetyServiceServicer):
    """Searches for exact words. Like the real service, it releases only text that cannot become part of a finding."""

    def __init__(self, *, mask: Mapping[str, str] | None = None, block: Iterable[str] = ()) -> None:
        self.mask = dict(mask or {})
        self.block = tuple(block)
        self.error: FactoryError | None = None
        """Raised by every call."""
        self.stream_error_after: int | None = None
        """CheckStream fails with `error`, or an internal error, once it has received this many characters."""
        self.scanners: tuple[str, ...] = ("fake",)
        self.gives_verdicts = True
        """False: CheckStream ends with OK and without one."""
        self.verdict_action: types_pb2.Action.ValueType | None = None
        """Instead of the action of the findings."""
        self.hold: asyncio.Event | None = None
        """Calls wait for it."""
        self.checked: list[tuple[types_pb2.Direction.ValueType, str]] = []
        """Texts of CheckText, and of each stream as a whole."""
        self.streams_running = 0

    async def CheckText(self, request: safety_pb2.CheckTextRequest, context: Any) -> safety_pb2.CheckTextResponse:
        """Checks a whole text."""
        self.checked.append((request.direction, request.text))
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        text = self._masked(request.text)
        verdict = self._verdict(request.text, request.direction, request.policy)
        blocked = verdict.action == types_pb2.ACTION_BLOCK
        return safety_pb2.CheckTextResponse(verdict=verdict, text="" if blocked else text)

    async def CheckStream(
        self, requests: AsyncIterator[safety_pb2.CheckStreamRequest], context: Any
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        """Checks a text that is still being written."""
        self.streams_running += 1
        try:
            opening = (await anext(requests)).open
            text, released = "", 0
            async for request in requests:
                text += request.text
                if self.hold is not None:
                    await self.hold.wait()
                if self.stream_error_after is not None and len(text) >= self.stream_error_after:
                    raise self.error or RuntimeError("the fake scanner broke")
                if any(word in text for word in self.block):
                    break
                # As much text stays unreleased as the longest word has, and no mask is cut.
                safe = self._masked(text)[: -max(map(len, (*self.mask, *self.block, " ")))]
                if len(safe) > released and self._masked(text).startswith(safe):
                    yield safety_pb2.CheckStreamResponse(released=safe[released:])
                    released = len(safe)
            verdict = self._verdict(text, opening.direction, opening.policy)
            if verdict.action != types_pb2.ACTION_BLOCK and (rest := self._masked(text)[released:]):
                yield safety_pb2.CheckStreamResponse(released=rest)
            self.checked.append((opening.direction, text))
            if self.gives_verdicts:
                yield safety_pb2.CheckStreamResponse(verdict=verdict)
        finally:
            self.streams_running -= 1

    def app(self, verifier: tokens.Verifier) -> ServiceApp:
        """For `served`."""
        return ServiceApp(
            name="safety",
            telemetry=Telemetry("safety"),
            service_names=("genaifactory.safety.v1.SafetyService",),
            register=lambda server: safety_pb2_grpc.add_SafetyServiceServicer_to_server(self, server),
            lifespan=_nothing,
            verifier=verifier,
        )

    def _masked(self, text: str) -> str:
        for word, mask in self.mask.items():
            text = text.replace(word, mask)
        return text

    def _verdict(self, text: str, direction: types_pb2.Direction.ValueType, policy: str) -> types_pb2.Verdict:
        found = [("FAKE_MASKED", word, types_pb2.ACTION_MASK) for word in self.mask if word in text]
        found += [("FAKE_BLOCKED", word, types_pb2.ACTION_BLOCK) for word in self.block if word in text]
        action = max((action for _, _, action in found), default=types_pb2.ACTION_ALLOW)
        findings = [
            types_pb2.Finding(
                entity_type=entity,
                start_offset=text.index(word),
                end_offset=text.index(word) + len(word),
                score=1.0,
                action=what,
                scanner="fake",
            )
            for entity, word, what in found
        ]
        return types_pb2.Verdict(
            action=action if self.verdict_action is None else self.verdict_action,
            findings=findings,
            policy=policy,
            scanners=self.scanners,
            scanned_characters=len(text),
            direction=direction,
        )


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
