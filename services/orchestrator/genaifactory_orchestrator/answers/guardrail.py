"""The client of the guardrails: input is checked as a whole, output while it is being written.

Everything fails closed: a missing, empty or malformed verdict is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import grpc.aio

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, images, specs
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import (
    Cancelled,
    ContentBlocked,
    DeadlineExceeded,
    FactoryError,
    InvalidArgument,
    Unavailable,
)
from genaifactory_common.masking import mask

INPUT = types_pb2.DIRECTION_INPUT
OUTPUT = types_pb2.DIRECTION_OUTPUT
USER = "user"

# A UUID, as in ids of tool calls. It is not scanned: one in some hundred has digits that could be a card number.
_RANDOM_ID = re.compile(
    r"([A-Za-z]{1,16}[-_]){0,4}([0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
)

_CHECKS_AT_ONCE = 8
# Pieces that arrive faster than this are sent as one; the first of a text, and its end, are sent at once.
_GATHER_SECONDS = 0.005
# Bound of the text that waits to be sent to the guardrail; with more the model has to wait.
_MAX_WAITING_CHARACTERS = 32_768


@dataclass(frozen=True)
class Checked:
    """The client's messages after the input check."""

    messages: tuple[types_pb2.Message, ...]
    verdicts: tuple[types_pb2.Verdict, ...]
    """One for each text that was scanned, and one without scanners where images passed."""
    masked: bool
    """Whether some text was masked."""


class InputBlocked(ContentBlocked):
    """The policy refuses the input; carries the verdicts, for the record."""

    def __init__(
        self, field: str, verdict: types_pb2.Verdict, verdicts: tuple[types_pb2.Verdict, ...], message: str = ""
    ) -> None:
        """field, verdict: of the refused text; verdicts: on all texts. message: empty: the default for texts."""
        found = {finding.entity_type for finding in verdict.findings if finding.action == verdict.action}
        what = f" ({', '.join(sorted(found))})" if found else ""
        message = message or f"A guardrail refuses this text{what}. Remove what it must not contain."
        super().__init__(message, field=field)
        self.verdicts = verdicts


