"""The contract's messages as records and back; whatever a client may get wrong is found here, with its field's path."""

from __future__ import annotations

import re
from typing import Any, cast, get_args

from google.protobuf import json_format, timestamp_pb2

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_monitor.message_dicts import enum_name, enum_number, from_dict, to_dict, without_nul
from genaifactory_monitor.records import (
    Feedback,
    Filter,
    GuardrailName,
    Interaction,
    OutcomeName,
    RatingName,
    Usage,
    UsageKey,
)

MAX_INTERACTIONS = 500
MAX_REQUEST_IDS = 500
_MAX_ID = 128
_MAX_NAME = 256
_MAX_MESSAGE = 10_000
_MAX_CORRECTION = 100_000
_MAX_COMMENT = 10_000
_MAX_GROUND_TRUTH = 65_536
_MAX_COUNT = 10**15
_EARLIEST_US = 946_684_800_000_000  # 2000-01-01
_LATEST_US = 253_370_764_800_000_000  # 9999-01-01: the day after any moment is still a date
_CLOCK_SKEW_US = 86_400_000_000
_TENANT = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_OUTCOMES = monitor_pb2.Outcome.DESCRIPTOR
_RATINGS = monitor_pb2.Rating.DESCRIPTOR


def interaction(message: monitor_pb2.Interaction, path: str, *, now_us: int, max_bytes: int) -> Interaction:
    """The record in a message that stands at `path`. Raises InvalidArgument, TooLarge."""
    size = message.ByteSize()
    if size > max_bytes:
        raise TooLarge(f"{path} has {size} bytes; at most {max_bytes} are kept.", field=path)
    return Interaction(
        tenant=_tenant(message.tenant, f"{path}.tenant"),
        request_id=_required(message.request_id, f"{path}.request_id"),
        start_time_us=_start(message, f"{path}.start_time", now_us),
        principal=_text(message.principal, f"{path}.principal", _MAX_NAME),
        key_id=_text(message.key_id, f"{path}.key_id", _MAX_NAME),
        end_user=_text(message.user, f"{path}.user", _MAX_NAME),
        task=_required(message.task, f"{path}.task"),
        route=_text(message.route, f"{path}.route", _MAX_NAME),
        model=_text(message.model, f"{path}.model", _MAX_NAME),
        prompt_version=_text(message.prompt_version, f"{path}.prompt_version", _MAX_NAME),
        index_version=_text(message.index_version, f"{path}.index_version", _MAX_NAME),
        conversation_id=_text(message.conversation_id, f"{path}.conversation_id", _MAX_NAME),
        trace_id=_matching(message.trace_id, f"{path}.trace_id", _TRACE_ID, "32 hex digits, or empty"),
        outcome=_outcome(message.outcome, f"{path}.outcome"),
        error_reason=_text(message.error_reason, f"{path}.error_reason", _MAX_NAME),
        error_message=_text(message.error_message, f"{path}.error_message", _MAX_MESSAGE),
        cached=message.cached,
        refused=message.refused,
        prompt_tokens=_count(message.usage.prompt_tokens, f"{path}.usage.prompt_tokens"),
        completion_tokens=_count(message.usage.completion_tokens, f"{path}.usage.completion_tokens"),
        cached_prompt_tokens=_count(message.usage.cached_prompt_tokens, f"{path}.usage.cached_prompt_tokens"),
        cost_micros=_count(message.cost_micros, f"{path}.cost_micros"),
        currency=_currency(message, f"{path}.currency"),
        time_to_first_token_us=_count(message.time_to_first_token_us, f"{path}.time_to_first_token_us"),
        duration_us=_count(message.duration_us, f"{path}.duration_us"),
        size_bytes=size,
        attempts=[to_dict(item) for item in message.attempts],
        passages=[to_dict(item) for item in message.passages],
        citations=[to_dict(item) for item in message.citations],
        verdicts=[to_dict(item) for item in message.verdicts],
        input=[to_dict(item) for item in message.input],
        output=without_nul(message.output),
    )


