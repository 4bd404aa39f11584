"""Dashboards and alerts: generated, committed, about metrics that exist, and each alert tried by promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts.observability import __main__ as generator
from charts.observability import alerts
from charts.observability.panels import Board
from prometheus_client import REGISTRY

import genaifactory_local.platform  # noqa: F401  # all six services, and so every metric

from .promql import asked

ROOT = Path(__file__).parents[3]
RULES = ROOT / "charts" / "genai-factory" / "alerts" / "rules.yaml"
CASES = sorted((ROOT / "tests" / "alerts").glob("*.yaml"))
DOCS = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")

# What Prometheus adds to each series when it scrapes a pod (docs/observability.md).
OF_PODS = {"namespace", "pod", "job"} | {f"app_kubernetes_io_{name}" for name in ("instance", "component", "part_of")}
OF_OTHERS = {
    "up": set[str](),
    "kube_pod_container_status_restarts_total": {"container"},
}
VLLM = "genaifactory_modelserver_vllm_"  # tests/vllm holds these against a real vLLM
OF_VLLM = {"model", "rank", "le"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}

boards = pytest.mark.parametrize("board", generator.BOARDS, ids=lambda board: board.name)
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus, on PATH"
)


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Every metric of the platform, as it is named in a query, with its labels."""
    found = dict(OF_OTHERS)
    for collector in dict(REGISTRY._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for metric in collector.collect():
            for suffix in SUFFIXES.get(metric.type, ("",)):
                found[metric.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for section in alerts.RECORDINGS.values():
        found |= {recording.name: asked(recording.expr).grouped for recording in section}
    return found


def unknown(query: str, known: dict[str, set[str]]) -> Iterator[str]:
    """What a query asks for and nobody has."""
    query_asks = asked(query)
    of_all: set[str] = set()
    for metric, matched in query_asks.matched.items():
        labels = OF_VLLM if metric.startswith(VLLM) else known.get(metric)
        if labels is None:
            yield metric
            continue
        yield from (f"{metric}{{{label}}}" for label in matched - labels - OF_PODS)
        of_all |= labels
    yield from query_asks.grouped - of_all - OF_PODS


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def test_the_committed_files_are_what_the_generator_writes() -> None:
    generated = generator.files()
    for path, text in generated.items():
        assert path.read_text(encoding="utf-8") == text, "run: make dashboards"
    folders = {path.parent for path in generated}
    assert {path for folder in folders for path in folder.iterdir()} == set(generated)


def test_a_query_is_read_with_its_metrics_and_labels() -> None:
    found = asked('sum by (le, a) (rate(m_x{b="c{d}", e=~"f, g"}[5m] offset 1h)) / on (h) n:y > 1e6 and absent(z)')
    assert found.matched == {"m_x": {"b", "e"}, "n:y": set(), "z": set()}
    assert found.grouped == {"le", "a", "h"}


def test_a_metric_or_a_label_that_nobody_has_is_noticed(known: dict[str, set[str]]) -> None:
    wrong = 'sum by (model) (rate(genaifactory_rpc_requests_total{reason="x"}[5m])) / genaifactory_rpc_request_total'
    assert set(unknown(wrong, known)) == {
        "genaifactory_rpc_requests_total{reason}",
        "genaifactory_rpc_request_total",
        "model",
    }


@boards
def test_a_dashboard_asks_only_for_metrics_and_labels_that_exist(board: Board, known: dict[str, set[str]]) -> None:
    for query in board.queries():
        assert not set(unknown(query, known)), query
    for choice in board.choices:
        assert choice.of in known[choice.metric]


@boards
def test_the_name_of_a_line_is_made_of_labels_that_its_query_keeps(board: Board) -> None:
    for panels in board.rows.values():
        for panel in panels:
            for legend, query in panel.queries.items():
                assert set(re.findall(r"{{(\w+)}}", legend)) <= asked(query).grouped, legend


@boards
def test_every_graph_takes_the_chosen_source_namespace_and_release(board: Board) -> None:
    made = json.loads(board.build())
    graphs = [panel for panel in made["panels"] if panel["type"] != "row"]
    assert len({graph["title"] for graph in graphs}) == len(graphs) >= 9
    for graph in graphs:
        letters = [target["refId"] for target in graph["targets"]]
        assert letters == sorted(set(letters)) != []
        assert graph["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in graph["targets"]} == {"${source}"}
    selectors = [selector for query in board.queries() for selector in re.findall(r"{([^}]*)}", query)]
    assert all('namespace=~"$namespace", app_kubernetes_io_instance=~"$release"' in each for each in selectors)
    variables = {f"${variable['name']}" for variable in made["templating"]["list"]}
    assert {name for query in board.queries() for name in re.findall(r"\$[a-z]+", query)} <= variables


def test_alerts_ask_only_for_metrics_and_labels_that_exist(known: dict[str, set[str]]) -> None:
    for rule in rules():
        assert not set(unknown(rule["expr"], known)), rule


def test_every_alert_says_how_bad_it_is_what_it_is_about_and_where_help_is(known: dict[str, set[str]]) -> None:
    for rule in (rule for rule in rules() if "alert" in rule):
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        told = rule["annotations"]
        query_asks = asked(rule["expr"])
        kept = query_asks.grouped | {label for metric in query_asks.matched for label in known.get(metric, ())}
        used = set(re.findall(r"\$labels\.(\w+)", told["summary"] + told["description"]))
        assert used <= kept | {"namespace", "pod"}, rule["alert"]
        (section,) = re.findall(r"docs/observability\.md#(\w+)$", told["description"])
        (text,) = re.findall(rf"^### {section}$(.*?)(?=^##|\Z)", DOCS, re.IGNORECASE | re.MULTILINE | re.DOTALL)
        assert f"| {rule['alert']} |" in text, f"docs/observability.md says nothing of {rule['alert']}"


def test_the_documentation_names_no_alert_that_does_not_exist() -> None:
    there = {rule["alert"] for rule in rules() if "alert" in rule}
    assert set(re.findall(r"GenAIFactory\w+", DOCS)) == there


def test_every_alert_is_tried_once_where_it_fires_and_once_where_it_must_not() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for path in CASES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in group["alert_rule_test"]:
                (fires if case.get("exp_alerts") else silent).add(case["alertname"])
    there = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fires == there
    assert silent == there


@promtool
def test_prometheus_takes_the_rules() -> None:
    run("check", "rules", "--lint-fatal", str(RULES))


@promtool
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    run("test", "rules", str(path))


@promtool
@boards
def test_prometheus_understands_the_queries_of_a_dashboard(board: Board, tmp_path: Path) -> None:
    queries = [
        re.sub(r"\$__(rate_interval|range)", "5m", query).replace("$", "") for query in dict.fromkeys(board.queries())
    ]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(json.dumps({"groups": [{"name": board.name, "rules": recorded}]}))
    run("check", "rules", str(path))


def run(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