class Guard:
    """Safety's client."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._stub = safety_pb2_grpc.SafetyServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def check_input(
        self, messages: Sequence[types_pb2.Message], policy: specs.Policy, settings: Mapping[str, str] | None = None
    ) -> Checked:
        """Checks every text of the messages, and the others that reach the model: `settings`, texts by their field.

        A setting is code (a schema, a tool): a mask would change its meaning, so it is refused where a message would be
        masked. Images cannot be scanned: they pass where the policy allows them. Raises InputBlocked, InvalidArgument
        (too long), Unavailable.
        """
        unscanned = _check_images(messages, policy)
        texts = [(i, place, text) for i, message in enumerate(messages) for place, text in _texts(message)]
        settings = settings or {}
        at_once = asyncio.Semaphore(_CHECKS_AT_ONCE)

        async def check(field: str, text: str) -> safety_pb2.CheckTextResponse:
            async with at_once:
                return await self._check(INPUT, text, policy, field)

        wanted = [(f"messages[{i}].{place}", text) for i, place, text in texts] + list(settings.items())
        if len(wanted) == 1:
            responses = [await check(*wanted[0])]
        else:
            async with task_group() as tasks:
                running = [tasks.create_task(check(*text)) for text in wanted]
            responses = [task.result() for task in running]
        verdicts = (*(response.verdict for response in responses), *unscanned)
        for (field, text), response in zip(wanted, responses, strict=True):
            refused = field in settings and response.text != text
            if refused or response.verdict.action == types_pb2.ACTION_BLOCK:
                raise InputBlocked(field, response.verdict, verdicts)
        changed = {
            (i, place): response
            for (i, place, text), response in zip(texts, responses, strict=False)  # the settings' come after them
            if response.text != text
        }
        if not changed:
            return Checked(tuple(messages), verdicts, masked=False)
        return Checked(
            tuple(_with_texts(i, message, changed) for i, message in enumerate(messages)), verdicts, masked=True
        )

    async def check_ids(
        self, ids: Mapping[str, str], user: str, policy: specs.Policy
    ) -> tuple[str, tuple[types_pb2.Verdict, ...]]:
        """Checks ids by their field, and `user`, in as few calls as possible. Returns the masked user and the verdicts.

        An id is refused where a text would be masked, since it names something; `user` is masked, since people send
        e-mail addresses in it.
        Raises InputBlocked, InvalidArgument (too long), Unavailable.
        """
        fields: dict[str, str] = {}
        for field, value in ids.items():
            fields.setdefault(value, field)  # each value once
        named = [(field, value) for value, field in fields.items()]
        named = [(field, value) for field, value in (*named, (USER, user)) if value and not _RANDOM_ID.fullmatch(value)]
        verdicts: tuple[types_pb2.Verdict, ...] = ()
        for lines in _within(named, policy.max_input_characters):
            text = "\n".join(value for _, value in lines)
            response = await self._check(INPUT, text, policy, lines[0][0])
            verdicts = (*verdicts, response.verdict)
            if response.verdict.action == types_pb2.ACTION_BLOCK:
                raise InputBlocked(_worst(lines, response.verdict), response.verdict, verdicts)
            if response.text == text:
                continue
            field = lines[-1][0]
            before = text[: len(text) - len(lines[-1][1])]
            if field != USER or not response.text.startswith(before):
                raise InputBlocked(_worst(lines, response.verdict), response.verdict, verdicts)
            user = response.text[len(before) :]
        return user, verdicts

    async def check_output(self, text: str, policy: specs.Policy) -> tuple[types_pb2.Verdict, str]:
        """The verdict on a whole output text, and the text that may be released. Raises Unavailable."""
        response = await self._check(OUTPUT, text, policy, "output")
        return response.verdict, response.text

    def open_output(self, policy: specs.Policy, *, timeout_seconds: float) -> GuardedStream:
        """A stream for one text that is about to be written. Opens at once, before the first piece."""
        return GuardedStream(
            channels.Duplex(self._stub.CheckStream, timeout_seconds=timeout_seconds), policy, self._timeout_seconds
        )

    async def _check(
        self, direction: types_pb2.Direction.ValueType, text: str, policy: specs.Policy, field: str
    ) -> safety_pb2.CheckTextResponse:
        request = safety_pb2.CheckTextRequest(direction=direction, text=text, policy=policy.name)
        try:
            response = await channels.unary(self._stub.CheckText, request, timeout_seconds=self._timeout_seconds)
        except FactoryError as error:
            if isinstance(error, InvalidArgument) and error.field == "text" and direction == INPUT:
                raise type(error)(error.message, field=field, reason=error.reason) from None
            raise _could_not_run(error) from error
        _require_scanned(response.verdict, policy, text)
        return response


class GuardedStream:
    """One text in CheckStream; an async context manager that ends the call.

    One task feeds (`feed`, then `end`), one runs `send`, one iterates `released`, all concurrently.
    """

    def __init__(self, call: channels.Duplex, policy: specs.Policy, verdict_timeout_seconds: float) -> None:
        self._call = call
        self._policy = policy
        self._verdict_timeout_seconds = verdict_timeout_seconds
        self._waiting: list[str] = []
        self._waiting_characters = 0
        self._sent_characters = 0
        self._complete = False
        self._something_to_do = asyncio.Event()
        self._no_more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._over = asyncio.Event()
        self.verdict: types_pb2.Verdict | None = None
        """The outcome, once `released` has ended."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.close()

    async def feed(self, text: str) -> None:
        """Adds the next piece; waits while the guardrail is behind. After the verdict it does nothing."""
        if self._over.is_set():
            return
        self._waiting.append(text)
        self._waiting_characters += len(text)
        self._something_to_do.set()
        if self._waiting_characters >= _MAX_WAITING_CHARACTERS:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """Marks the end of the text."""
        self._complete = True
        self._no_more.set()
        self._something_to_do.set()

    async def send(self) -> None:
        """Sends what is fed until the end. Pieces in quick succession are sent as one.

        `released` raises the error of a failed call; this raises Unavailable only for a verdict that does not come.
        """
        opening = safety_pb2.CheckStreamOpen(direction=OUTPUT, policy=self._policy.name)
        try:
            await self._call.send(safety_pb2.CheckStreamRequest(open=opening))
            while True:
                await self._something_to_do.wait()
                self._something_to_do.clear()
                if self._over.is_set():
                    break
                complete = self._complete
                if text := self._take_waiting():
                    await self._call.send(safety_pb2.CheckStreamRequest(text=text))
                if complete:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER_SECONDS):
                        await self._no_more.wait()
            await self._call.done_sending()
        except FactoryError:
            self._room.set()
            return
        try:
            async with asyncio.timeout(self._verdict_timeout_seconds):
                await self._over.wait()
        except TimeoutError:
            raise Unavailable("The guardrail gave no verdict on the answer in time; the answer is stopped.") from None

    def _take_waiting(self) -> str:
        text = "".join(self._waiting)
        self._waiting.clear()
        self._waiting_characters = 0
        self._sent_characters += len(text)
        self._room.set()
        return text

    async def released(self) -> AsyncIterator[str]:
        """The released pieces, until the verdict. Raises Unavailable when the guardrail fails."""
        try:
            async for response in self._call:
                if self.verdict is not None:
                    raise Unavailable("The guardrail sent more after its verdict; the answer is stopped.")
                if response.WhichOneof("part") == "verdict":
                    self.verdict = response.verdict
                    # The peer waits for our end of the stream; after a block the rest of the text is not sent.
                    self._stop()
                elif response.released:
                    yield response.released
        except FactoryError as error:
            raise _could_not_run(error) from error
        finally:
            self._stop()
        self._require_verdict()

    def _stop(self) -> None:
        """Ends feeding and sending, and wakes the tasks that wait."""
        self._over.set()
        self._no_more.set()
        self._room.set()
        self._something_to_do.set()

    def _require_verdict(self) -> None:
        if self.verdict is None:
            raise Unavailable("The guardrail ended without a verdict; the answer is stopped.")
        if self.verdict.action == types_pb2.ACTION_BLOCK:
            return
        if not self._complete or self._waiting:
            raise Unavailable("The guardrail ended before the answer did; the answer is stopped.")
        _require_scanned(self.verdict, self._policy, "x" * min(self._sent_characters, 1))


