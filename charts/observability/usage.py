"""The dashboard of cost and usage: money and tokens by tenant and model, caches, limits, feedback and documents."""

from __future__ import annotations

from charts.observability.panels import Board, Choice, Panel, increase, most, quantiles, rate

_TOKENS, _COST = "genaifactory_tokens_total", "genaifactory_cost_micros_total"
_TENANT = 'tenant=~"$tenant"'
_OF = (_TENANT, 'model=~"$model"')
_MICROS = 1_000_000


def _money(by: str, over: str) -> str:
    return f"{increase(_COST, by, *_OF, over=over)} / {_MICROS}"


def _hits() -> str:
    found = rate("genaifactory_cache_lookups_total", "namespace", 'result="hit"')
    return f"{found} / {rate('genaifactory_cache_lookups_total', 'namespace')}"


def _cached_prompts() -> str:
    cached, all_of_them = (rate(_TOKENS, "model", *_OF, f'kind="{kind}"') for kind in ("cached_prompt", "prompt"))
    return f"{cached} / {all_of_them}"


BOARD = Board(
    "usage",
    "cost and usage",
    choices=(Choice("tenant", "Tenant", _TOKENS, "tenant"), Choice("model", "Model", _TOKENS, "model")),
    rows={
        "In the chosen time": (
            Panel("Money", "short", {"{{tenant}} {{currency}}": _money("tenant, currency", "$__range")}, numbers=True),
            Panel(
                "Tokens",
                "short",
                {"{{tenant}}": increase(_TOKENS, "tenant", *_OF, 'kind!="cached_prompt"', over="$__range")},
                numbers=True,
            ),
            Panel(
                "Requests",
                "short",
                {"{{tenant}}": increase("genaifactory_interactions_total", "tenant", *_OF, over="$__range")},
                numbers=True,
            ),
        ),
        "Money": (
            Panel("Money per hour, by tenant", "short", {"{{tenant}} {{currency}}": _money("tenant, currency", "1h")}),
            Panel("Money per hour, by model", "short", {"{{model}} {{currency}}": _money("model, currency", "1h")}),
        ),
        "Tokens": (
            Panel("By tenant", "cps", {"{{tenant}} {{kind}}": rate(_TOKENS, "tenant, kind", *_OF)}),
            Panel("By model", "cps", {"{{model}} {{kind}}": rate(_TOKENS, "model, kind", *_OF)}),
            Panel(
                "Requests, by tenant",
                "reqps",
                {
                    "{{tenant}} {{task}} {{outcome}}": rate(
                        "genaifactory_interactions_total", "tenant, task, outcome", *_OF
                    )
                },
            ),
        ),
        "Caches": (
            Panel("Answers found in the cache", "percentunit", {"{{namespace}}": _hits()}),
            Panel("Cached answers in memory", "bytes", {"{{pod}}": most("genaifactory_cache_memory_bytes", "pod")}),
            Panel("Prompt tokens that the model had cached", "percentunit", {"{{model}}": _cached_prompts()}),
        ),
        "Limits and content": (
            Panel(
                "Refused by a tenant's limits, in 5 min",
                "short",
                {"{{tenant}} {{limit}}": increase("genaifactory_limits_hit_total", "tenant, limit", _TENANT)},
            ),
            Panel(
                "Feedback, in an hour",
                "short",
                {"{{rating}}": increase("genaifactory_feedback_total", "rating", over="1h")},
            ),
            Panel(
                "Ingested documents, in an hour",
                "short",
                {"{{outcome}}": increase("genaifactory_ingested_documents_total", "outcome", over="1h")},
            ),
        ),
        "Speed of models, as recorded": (
            Panel(
                "Time to the first text", "s", quantiles("genaifactory_time_to_first_token_seconds", "model", _OF[1])
            ),
            Panel("Between tokens", "s", quantiles("genaifactory_time_per_output_token_seconds", "model", _OF[1])),
            Panel("Whole answers", "s", quantiles("genaifactory_request_duration_seconds", "model", _OF[1])),
        ),
    },
)
