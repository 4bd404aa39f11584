"""Failures of an OpenAI-compatible API, without the upstream's own texts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import orjson

from genaifactory_common import errors
from genaifactory_common.errors import Reason
from genaifactory_orchestrator.models import openai_format, sse
from genaifactory_orchestrator.models.backend import Failure, Remedy

logger = logging.getLogger(__name__)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,63}")
# OpenAI's parameters as fields of the platform's contracts.
_FIELDS = {
    **{
        name: f"sampling.{name}"
        for name in (
            "temperature", "top_p", "top_k", "max_tokens", "stop", "seed", "n", "logprobs", "top_logprobs",
            "frequency_penalty", "presence_penalty", "min_p", "repetition_penalty", "chat_template_kwargs",
        )
    },
    "max_completion_tokens": "sampling.max_tokens",
    "response_format": "output_format",
    "structured_outputs": "output_format",
    "input": "texts",
}  # fmt: skip
_SETUP_STATUS = {401: Reason.UNAUTHENTICATED, 403: Reason.PERMISSION_DENIED, 404: Reason.MODEL_NOT_FOUND}
_REQUEST_STATUS = (400, 413, 422)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_TOO_LONG_CODES = ("context_length_exceeded", "string_above_max_length")
_TOO_LONG_WORDS = re.compile(
    r"maximum context length|context (length|window|size)|too many (input )?tokens", re.IGNORECASE
)


@contextmanager
def translated(model: str) -> Iterator[None]:
    """Raises the exceptions of httpx2 and the parsers as Failure."""
    try:
        yield
    except httpx2.PoolTimeout:
        error = errors.Overloaded(f"Too many requests wait for the model '{model}'.")
        raise Failure(error, Remedy.RETRY, unhealthy=False) from None
    except httpx2.TimeoutException:
        raise _broken(model, "does not answer in time", Reason.DEADLINE_EXCEEDED) from None
    except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise setup_failure(model, f"its request cannot be sent ({type(error).__name__})") from None
    except httpx2.ConnectError:
        raise _broken(model, "cannot be reached", Reason.UNAVAILABLE) from None
    except httpx2.TransportError:
        raise _broken(model, "broke the connection") from None
    except (openai_format.Malformed, sse.MalformedStream, orjson.JSONDecodeError) as error:
        # Our messages name a place; orjson's would quote the input.
        place = "a chunk is no JSON" if isinstance(error, orjson.JSONDecodeError) else str(error)
        raise malformed(model, place) from None


def malformed(model: str, place: str) -> Failure:
    """The failure for a response that violates the API's contract."""
    logger.warning("the API of model '%s' sent a malformed response: %s", model, place)
    return _broken(model, "sent a malformed answer")


def setup_failure(model: str, what: str, reason: Reason = Reason.UPSTREAM_FAILED) -> Failure:
    """The failure that an operator has to correct: a wrong key, a wrong URL, a model that the API does not have."""
    logger.error("model '%s' is set up wrongly: %s", model, what)
    error = errors.UpstreamFailed(f"The model '{model}' is not available; the platform's operator has to act.")
    return Failure(error, Remedy.NEXT, reason=reason)


def refusal(model: str, status: int, body: Any, retry_after_seconds: float | None = None) -> Failure:
    """The failure for an HTTP status other than 200, or an error object in a stream. body: its JSON, or None."""
    details = body.get("error", body) if isinstance(body, dict) else None
    details = details if isinstance(details, dict) else {}
    if status == 429 and details.get("code") in _NO_MONEY:
        return setup_failure(model, "its account has no credit left", Reason.RATE_LIMITED)
    if status == 429:
        error: errors.FactoryError = errors.Overloaded(
            f"The model '{model}' accepts no more requests now.", retry_after_seconds=retry_after_seconds
        )
        return Failure(
            error,
            Remedy.RETRY,
            reason=Reason.RATE_LIMITED,
            retry_after_seconds=retry_after_seconds,
            unhealthy=False,  # only busy
        )
    if status in _REQUEST_STATUS:
        return _request_failure(model, status, details)
    if status in (408, 409, 425) or status >= 500:
        failed = _broken(model, f"failed (HTTP {status})")
        failed.retry_after_seconds = retry_after_seconds
        return failed
    return setup_failure(model, f"its API answers HTTP {status}", _SETUP_STATUS.get(status, Reason.UPSTREAM_FAILED))


def stream_error(model: str, body: Any) -> Failure:
    """The failure for an error object in a stream that began with 200; its code may be an HTTP status."""
    details = body.get("error", body) if isinstance(body, dict) else None
    code = details.get("code") if isinstance(details, dict) else None
    status = int(code) if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)) else 500
    return refusal(model, status, body)


def _request_failure(model: str, status: int, details: dict[str, Any]) -> Failure:
    message = details.get("message")
    if details.get("code") in _TOO_LONG_CODES or (isinstance(message, str) and _TOO_LONG_WORDS.search(message)):
        too_long = errors.ContextTooLong(
            f"The conversation does not fit the context of the model '{model}'; shorten it.", field="messages"
        )
        return Failure(too_long, Remedy.NEXT, unhealthy=False)  # the next model may have a longer one
    if status == 413:
        too_large = errors.TooLarge(f"The request is too large for the model '{model}'.", field="messages")
        return Failure(too_large, Remedy.NEXT, unhealthy=False)
    param, code = _identifier(details.get("param")), _identifier(details.get("code"))
    what = f"The model '{model}' refuses the request"
    what += f": '{param}' is not accepted" if param else ""
    what += f" ({code})" if code else ""
    return Failure(
        errors.InvalidArgument(f"{what}.", field=_FIELDS.get(param, param) if param else None),
        Remedy.NONE,
        unhealthy=False,
    )


def _broken(model: str, what: str, reason: Reason | None = None) -> Failure:
    return Failure(errors.UpstreamFailed(f"The model '{model}' {what}."), Remedy.RETRY, reason=reason)


def _identifier(value: Any) -> str | None:
    # An upstream's texts may hold anything; only a parameter's name or a code is passed on.
    return value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else None