def _check_images(messages: Sequence[types_pb2.Message], policy: specs.Policy) -> tuple[types_pb2.Verdict, ...]:
    """The verdict on images, which no scanner reads; none without images. Raises InputBlocked."""
    field = images.first(messages)
    if field is None:
        return ()
    verdict = types_pb2.Verdict(action=types_pb2.ACTION_ALLOW, policy=policy.name, direction=INPUT)
    if policy.images == "allow":
        return (verdict,)
    verdict.action = types_pb2.ACTION_BLOCK
    for _ in range(sum(len(message.images) for message in messages)):
        verdict.findings.add(entity_type="IMAGE", score=1.0, action=verdict.action, scanner="policy")
    message = (
        f"The guardrail policy '{policy.name}' cannot scan images and blocks them: leave the image out, or have the "
        "platform's operator set the policy's 'images' to allow."
    )
    raise InputBlocked(field, verdict, (verdict,), message)


def _texts(message: types_pb2.Message) -> list[tuple[str, str]]:
    texts = [("content", message.content)] if message.content else []
    texts += [
        (f"tool_calls[{j}].arguments_json", call.arguments_json)
        for j, call in enumerate(message.tool_calls)
        if call.arguments_json
    ]
    return texts


def _within(named: Sequence[tuple[str, str]], max_characters: int) -> Iterator[list[tuple[str, str]]]:
    """Parts whose values, one in a line, have at most so many characters; a longer value is a part of its own."""
    part: list[tuple[str, str]] = []
    size = 0
    for field, value in named:
        if part and size + 1 + len(value) > max_characters:
            yield part
            part, size = [], 0
        part.append((field, value))
        size += 1 + len(value)
    if part:
        yield part


def _worst(lines: Sequence[tuple[str, str]], verdict: types_pb2.Verdict) -> str:
    """The field of the first line with a finding of the verdict's action."""
    starts = [f.start_offset for f in verdict.findings if f.action == verdict.action]
    fields = [field for field, value in lines for _ in range(len(value) + 1)]
    return next((fields[start] for start in sorted(starts) if start < len(fields)), lines[0][0])


def _with_texts(
    i: int, message: types_pb2.Message, changed: dict[tuple[int, str], safety_pb2.CheckTextResponse]
) -> types_pb2.Message:
    result = types_pb2.Message()
    result.CopyFrom(message)
    if response := changed.get((i, "content")):
        result.content = response.text
        for image in result.images:
            image.position = min(_moved(image.position, response.verdict), len(response.text))
    for j, call in enumerate(result.tool_calls):
        if response := changed.get((i, f"tool_calls[{j}].arguments_json")):
            call.arguments_json = response.text
    return result


def _moved(position: int, verdict: types_pb2.Verdict) -> int:
    """The position in the masked text of a position in the scanned one; within a masked span: before the mask."""
    moved = position
    for finding in verdict.findings:
        if finding.action == types_pb2.ACTION_MASK and finding.start_offset < position:
            moved -= min(finding.end_offset, position) - finding.start_offset
            moved += len(mask(finding.entity_type)) if finding.end_offset <= position else 0
    return moved


def _require_scanned(verdict: types_pb2.Verdict, policy: specs.Policy, text: str) -> None:
    nothing_to_scan_for = not policy.rules and not policy.banned_terms
    if verdict.action == types_pb2.ACTION_UNSPECIFIED or (text and not verdict.scanners and not nothing_to_scan_for):
        raise Unavailable("The guardrail gave no verdict; the text is not used.")


def _could_not_run(error: FactoryError) -> FactoryError:
    remaining = channels.remaining_seconds()
    too_late = isinstance(error, DeadlineExceeded) and remaining is not None and remaining <= 0
    if too_late or isinstance(error, Cancelled):
        return error
    return Unavailable(
        "The guardrail could not run, so the text is not used; try again later.", retry_after_seconds=1.0
    )