def interaction_message(record: Interaction) -> monitor_pb2.Interaction:
    """The message of a record."""
    return monitor_pb2.Interaction(
        request_id=record.request_id,
        tenant=record.tenant,
        principal=record.principal,
        key_id=record.key_id,
        user=record.end_user,
        start_time=_timestamp(record.start_time_us),
        task=record.task,
        route=record.route,
        model=record.model,
        attempts=[from_dict(monitor_pb2.ModelAttempt, item) for item in record.attempts],
        prompt_version=record.prompt_version,
        index_version=record.index_version,
        passages=[from_dict(monitor_pb2.PassageReference, item) for item in record.passages],
        citations=[from_dict(types_pb2.Citation, item) for item in record.citations],
        verdicts=[from_dict(types_pb2.Verdict, item) for item in record.verdicts],
        input=[from_dict(types_pb2.Message, item) for item in record.input],
        output=record.output,
        usage=types_pb2.TokenUsage(
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cached_prompt_tokens=record.cached_prompt_tokens,
        ),
        cost_micros=record.cost_micros,
        currency=record.currency,
        time_to_first_token_us=record.time_to_first_token_us,
        duration_us=record.duration_us,
        outcome=cast(monitor_pb2.Outcome.ValueType, enum_number(_OUTCOMES, record.outcome)),
        error_reason=record.error_reason,
        error_message=record.error_message,
        cached=record.cached,
        refused=record.refused,
        conversation_id=record.conversation_id,
        trace_id=record.trace_id,
    )


def feedback(
    message: monitor_pb2.RecordFeedbackRequest, *, tenant: str, principal: str, key_id: str, now_us: int
) -> Feedback:
    """The feedback that a caller gives now. Raises InvalidArgument, TooLarge."""
    rating = enum_name(_RATINGS, message.rating)
    if message.rating == monitor_pb2.RATING_UNSPECIFIED:
        rating = ""
    elif rating not in get_args(RatingName):
        raise InvalidArgument(f"rating must be RATING_UP or RATING_DOWN, not {message.rating}.", field="rating")
    ground_truth: dict[str, Any] | None = None
    if message.HasField("ground_truth"):
        if message.ground_truth.ByteSize() > _MAX_GROUND_TRUTH:
            raise TooLarge(f"ground_truth is longer than {_MAX_GROUND_TRUTH} bytes.", field="ground_truth")
        ground_truth = _ground_truth(message)
    given = Feedback(
        tenant=tenant,
        feedback_id=_required(message.feedback_id, "feedback_id"),
        request_id=_required(message.request_id, "request_id"),
        time_us=now_us,
        principal=principal,
        key_id=key_id,
        rating=cast(RatingName, rating),
        correction=_text(message.correction, "correction", _MAX_CORRECTION),
        comment=_text(message.comment, "comment", _MAX_COMMENT),
        ground_truth=ground_truth,
    )
    if not (given.rating or given.correction or given.comment or given.ground_truth):
        raise InvalidArgument("Feedback needs a rating, correction, comment or ground_truth.", field="rating")
    return given


def interaction_filter(message: monitor_pb2.InteractionFilter, *, tenant: str) -> Filter:
    """The filter for one tenant that `servicer` has allowed. Raises InvalidArgument."""
    start_us = _moment(message.start_time, "filter.start_time") if message.HasField("start_time") else None
    end_us = _moment(message.end_time, "filter.end_time") if message.HasField("end_time") else None
    if start_us is not None and end_us is not None and start_us >= end_us:
        raise InvalidArgument("filter.end_time must be after filter.start_time.", field="filter.end_time")
    if len(message.request_ids) > MAX_REQUEST_IDS:
        raise InvalidArgument(
            f"filter.request_ids has {len(message.request_ids)} ids; at most {MAX_REQUEST_IDS} may be asked for.",
            field="filter.request_ids",
        )
    outcome: OutcomeName | None = None
    if message.outcome != monitor_pb2.OUTCOME_UNSPECIFIED:
        outcome = _outcome(message.outcome, "filter.outcome")
    ended_us = _moment(message.ended_since, "filter.ended_since") if message.HasField("ended_since") else None
    return Filter(
        tenant=tenant,
        start_time_us=start_us,
        end_time_us=end_us,
        route=_text(message.route, "filter.route", _MAX_NAME),
        model=_text(message.model, "filter.model", _MAX_NAME),
        request_ids=tuple(_required(value, f"filter.request_ids[{i}]") for i, value in enumerate(message.request_ids)),
        outcome=outcome,
        guardrail_action=_guardrail_action(message.guardrail_action, "filter.guardrail_action"),
        key_id=_text(message.key_id, "filter.key_id", _MAX_NAME),
        ended_since_us=ended_us,
    )


def _guardrail_action(value: int, path: str) -> GuardrailName | None:
    if value == types_pb2.ACTION_UNSPECIFIED:
        return None
    name = enum_name(types_pb2.Action.DESCRIPTOR, value)
    if name not in get_args(GuardrailName):
        raise InvalidArgument(f"{path} must be ACTION_MASK or ACTION_BLOCK, not {value}.", field=path)
    return cast(GuardrailName, name)


