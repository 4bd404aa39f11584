"""The alerts, with the recording rules that they share; docs/observability.md describes the response to each.

`up` and the metrics of the process carry the pod's labels app.kubernetes.io/part-of and /component, as Prometheus's
annotation scraping and the chart's PodMonitors give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml
from charts.observability.panels import PART_OF

COMPONENT = "app_kubernetes_io_component"
_RELEASE = "app_kubernetes_io_instance"
_UP = f"up{{{PART_OF}}}"

# The objective: at most one request in a thousand fails for a reason other than the client's.
_BUDGET = 0.001
_WINDOWS = {"5m": 300, "30m": 1800, "1h": 3600, "2h": 7200, "6h": 21600, "1d": 86400, "3d": 259200}
# Fewer failures raise no alert, however few requests there are.
_FAILURES = 10
_OURS = "INTERNAL|UNAVAILABLE|UPSTREAM_FAILED|OUT_OF_SPACE|DEADLINE_EXCEEDED|OVERLOADED"
# Without RESOURCE_EXHAUSTED, which may be the caller's limit as well as our overload.
_OUR_CODES = "INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|UNKNOWN"

_REQUESTS, _FAILED = "namespace:genaifactory_requests:rate", "namespace:genaifactory_request_failures:rate"
_BLOCKS = "policy:genaifactory_safety_blocks:increase15m"
_COST, _TOKENS = "tenant:genaifactory_cost_micros:increase1h", "tenant:genaifactory_tokens:increase1h"


@dataclass(frozen=True)
class Recording:
    """A recording rule: a query that is evaluated once for several alerts."""

    name: str
    expr: str

    def rule(self) -> dict[str, Any]:
        """The rule in Prometheus' form."""
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True)
class Alert:
    """One alert. Summary and description may contain Prometheus' templates."""

    name: str
    severity: Literal["critical", "warning", "info"]
    expr: str
    summary: str
    description: str
    lasting: str = "0m"

    def rule(self, section: str) -> dict[str, Any]:
        """The rule in Prometheus' form. section: of docs/observability.md."""
        return {
            "alert": f"GenAIFactory{self.name}",
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": f"{self.description} What to do: docs/observability.md#{section}",
            },
        }


def _requests(window: str) -> Recording:
    http = f'rate(genaifactory_http_requests_total{{route=~"/v1/.+"}}[{window}])'
    grpc = f'rate(genaifactory_rpc_requests_total{{service="gateway"}}[{window}])'
    return Recording(f"{_REQUESTS}{window}", f"sum by (namespace) (\n  {http}\n  or\n  {grpc}\n)")


def _failures(window: str) -> Recording:
    http = f'rate(genaifactory_http_errors_total{{route=~"/v1/.+", reason=~"{_OURS}"}}[{window}])'
    grpc = f'rate(genaifactory_rpc_requests_total{{service="gateway", code=~"{_OUR_CODES}"}}[{window}])'
    return Recording(f"{_FAILED}{window}", f"sum by (namespace) (\n  {http}\n  or\n  {grpc}\n)")


def _burns(long: str, short: str, times: float) -> str:
    """The error rate is above `times` the budget in both windows: it still lasts, and is no single failure."""
    bound = f"{times:g} * {_BUDGET:g}"
    return (
        "(\n"
        f"  {_FAILED}{long} / {_REQUESTS}{long} > {bound}\n"
        f"  and {_FAILED}{short} / {_REQUESTS}{short} > {bound}\n"
        f"  and {_FAILED}{long} * {_WINDOWS[long]} >= {_FAILURES}\n"
        ")"
    )


def _p95(metric: str, by: str, bound: str, matchers: str = "") -> str:
    """The 95th percentile of ten minutes with at least twenty observations is above the bound."""
    return (
        f"histogram_quantile(0.95, sum by ({by}, le) (rate({metric}_bucket{matchers}[10m]))) > {bound}\n"
        f"and sum by ({by}) (increase({metric}_count{matchers}[10m])) >= 20"
    )


def _spikes(recorded: str, least: str) -> str:
    """An hour is above twice the highest hour of the last week, for a tenant with data of the day before."""
    return (
        f"{recorded} > 2 * max_over_time({recorded}[7d] offset 1h)\nand {recorded} > {least}\nand {recorded} offset 1d"
    )


