"""Writes modelserver.json, the Grafana dashboard of the model server, next to this file. Run: make dashboards

A panel a question that somebody on call asks; every query takes the dashboard's data source and its model variable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

OURS, VLLM = "genaifactory_modelserver_", "genaifactory_modelserver_vllm_"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_MODEL = 'model=~"$model"'
_WIDTH, _HEIGHT = 8, 8


@dataclass(frozen=True)
class Panel:
    """One graph: what it asks, in what unit, and the queries that answer, by the name of their lines."""

    title: str
    unit: Literal["s", "short", "percentunit", "reqps", "cps", "bytes"]
    queries: dict[str, str]


def _quantiles(metric: str) -> dict[str, str]:
    inner = f"sum by (le, model) (rate({metric}_bucket{{{_MODEL}}}[$__rate_interval]))"
    return {f"p{round(100 * q)} {{{{model}}}}": f"histogram_quantile({q}, {inner})" for q in (0.5, 0.95, 0.99)}


def _rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{{{_MODEL}}}[$__rate_interval]))"


def _increase(metric: str, by: str) -> str:
    return f"sum by ({by}) (increase({metric}{{{_MODEL}}}[5m]))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "What callers feel": (
        Panel("Time to the first token", "s", _quantiles(f"{OURS}time_to_first_token_seconds")),
        Panel("Between tokens", "s", _quantiles(f"{VLLM}inter_token_latency_seconds")),
        Panel("Whole answers", "s", _quantiles(f"{VLLM}e2e_request_latency_seconds")),
    ),
    "Traffic": (
        Panel(
            "Requests",
            "reqps",
            {
                "{{model}} {{finish_reason}}": _rate(f"{OURS}requests_finished_total", "model, finish_reason"),
                "{{model}} left by {{cause}}": _rate(f"{OURS}requests_cancelled_total", "model, cause"),
            },
        ),
        Panel(
            "Tokens",
            "cps",
            {
                "{{model}} read": _rate(f"{OURS}prompt_tokens_total"),
                "{{model}} written": _rate(f"{OURS}completion_tokens_total"),
            },
        ),
        Panel(
            "Refused",
            "reqps",
            {"{{engine}} {{cause}}": f"sum by (engine, cause) (rate({OURS}requests_refused_total[$__rate_interval]))"},
        ),
    ),
    "How full it is": (
        Panel(
            "Running and waiting",
            "short",
            {
                "{{model}} running": f"sum by (model) ({VLLM}num_requests_running{{{_MODEL}}})",
                "{{model}} waiting in vLLM": f"sum by (model) ({VLLM}num_requests_waiting{{{_MODEL}}})",
                "{{engine}} waiting for a place": f"sum by (engine) ({OURS}requests_queued)",
            },
        ),
        Panel("Waiting in vLLM", "s", _quantiles(f"{VLLM}request_queue_time_seconds")),
        Panel(
            "KV cache in use",
            "percentunit",
            {"{{model}}": f"max by (model) ({VLLM}kv_cache_usage_perc{{{_MODEL}}})"},
        ),
    ),
    "Caches and adapters": (
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            {"{{model}}": f"{_rate(f'{VLLM}prefix_cache_hits_total')} / {_rate(f'{VLLM}prefix_cache_queries_total')}"},
        ),
        Panel(
            "Gave way and were computed again",
            "reqps",
            {"{{model}}": _rate(f"{VLLM}num_preemptions_total")},
        ),
        Panel(
            "Adapters",
            "short",
            {
                "{{model}} in the engine": f"sum by (model) ({OURS}adapters_loaded{{{_MODEL}}})",
                "{{model}} {{outcome}} in 5 min": _increase(f"{OURS}adapter_loads_total", "model, outcome"),
                "{{model}} gave way in 5 min": _increase(f"{OURS}adapters_evicted_total", "model"),
            },
        ),
    ),
    "Starting": (
        Panel(
            "Weights fetched",
            "bytes",
            {"{{model}} {{part}}": f"max by (model, part) ({OURS}source_bytes{{{_MODEL}}})"},
        ),
        Panel("Loading an adapter", "s", _quantiles(f"{OURS}adapter_load_seconds")),
    ),
}


def queries() -> Iterator[str]:
    """Every query of the dashboard."""
    for panels in ROWS.values():
        for panel in panels:
            yield from panel.queries.values()


def build() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("GenAI Factory: model server")
        .uid("genaifactory-modelserver")
        .tags(["genaifactory"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .editable()
        .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .datasource(_SOURCE)
            .query(f"label_values({OURS}prompt_tokens_total, model)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    for row, panels in ROWS.items():
        made = made.with_row(dashboard.Row(row))
        for panel in panels:
            made = made.with_panel(_graph(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _graph(panel: Panel) -> timeseries.Panel:
    graph = (
        timeseries.Panel().title(panel.title).unit(panel.unit).datasource(_SOURCE).min(0).span(_WIDTH).height(_HEIGHT)
    )
    for letter, (legend, query) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend).datasource(_SOURCE)
        graph = graph.with_target(target)
    return graph


if __name__ == "__main__":
    Path(__file__).with_name("modelserver.json").write_text(build(), encoding="utf-8")
