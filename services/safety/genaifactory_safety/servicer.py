"""SafetyService: converts requests to scans, and verdicts to messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_safety.metrics import Scanning
from genaifactory_safety.policies import Policies, Policy
from genaifactory_safety.scanner import StreamScanner
from genaifactory_safety.verdicts import Action, Direction, Verdict
from genaifactory_safety.workers import Workers


class SafetyServicer(safety_pb2_grpc.SafetyServiceServicer):
    """The gRPC service."""

    def __init__(self, policies: Policies, workers: Workers) -> None:
        self._policies = policies
        self._workers = workers

    async def CheckText(self, request: safety_pb2.CheckTextRequest, context: Any) -> safety_pb2.CheckTextResponse:
        """Scans a whole text: a stream of one piece."""
        direction = _direction(request.direction, "direction")
        policy = self._policy(request.policy, direction, "policy")
        _require_size(policy, len(request.text))
        scanner, scanning = StreamScanner(policy), Scanning(policy.name, direction)
        with scanning:
            self._workers.admit()
            text = await self._workers.push(scanner, request.text)
            text += await self._workers.finish(scanner)
            verdict = scanner.verdict()
        scanning.ended(verdict)
        message = _message(verdict, policy, direction)
        return safety_pb2.CheckTextResponse(verdict=message, text="" if scanner.blocked else text)

    async def CheckStream(
        self, requests: AsyncIterator[safety_pb2.CheckStreamRequest], context: Any
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        """Scans a text that is still being written."""
        opening = await anext(aiter(requests), None)
        if opening is None or opening.WhichOneof("part") != "open":
            raise InvalidArgument("The first message of the stream must be 'open'.", field="open")
        direction = _direction(opening.open.direction, "open.direction")
        policy = self._policy(opening.open.policy, direction, "open.policy")
        scanner, scanning = StreamScanner(policy), Scanning(policy.name, direction)
        with scanning:
            self._workers.admit()
        received = 0
        async for request in requests:
            if request.WhichOneof("part") != "text":
                raise InvalidArgument("Every message of the stream after the first must be 'text'.", field="text")
            received += len(request.text)
            _require_size(policy, received)
            with scanning:
                released = await self._workers.push(scanner, request.text)
            if released:
                yield safety_pb2.CheckStreamResponse(released=released)
            if scanner.blocked:
                break
        with scanning:
            released = await self._workers.finish(scanner)
            verdict = scanner.verdict()
        scanning.ended(verdict)
        if released:
            yield safety_pb2.CheckStreamResponse(released=released)
        yield safety_pb2.CheckStreamResponse(verdict=_message(verdict, policy, direction))

    def _policy(self, name: str, direction: Direction, field: str) -> Policy:
        if not name:
            raise InvalidArgument(f"'{field}' is missing; it names a policy of factory.yaml.", field=field)
        return self._policies.get(name, direction, field)


def _message(verdict: Verdict, policy: Policy, direction: Direction) -> types_pb2.Verdict:
    return types_pb2.Verdict(
        action=_ACTIONS[verdict.action],
        findings=[
            types_pb2.Finding(
                entity_type=finding.entity,
                start_offset=finding.start,
                end_offset=finding.end,
                score=finding.score,
                action=_ACTIONS[finding.action],
                scanner=finding.scanner,
            )
            for finding in verdict.findings
        ],
        policy=policy.name,
        scanners=verdict.scanners,
        scanned_characters=verdict.scanned_characters,
        direction=_DIRECTIONS[direction],
    )


_ACTIONS = {
    Action.ALLOW: types_pb2.ACTION_ALLOW,
    Action.MASK: types_pb2.ACTION_MASK,
    Action.BLOCK: types_pb2.ACTION_BLOCK,
}
_DIRECTIONS = {Direction.INPUT: types_pb2.DIRECTION_INPUT, Direction.OUTPUT: types_pb2.DIRECTION_OUTPUT}


def _direction(value: types_pb2.Direction.ValueType, field: str) -> Direction:
    for direction, number in _DIRECTIONS.items():
        if number == value:
            return direction
    raise InvalidArgument(f"'{field}' must be DIRECTION_INPUT or DIRECTION_OUTPUT.", field=field)


def _require_size(policy: Policy, characters: int) -> None:
    if policy.max_characters is not None and characters > policy.max_characters:
        raise TooLarge(
            f"The text is longer than the {policy.max_characters} characters that the policy '{policy.name}' accepts.",
            field="text",
        )