# In the group of the alerts that use them: rules of a group are evaluated in order.
RECORDINGS: dict[str, tuple[Recording, ...]] = {
    "answers": (*map(_requests, _WINDOWS), *map(_failures, _WINDOWS)),
    "guardrails": (
        Recording(
            _BLOCKS,
            'sum by (namespace, policy, direction) (increase(genaifactory_safety_verdicts_total{action="BLOCK"}[15m]))',
        ),
    ),
    "spend": (
        Recording(_COST, "sum by (namespace, tenant, currency) (increase(genaifactory_cost_micros_total[1h]))"),
        Recording(_TOKENS, "sum by (namespace, tenant) (increase(genaifactory_tokens_total[1h]))"),
    ),
}

ALERTS: dict[str, tuple[Alert, ...]] = {
    "availability": (
        Alert(
            "ServiceDown",
            "critical",
            f"group by (namespace, {COMPONENT}) (max_over_time({_UP}[1d]) == 1)\n"
            f"unless\n"
            f"group by (namespace, {COMPONENT}) ({_UP} == 1)",
            f"No pod of {{{{ $labels.{COMPONENT} }}}} in {{{{ $labels.namespace }}}} answers.",
            "Prometheus scraped one within the last day and scrapes none now.",
            lasting="2m",
        ),
        Alert(
            "PodDown",
            "warning",
            f"{_UP} == 0",
            "{{ $labels.pod }} in {{ $labels.namespace }} cannot be scraped.",
            "The pod exists, but its metrics cannot be read.",
            lasting="10m",
        ),
        Alert(
            "NotScraped",
            "warning",
            f"absent({_UP})",
            "Prometheus scrapes no pod of GenAI Factory.",
            "None is running, or they are scraped without their labels; no other alert is reliable.",
            lasting="15m",
        ),
        Alert(
            "PodRestarts",
            "warning",
            "increase(kube_pod_container_status_restarts_total[30m]) > 2\n"
            f"and on (namespace, pod) max_over_time({_UP}[1h])",
            "{{ $labels.pod }} in {{ $labels.namespace }} restarts repeatedly.",
            "More than two restarts in half an hour. Needs kube-state-metrics.",
        ),
        Alert(
            "CertificateExpiresSoon",
            "warning",
            "min by (namespace, pod) (genaifactory_certificate_expiry_timestamp_seconds) - time() < 7 * 86400",
            "The certificate of {{ $labels.pod }} in {{ $labels.namespace }} has {{ $value | humanizeDuration }} left.",
            "It should have been renewed by now.",
            lasting="15m",
        ),
        Alert(
            "CertificateExpires",
            "critical",
            "min by (namespace, pod) (genaifactory_certificate_expiry_timestamp_seconds) - time() < 86400",
            "The certificate of {{ $labels.pod }} in {{ $labels.namespace }} has {{ $value | humanizeDuration }} left.",
            "From then on other services refuse its connections.",
        ),
        Alert(
            "DiskNearlyFull",
            "warning",
            "min by (namespace, pod, service) (genaifactory_data_free_bytes)\n"
            "and on (namespace, pod, service) (genaifactory_data_space_low == 1)",
            "The disk of {{ $labels.service }} in {{ $labels.namespace }} has {{ $value | humanize1024 }}B left.",
            "When it is full, the service accepts nothing new.",
            lasting="5m",
        ),
        Alert(
            "DiskFull",
            "critical",
            "min by (namespace, pod, service) (genaifactory_data_free_bytes)\n"
            "and on (namespace, pod, service) (genaifactory_data_space_full == 1)",
            "The disk of {{ $labels.service }} in {{ $labels.namespace }} is full: {{ $value | humanize1024 }}B left.",
            "It accepts nothing new; what it accepted before is kept.",
            lasting="1m",
        ),
    ),
    "answers": (
        Alert(
            "ErrorBudgetBurnsFast",
            "critical",
            f"{_burns('1h', '5m', 14.4)}\nor\n{_burns('6h', '30m', 6)}",
            "Requests in {{ $labels.namespace }} fail: {{ $value | humanizePercentage }}.",
            "At this rate the error budget of a month, one request in a thousand, is spent within days.",
            lasting="2m",
        ),
        Alert(
            "ErrorBudgetBurns",
            "warning",
            f"{_burns('1d', '2h', 3)}\nor\n{_burns('3d', '6h', 1)}",
            "Too many requests in {{ $labels.namespace }} fail: {{ $value | humanizePercentage }}.",
            "At this rate the month's errors exceed its budget of one request in a thousand.",
            lasting="15m",
        ),
        Alert(
            "FirstTextLate",
            "warning",
            _p95("genaifactory_first_text_seconds", "namespace, route", "5"),
            "{{ $labels.route }} in {{ $labels.namespace }} answers late: p95 {{ $value | humanizeDuration }}.",
            "The slowest twentieth waits more than 5 s for the first text.",
            lasting="10m",
        ),
        Alert(
            "AnswersSlow",
            "warning",
            _p95("genaifactory_http_duration_seconds", "namespace, route", "60", '{route=~"/v1/.+"}'),
            "{{ $labels.route }} in {{ $labels.namespace }} is slow: p95 {{ $value | humanizeDuration }}.",
            "The slowest twentieth of whole answers takes more than a minute.",
            lasting="10m",
        ),
    ),
    "configuration": (
        Alert(
            "ConfigurationRefused",
            "warning",
            "sum by (namespace) (genaifactory_configuration_refused) > 0",
            "{{ $value }} pods in {{ $labels.namespace }} refuse their factory.yaml.",
            "The last good one stays in force; a pod that restarts does not start.",
            lasting="5m",
        ),
        Alert(
            "ConfigurationDiffers",
            "warning",
            f"count by (namespace, {_RELEASE}) (\n"
            f"  count by (namespace, {_RELEASE}, digest) (genaifactory_configuration_info)\n) > 1",
            "Pods in {{ $labels.namespace }} follow {{ $value }} different documents.",
            "At least one of them does not have the last change of factory.yaml.",
            lasting="15m",
        ),
        Alert(
            "ConfigurationHides",
            "warning",
            "max by (namespace, kind) (genaifactory_configuration_hidden) > 0",
            "{{ $value }} {{ $labels.kind }} in {{ $labels.namespace }} are stored and not accessible.",
            "factory.yaml no longer declares their tenant or knowledge base.",
            lasting="5m",
        ),
    ),
    "record": (
        Alert(
            "OutboxFills",
            "warning",
            "max by (namespace, pod) (genaifactory_outbox_records) > 10000\n"
            "or max by (namespace, pod) (genaifactory_outbox_bytes) > 512 * 1024 * 1024",
            "Records of answers pile up in {{ $labels.pod }} in {{ $labels.namespace }}.",
            "Monitor stores them more slowly than they arrive, or not at all; a full outbox refuses requests.",
            lasting="5m",
        ),
        Alert(
            "OutboxFull",
            "critical",
            "sum by (namespace, pod) (increase(genaifactory_outbox_refused_total[5m])) > 0",
            "{{ $labels.pod }} in {{ $labels.namespace }} refuses requests: its outbox is full.",
            "A request whose answer cannot be recorded is refused.",
        ),
        Alert(
            "OutboxPoison",
            "warning",
            "sum by (namespace) (increase(genaifactory_outbox_poison_total[1h])) > 0",
            "Monitor refused records in {{ $labels.namespace }}; they were moved aside.",
            "They are missing from usage and exports until they are handled.",
        ),
        Alert(
            "RecordsNotStored",
            "warning",
            "sum by (namespace) (\n"
            "  rate(genaifactory_outbox_send_failures_total[5m])\n"
            "  or\n"
            '  rate(genaifactory_rpc_requests_total{service="monitor", method=~".+/Record.+", '
            f'code=~"{_OUR_CODES}"}}[5m])\n'
            ") > 0",
            "Monitor in {{ $labels.namespace }} does not store records or feedback.",
            "Records of answers wait on the orchestrator's disk; feedback fails for the client.",
            lasting="5m",
        ),
    ),
    "guardrails": (
        Alert(
            "TextNotScanned",
            "critical",
            "sum by (namespace, direction) (increase(genaifactory_safety_not_scanned_total[5m])) > 0",
            "The guardrails in {{ $labels.namespace }} could not scan some {{ $labels.direction }} texts.",
            "None of them was used: the requests failed instead.",
        ),
        Alert(
            "BlocksSpike",
            "warning",
            f"{_BLOCKS} >= 20\nunless {_BLOCKS} <= 3 * avg_over_time({_BLOCKS}[1d] offset 15m)",
            "The policy {{ $labels.policy }} in {{ $labels.namespace }} blocks many {{ $labels.direction }} texts: "
            "{{ $value | humanize }} in 15 minutes.",
            "More than three times as many as in the day before: an attack, a leak, or a rule that is too strict.",
        ),
        Alert(
            "ScansSlow",
            "warning",
            _p95("genaifactory_safety_scan_seconds", "namespace, direction", "1"),
            "Scanning {{ $labels.direction }} texts in {{ $labels.namespace }} is slow: "
            "p95 {{ $value | humanizeDuration }}.",
            "Every answer waits for its scans.",
            lasting="10m",
        ),
    ),
    "models": (
        Alert(
            "EngineDown",
            "critical",
            "max by (namespace, engine) (genaifactory_modelserver_engine_ready) == 0",
            "The engine {{ $labels.engine }} in {{ $labels.namespace }} can answer in no pod.",
            "It is loading or asleep, failed to start or ended; routes fall back to the next of their models.",
            lasting="10m",
        ),
        Alert(
            "CircuitOpen",
            "warning",
            "max by (namespace, model) (genaifactory_model_circuit_state) == 2",
            "The model {{ $labels.model }} in {{ $labels.namespace }} is not called, after consecutive failures.",
            "Its routes fall back to the next of their models; a route without another fails.",
            lasting="2m",
        ),
        Alert(
            "KvCacheFull",
            "warning",
            "max by (namespace, pod, model) (genaifactory_modelserver_vllm_kv_cache_usage_perc) > 0.95",
            "The KV cache of {{ $labels.model }} in {{ $labels.pod }} is full: {{ $value | humanizePercentage }}.",
            "Requests are preempted and computed again.",
            lasting="10m",
        ),
        Alert(
            "RequestsWait",
            "warning",
            "sum by (namespace, engine) (genaifactory_modelserver_requests_queued) > 0\n"
            "or sum by (namespace, model) (genaifactory_modelserver_vllm_num_requests_waiting) > 0",
            "Requests for {{ $labels.engine }}{{ $labels.model }} in {{ $labels.namespace }} queue up.",
            "For ten minutes at least one was always waiting.",
            lasting="10m",
        ),
    ),
    "spend": (
        Alert(
            "CostSpikes",
            "warning",
            _spikes(_COST, "1e6"),
            "{{ $labels.tenant }} in {{ $labels.namespace }} spends much more than usual.",
            "The last hour cost more than twice the most expensive hour of the last week.",
        ),
        Alert(
            "TokensSpike",
            "warning",
            _spikes(_TOKENS, "100000"),
            "{{ $labels.tenant }} in {{ $labels.namespace }} uses many more tokens than usual.",
            "The last hour used more than twice the tokens of the busiest hour of the last week.",
        ),
        Alert(
            "LimitReached",
            "info",
            "sum by (namespace, tenant, limit) (increase(genaifactory_limits_hit_total[5m])) > 0",
            "{{ $labels.tenant }} in {{ $labels.namespace }} is at its limit of {{ $labels.limit }} a minute.",
            "Requests beyond it have been refused for a quarter of an hour.",
            lasting="15m",
        ),
    ),
    "quality": (
        Alert(
            "Drift",
            "warning",
            "max by (namespace, tenant, route) (genaifactory_drift_verdict) == 2",
            "Requests of {{ $labels.tenant }} in {{ $labels.namespace }} have drifted"
            "{{ if $labels.route }} on the route {{ $labels.route }}{{ end }}.",
            "The drift check on the latest window is an alarm.",
            lasting="0m",
        ),
    ),
}


def build() -> str:
    """The rules file, for Prometheus and as the spec of a PrometheusRule."""
    groups = [
        {
            "name": f"genaifactory.{section}",
            "rules": [
                *(recording.rule() for recording in RECORDINGS.get(section, ())),
                *(alert.rule(section) for alert in alerts),
            ],
        }
        for section, alerts in ALERTS.items()
    ]
    return "# Generated by make dashboards from charts/observability/alerts.py.\n" + yaml.dump(
        {"groups": groups}, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True
    )


class _Dumper(yaml.SafeDumper):
    """Writes a query of several lines as a block."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
