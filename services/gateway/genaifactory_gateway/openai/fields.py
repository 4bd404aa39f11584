"""Parses a body as one of the models of OpenAI's API, and returns its fields without effect.

Clients send fields that this platform does not support. Those that would change the answer in a way that the client
relies on are refused. All others are ignored, and a header of the response names them; they are refused for a client
that sets the header x-genaifactory-strict.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from genaifactory_common.errors import InvalidArgument, Reason
from genaifactory_gateway import jsonbody
from genaifactory_gateway.openai import requests
from genaifactory_gateway.openai.content import Body

_Body = TypeVar("_Body", bound=Body)

_MAX_NAMED = 20
# A body with more is an attack: each is handled by itself.
_MAX_UNKNOWN = 5_000
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")

# Fields that would change the answer and are not supported, and what to send instead.
_REFUSED = {
    "functions": "send 'tools'",
    "function_call": "send 'tool_choice'",
    "logit_bias": "leave it out, or send {}",
    "audio": "leave it out; answers are text",
    "web_search_options": "leave it out; name a rag route as 'model'",
    "evaluation": "leave it out; evaluations use the gRPC API",
    "moderation": "leave it out; the guardrail policy of the route applies",
    "guided_json": "send 'structured_outputs': {'json': …}",
    "guided_regex": "send 'structured_outputs': {'regex': …}",
    "guided_choice": "send 'structured_outputs': {'choice': …}",
    "guided_grammar": "send 'structured_outputs': {'grammar': …}",
    **dict.fromkeys(
        (
            "add_generation_prompt", "allowed_token_ids", "bad_words", "best_of", "chat_template",
            "continue_final_message", "documents", "echo", "ignore_eos", "logits_processors", "min_tokens",
            "prompt_logprobs", "stop_token_ids", "suffix", "truncate_prompt_tokens", "use_beam_search",
        ),
        "leave it out",
    ),
}  # fmt: skip
# Values that are the default anyway, so their fields are not reported.
_NO_OP: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "store": (False,),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "echo": (False,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}


def read(model: type[_Body], body: bytes, *, strict: bool) -> tuple[_Body, Sequence[str]]:
    """The body as `model`, and the sorted paths of its fields without effect, without indices.

    strict: refuse those fields, as a model with `lenient` False always does. Raises InvalidArgument with the path of
    the first wrong field.
    """
    value = jsonbody.parse(body, max_values=model.max_values)
    try:
        return model.model_validate(value), ()
    except ValidationError as error:
        if error.error_count() > _MAX_UNKNOWN:
            raise InvalidArgument(
                f"The body has {error.error_count()} fields that are unknown or wrong; send at most {_MAX_UNKNOWN}."
            ) from None
        problems = error.errors(include_url=False, include_input=False)
    ignored: set[str] = set()
    for problem in problems:
        if problem["type"] != "extra_forbidden":
            raise _invalid(model, problem)
        owner, name = _owner(value, problem["loc"])
        if (sent := owner.pop(name)) is None or sent in _NO_OP.get(name, ()):
            continue
        path = _path_of_unknown(problem["loc"])
        if strict or not model.lenient or path in _REFUSED:
            raise _invalid(model, problem)
        ignored.add(re.sub(r"\[\d+\]", "[]", path))
    try:
        return model.model_validate(value), sorted(ignored)
    except ValidationError as error:  # an error that the unknown field of a union's branch had hidden
        raise _invalid(model, error.errors(include_url=False, include_input=False)[0]) from None


def header(ignored: Sequence[str]) -> bytes:
    """Field names as a header's value: bounded, and without characters that could end a header."""
    names = [name if _NAME.fullmatch(name) else "?" for name in ignored[:_MAX_NAMED]]
    more = [f"and {len(ignored) - _MAX_NAMED} more"] if len(ignored) > _MAX_NAMED else []
    return ", ".join([*dict.fromkeys(names), *more]).encode("ascii")


def _owner(value: Any, loc: tuple[int | str, ...]) -> tuple[dict[str, Any], str]:
    """The object that holds the field, and the field's name. pydantic names the branches of unions too, with `~`."""
    *above, name = loc
    for part in above:
        if isinstance(part, int) or not part.startswith("~"):
            value = value[part]
    return value, str(name)


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("~"):
            path += f".{part}" if path else part
    return path[:200]  # a field's name is the client's text


def _path_of_unknown(loc: tuple[int | str, ...]) -> str:
    """Like `_path`; but the last part is the client's text, which may begin with `~`."""
    return f"{_path(loc[:-1])}.{loc[-1]}".removeprefix(".")[:200]


def _invalid(model: type[Body], problem: Mapping[str, Any]) -> InvalidArgument:
    unknown = problem["type"] == "extra_forbidden"
    path = _path_of_unknown(problem["loc"]) if unknown else _path(problem["loc"])
    match problem["type"]:
        case "extra_forbidden" if path in _REFUSED:
            return InvalidArgument(f"'{path}' is not supported: {_REFUSED[path]}.", field=path)
        case "extra_forbidden":
            near = difflib.get_close_matches(path.rpartition(".")[2], _siblings(model, problem["loc"]), n=1, cutoff=0.8)
            hint = f"did you mean '{near[0]}'?" if near else "leave it out."
            return InvalidArgument(f"Unknown field '{path}'; {hint}", field=path, reason=Reason.UNKNOWN_FIELD)
        case "missing":
            return InvalidArgument(f"'{path}' is missing; it is required.", field=path)
        case _:
            return InvalidArgument(f"'{path}': {problem['msg']}.", field=path)


def _siblings(model: type[Body], loc: tuple[int | str, ...]) -> list[str]:
    """The fields of the object that contains the unknown one, for a suggestion."""
    above = next((part for part in reversed(loc[:-1]) if isinstance(part, str) and not part.startswith("~")), None)
    parts = requests.PARTS.get(above, ()) if above else (model,)
    return [field.alias or name for part in parts for name, field in part.model_fields.items()]
