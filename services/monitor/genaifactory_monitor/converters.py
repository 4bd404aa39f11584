"""Converts the contract's messages to records and back, and validates them: an error names the field's path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, cast, get_args

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import bounds
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_common.specs import names
from genaifactory_monitor import release_stats
from genaifactory_monitor.message_dicts import (
    enum_name,
    enum_number,
    make_storable,
    microseconds,
    timestamp,
    without_nul,
)
from genaifactory_monitor.records import (
    DriftFilter,
    Feedback,
    Filter,
    GuardrailName,
    OutcomeName,
    RatingName,
    ReleaseFilter,
    Usage,
    UsageKey,
)

# Fields of Interaction that are sent to the monitor and not stored.
NOT_KEPT: tuple[Literal["traceparent"], ...] = ("traceparent",)
MAX_INTERACTIONS = 500
MAX_REQUEST_IDS = 500
_MAX_ID = 128
_MAX_NAME = 256
_MAX_MESSAGE = 10_000
_MAX_GROUND_TRUTH = 65_536
_MAX_COUNT = 10**15
_MAX_WINDOWS = 100
_MAX_SIGNALS = 100
_EARLIEST_US = 946_684_800_000_000  # 2000-01-01
_LATEST_US = 253_370_764_800_000_000  # 9999-01-01: the day after any moment is still a date
_CLOCK_SKEW_US = 86_400_000_000
_TENANT = re.compile(names.NAME)
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_CURRENCY = re.compile(r"[A-Z]{3}")
# Of a signal of drift: no place for a text of users.
_LABEL = re.compile(r"[A-Za-z0-9 _.'-]{1,64}")
_OUTCOMES = monitor_pb2.Outcome.DESCRIPTOR
_RATINGS = monitor_pb2.Rating.DESCRIPTOR


def interaction(message: monitor_pb2.Interaction, path: str, *, now_us: int, max_bytes: int) -> monitor_pb2.Interaction:
    """The record of the message at `path`. Raises InvalidArgument, TooLarge."""
    size = message.ByteSize()
    if size > max_bytes:
        raise TooLarge(f"{path} has {size} bytes; at most {max_bytes} are kept.", field=path)
    for name, check in _CHECKS:
        check(getattr(message, name), f"{path}.{name}")
    for name in _COUNTS_OF_USAGE:
        _count(getattr(message.usage, name), f"{path}.usage.{name}")
    _require_start(message, f"{path}.start_time", now_us)
    _require_currency(message, f"{path}.currency")
    kept = monitor_pb2.Interaction()
    kept.CopyFrom(message)
    for name in NOT_KEPT:
        kept.ClearField(name)
    make_storable(kept)
    return kept


def feedback(
    message: monitor_pb2.RecordFeedbackRequest, *, tenant: str, principal: str, key_id: str, now_us: int
) -> Feedback:
    """The feedback of a request that arrived at `now_us`. Raises InvalidArgument, TooLarge."""
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
        correction=_text(message.correction, "correction", bounds.MAX_CORRECTION_CHARACTERS),
        comment=_text(message.comment, "comment", bounds.MAX_COMMENT_CHARACTERS),
        ground_truth=ground_truth,
    )
    if not (given.rating or given.correction or given.comment or given.ground_truth):
        raise InvalidArgument("Feedback needs a rating, correction, comment or ground_truth.", field="rating")
    return given


def feedback_message(given: Feedback) -> monitor_pb2.Feedback:
    """The feedback as a message."""
    ground_truth = None
    if given.ground_truth is not None:
        ground_truth = json_format.ParseDict(dict(given.ground_truth), struct_pb2.Struct())
    return monitor_pb2.Feedback(
        feedback_id=given.feedback_id,
        time=timestamp(given.time_us),
        principal=given.principal,
        rating=cast(monitor_pb2.Rating.ValueType, enum_number(_RATINGS, given.rating)),
        correction=given.correction,
        comment=given.comment,
        ground_truth=ground_truth,
    )


def interaction_filter(message: monitor_pb2.InteractionFilter, *, tenant: str) -> Filter:
    """The filter, for a tenant that the caller may read. Raises InvalidArgument."""
    start_us = _moment(message.start_time, "filter.start_time") if message.HasField("start_time") else None
    end_us = _moment(message.end_time, "filter.end_time") if message.HasField("end_time") else None
    if start_us is not None and end_us is not None and start_us >= end_us:
        raise InvalidArgument("filter.end_time must be after filter.start_time.", field="filter.end_time")
    if len(message.request_ids) > MAX_REQUEST_IDS:
        raise InvalidArgument(
            f"filter.request_ids has {len(message.request_ids)} ids; at most {MAX_REQUEST_IDS} are allowed.",
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


def drift_report(
    message: monitor_pb2.DriftReport, *, tenant: str, principal: str, key_id: str, now_us: int
) -> monitor_pb2.DriftReport:
    """The report of a request that arrived at `now_us`, without a verdict. Raises InvalidArgument, TooLarge."""
    kept = monitor_pb2.DriftReport()
    kept.CopyFrom(message)
    kept.DiscardUnknownFields()
    _required(kept.report_id, "report.report_id")
    _matching(kept.route, "report.route", _TENANT, "the name of a route, or empty")
    for name in ("reference", "current"):
        _require_window(getattr(kept, name), f"report.{name}")
    if microseconds(kept.current.end_time) > now_us + _CLOCK_SKEW_US:
        raise InvalidArgument(
            "report.current.end_time is more than a day ahead of the monitor's clock.", field="report.current.end_time"
        )
    _require_between(kept.windows, 1, _MAX_WINDOWS, "report.windows")
    _require_between(kept.needed, 1, kept.windows, "report.needed")
    _require_between(kept.false_discovery_rate, 0, 1, "report.false_discovery_rate")
    _require_between(len(kept.signals), 1, _MAX_SIGNALS, "report.signals", "The number of ")
    for i, signal in enumerate(kept.signals):
        _require_signal(signal, f"report.signals[{i}]")
    if len({signal.name for signal in kept.signals}) < len(kept.signals):
        raise InvalidArgument("report.signals must each have a name of its own.", field="report.signals")
    kept.tenant, kept.principal, kept.key_id = tenant, principal, key_id
    kept.time.CopyFrom(timestamp(now_us))
    kept.ClearField("drifted")
    kept.ClearField("verdict")
    return kept


def drift_filter(message: monitor_pb2.GetDriftReportRequest, *, tenant: str) -> DriftFilter:
    """The filter, for a tenant that the caller may read. Raises InvalidArgument."""
    since = _moment(message.ended_since, "ended_since") if message.HasField("ended_since") else None
    before = _moment(message.ended_before, "ended_before") if message.HasField("ended_before") else None
    if since is not None and before is not None and since >= before:
        raise InvalidArgument("ended_before must be after ended_since.", field="ended_before")
    route = _text(message.route, "route", _MAX_NAME) if message.HasField("route") else None
    return DriftFilter(tenant, route, since, before)


def _guardrail_action(value: int, path: str) -> GuardrailName | None:
    if value == types_pb2.ACTION_UNSPECIFIED:
        return None
    name = enum_name(types_pb2.Action.DESCRIPTOR, value)
    if name not in get_args(GuardrailName):
        raise InvalidArgument(f"{path} must be ACTION_MASK or ACTION_BLOCK, not {value}.", field=path)
    return cast(GuardrailName, name)


def period(
    message: monitor_pb2.GetUsageRequest | monitor_pb2.GetReleaseStatsRequest, *, now_us: int
) -> tuple[int, int]:
    """Start (inclusive) and end (exclusive), in microseconds since 1970. Raises InvalidArgument."""
    end_us = _moment(message.end_time, "end_time") if message.HasField("end_time") else now_us
    start_us = end_us - 30 * 86_400_000_000
    if message.HasField("start_time"):
        start_us = _moment(message.start_time, "start_time")
    if start_us >= end_us:
        raise InvalidArgument("end_time must be after start_time.", field="end_time")
    return start_us, end_us


def release_filter(message: monitor_pb2.GetReleaseStatsRequest, *, tenant: str | None, now_us: int) -> ReleaseFilter:
    """The filter, for a tenant that the caller may read; None: all of them. Raises InvalidArgument."""
    return ReleaseFilter(
        tenant,
        _required(message.route, "route"),
        _text(message.split, "split", _MAX_NAME),
        *release_stats.whole_hours(*period(message, now_us=now_us)),
    )


def usage_row(key: UsageKey, sums: Usage) -> monitor_pb2.UsageRow:
    """One row as a message."""
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
    """The tenant that a request names. Raises InvalidArgument."""
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


def _require_currency(message: monitor_pb2.Interaction, field: str) -> None:
    if message.cost_micros and not message.currency:
        raise InvalidArgument(f"{field} must be given with a cost: an ISO 4217 code such as USD.", field=field)


def _outcome(number: int, field: str) -> OutcomeName:
    name = enum_name(_OUTCOMES, number)
    if name not in get_args(OutcomeName):
        known = ", ".join(_OUTCOMES.values_by_number[i].name for i in sorted(_OUTCOMES.values_by_number) if i)
        raise InvalidArgument(f"{field} must be one of {known}, not {number}.", field=field)
    return cast(OutcomeName, name)


def _require_start(message: monitor_pb2.Interaction, field: str, now_us: int) -> None:
    if not message.HasField("start_time"):
        raise InvalidArgument(f"{field} must be given.", field=field)
    moment = _moment(message.start_time, field)
    if moment > now_us + _CLOCK_SKEW_US:
        raise InvalidArgument(f"{field} is more than a day ahead of the monitor's clock.", field=field)


def _moment(value: timestamp_pb2.Timestamp, field: str) -> int:
    moment = microseconds(value)
    if not (_EARLIEST_US <= moment < _LATEST_US and 0 <= value.nanos < 1_000_000_000):
        raise InvalidArgument(f"{field} must be a moment in the years 2000 to 9998.", field=field)
    return moment


def _require_window(window: monitor_pb2.DriftWindow, path: str) -> None:
    start, end = _moment(window.start_time, f"{path}.start_time"), _moment(window.end_time, f"{path}.end_time")
    if start >= end:
        raise InvalidArgument(f"{path}.end_time must be after {path}.start_time.", field=f"{path}.end_time")
    for name in ("interactions", "conversations", "questions"):
        _count(getattr(window, name), f"{path}.{name}")


def _require_signal(signal: monitor_pb2.DriftSignal, path: str) -> None:
    for name in ("name", "group", "effect_name"):
        if not _LABEL.fullmatch(getattr(signal, name)):
            raise InvalidArgument(
                f"{path}.{name} must have 1 to 64 letters, digits, spaces, '_', '.', '-' or \"'\".",
                field=f"{path}.{name}",
            )
    for name in ("p_value", "adjusted_p_value"):
        _require_between(getattr(signal, name), 0, 1, f"{path}.{name}")
    for name in ("statistic", "effect", "least_effect"):
        _require_between(getattr(signal, name), -_MAX_COUNT, _MAX_COUNT, f"{path}.{name}")
    if signal.drifted and not signal.judged:
        raise InvalidArgument(f"{path}.drifted must be false where judged is.", field=f"{path}.drifted")
    if signal.HasField("detected_time"):
        _moment(signal.detected_time, f"{path}.detected_time")


def _require_between(value: float, least: float, most: float, field: str, what: str = "") -> None:
    if not least <= value <= most:  # also for NaN
        raise InvalidArgument(f"{what}{field} must be {least:,} to {most:,}, not {value:,}.", field=field)


def _ground_truth(message: monitor_pb2.RecordFeedbackRequest) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(message.ground_truth)
    except (ValueError, json_format.Error):
        raise InvalidArgument(
            "ground_truth must be a JSON object, without NaN and infinite numbers.", field="ground_truth"
        ) from None


def _seen(value: str) -> str:
    return "; it is empty" if not value else f", not {value[:80]!r}"


def _trace_id(value: str, field: str) -> str:
    return _matching(value, field, _TRACE_ID, "32 hex digits, or empty")


def _currency(value: str, field: str) -> str:
    return _matching(value, field, _CURRENCY, "an ISO 4217 code such as USD")


_Check = Callable[[Any, str], object]
# Checks of single fields of Interaction; its other texts and numbers have the check of their type.
_SPECIAL: dict[str, _Check | None] = {
    "tenant": _tenant,
    "request_id": _required,
    "task": _required,
    "trace_id": _trace_id,
    "currency": _currency,
    "outcome": _outcome,
    "error_message": partial(_text, longest=_MAX_MESSAGE),
    "output": None,  # as long as the whole record may be
    **dict.fromkeys(NOT_KEPT),
}
_BY_TYPE: dict[int, _Check] = {
    FieldDescriptor.CPPTYPE_STRING: partial(_text, longest=_MAX_NAME),
    FieldDescriptor.CPPTYPE_INT64: _count,
    FieldDescriptor.CPPTYPE_UINT64: _count,
}


def _checks() -> Iterator[tuple[str, _Check]]:
    for field in monitor_pb2.Interaction.DESCRIPTOR.fields:
        check = _SPECIAL.get(field.name, _BY_TYPE.get(field.cpp_type))
        if check is not None and not field.is_repeated:
            yield field.name, check


_CHECKS = tuple(_checks())
_COUNTS_OF_USAGE = tuple(field.name for field in types_pb2.TokenUsage.DESCRIPTOR.fields)