def usage_period(message: monitor_pb2.GetUsageRequest, *, now_us: int) -> tuple[int, int]:
    """First moment (inclusive) and last (exclusive), in microseconds since 1970. Raises InvalidArgument."""
    end_us = _moment(message.end_time, "end_time") if message.HasField("end_time") else now_us
    start_us = end_us - 30 * 86_400_000_000
    if message.HasField("start_time"):
        start_us = _moment(message.start_time, "start_time")
    if start_us >= end_us:
        raise InvalidArgument("end_time must be after start_time.", field="end_time")
    return start_us, end_us


def usage_row(key: UsageKey, sums: Usage) -> monitor_pb2.UsageRow:
    """The message of one row."""
    return monitor_pb2.UsageRow(
        day=key.day,
        tenant=key.tenant,
        key_id=key.key_id,
        model=key.model,
        requests=sums.requests,
        errors=sums.errors,
        usage=types_pb2.TokenUsage(
            prompt_tokens=sums.prompt_tokens,
            completion_tokens=sums.completion_tokens,
            cached_prompt_tokens=sums.cached_prompt_tokens,
        ),
        cost_micros=sums.cost_micros,
        currency=key.currency,
    )


def requested_tenant(name: str, field: str) -> str:
    """The tenant that a reader names. Raises InvalidArgument."""
    return _tenant(name, field)


def _tenant(value: str, field: str) -> str:
    if not _TENANT.fullmatch(value):
        raise InvalidArgument(
            f"{field} must be a tenant's name (1 to 63 lower-case letters, digits, '.', '_' or '-'){_seen(value)}.",
            field=field,
        )
    return value


def _required(value: str, field: str) -> str:
    if not value or "\0" in value:
        raise InvalidArgument(f"{field} must have 1 to {_MAX_ID} characters{_seen(value)}.", field=field)
    return _text(value, field, _MAX_ID)


def _text(value: str, field: str, longest: int) -> str:
    if len(value) > longest:
        raise TooLarge(f"{field} has {len(value)} characters; at most {longest} are kept.", field=field)
    return without_nul(value)


def _matching(value: str, field: str, pattern: re.Pattern[str], what: str) -> str:
    if value and not pattern.fullmatch(value):
        raise InvalidArgument(f"{field} must be {what}.", field=field)
    return value


def _count(value: int, field: str) -> int:
    if not 0 <= value <= _MAX_COUNT:
        raise InvalidArgument(f"{field} must be 0 to {_MAX_COUNT}, not {value}.", field=field)
    return value


def _currency(message: monitor_pb2.Interaction, field: str) -> str:
    if message.cost_micros and not message.currency:
        raise InvalidArgument(f"{field} must be given with a cost: an ISO 4217 code such as USD.", field=field)
    return _matching(message.currency, field, _CURRENCY, "an ISO 4217 code such as USD")


def _outcome(number: int, field: str) -> OutcomeName:
    name = enum_name(_OUTCOMES, number)
    if name not in get_args(OutcomeName):
        known = ", ".join(_OUTCOMES.values_by_number[i].name for i in sorted(_OUTCOMES.values_by_number) if i)
        raise InvalidArgument(f"{field} must be one of {known}, not {number}.", field=field)
    return cast(OutcomeName, name)


def _start(message: monitor_pb2.Interaction, field: str, now_us: int) -> int:
    if not message.HasField("start_time"):
        raise InvalidArgument(f"{field} must be given.", field=field)
    moment = _moment(message.start_time, field)
    if moment > now_us + _CLOCK_SKEW_US:
        raise InvalidArgument(f"{field} is more than a day ahead of the monitor's clock.", field=field)
    return moment


def _moment(value: timestamp_pb2.Timestamp, field: str) -> int:
    moment = value.seconds * 1_000_000 + value.nanos // 1000
    if not (_EARLIEST_US <= moment < _LATEST_US and 0 <= value.nanos < 1_000_000_000):
        raise InvalidArgument(f"{field} must be a moment in the years 2000 to 9998.", field=field)
    return moment


def _timestamp(moment_us: int) -> timestamp_pb2.Timestamp:
    seconds, micros = divmod(moment_us, 1_000_000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=micros * 1000)


def _ground_truth(message: monitor_pb2.RecordFeedbackRequest) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(message.ground_truth)
    except (ValueError, json_format.Error):
        raise InvalidArgument(
            "ground_truth must be a JSON object; NaN and infinite numbers are none.", field="ground_truth"
        ) from None


def _seen(value: str) -> str:
    return "; it is empty" if not value else f", not {value[:80]!r}"
