"""Dashboards and alerts: the committed files are generated, their metrics exist, and promtool tests each alert."""

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

from .promql import names

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
VLLM = "genaifactory_modelserver_vllm_"  # tests/vllm compares these with a real vLLM
OF_VLLM = {"model", "rank", "le"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}

boards = pytest.mark.parametrize("board", generator.BOARDS, ids=lambda board: board.name)
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus, on PATH"
)


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Every metric of the platform, by its name in a query, with its labels."""
    found = dict(OF_OTHERS)
    for collector in dict(REGISTRY._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for metric in collector.collect():
            for suffix in SUFFIXES.get(metric.type, ("",)):
                found[metric.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for section in alerts.RECORDINGS.values():
        found |= {recording.name: names(recording.expr).grouped for recording in section}
    return found


def unknown(query: str, known: dict[str, set[str]]) -> Iterator[str]:
    """Metrics and labels of a query that do not exist."""
    named = names(query)
    of_all: set[str] = set()
    for metric, matched in named.matched.items():
        labels = OF_VLLM if metric.startswith(VLLM) else known.get(metric)
        if labels is None:
            yield metric
            continue
        yield from (f"{metric}{{{label}}}" for label in matched - labels - OF_PODS)
        of_all |= labels
    yield from named.grouped - of_all - OF_PODS


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def test_the_committed_files_are_those_of_the_generator() -> None:
    generated = generator.files()
    for path, text in generated.items():
        assert path.read_text(encoding="utf-8") == text, "run: make dashboards"
    folders = {path.parent for path in generated}
    assert {path for folder in folders for path in folder.iterdir()} == set(generated)


def test_metrics_and_labels_of_a_query_are_parsed() -> None:
    found = names('sum by (le, a) (rate(m_x{b="c{d}", e=~"f, g"}[5m] offset 1h)) / on (h) n:y > 1e6 and absent(z)')
    assert found.matched == {"m_x": {"b", "e"}, "n:y": set(), "z": set()}
    assert found.grouped == {"le", "a", "h"}


def test_an_unknown_metric_or_label_is_detected(known: dict[str, set[str]]) -> None:
    wrong = 'sum by (model) (rate(genaifactory_rpc_requests_total{reason="x"}[5m])) / genaifactory_rpc_request_total'
    assert set(unknown(wrong, known)) == {
        "genaifactory_rpc_requests_total{reason}",
        "genaifactory_rpc_request_total",
        "model",
    }


@boards
def test_metrics_and_labels_of_a_dashboard_exist(board: Board, known: dict[str, set[str]]) -> None:
    for query in board.queries():
        assert not set(unknown(query, known)), query
    for choice in board.choices:
        assert choice.of in known[choice.metric]


@boards
def test_legends_use_only_labels_that_their_query_keeps(board: Board) -> None:
    for panels in board.rows.values():
        for panel in panels:
            for legend, query in panel.queries.items():
                assert set(re.findall(r"{{(\w+)}}", legend)) <= names(query).grouped, legend


@boards
def test_every_graph_uses_the_chosen_source_namespace_and_release(board: Board) -> None:
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


def test_metrics_and_labels_of_alerts_exist(known: dict[str, set[str]]) -> None:
    for rule in rules():
        assert not set(unknown(rule["expr"], known)), rule


def test_every_alert_has_a_severity_valid_labels_and_a_section_in_the_documentation(known: dict[str, set[str]]) -> None:
    for rule in (rule for rule in rules() if "alert" in rule):
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        annotations = rule["annotations"]
        named = names(rule["expr"])
        kept = named.grouped | {label for metric in named.matched for label in known.get(metric, ())}
        used = set(re.findall(r"\$labels\.(\w+)", annotations["summary"] + annotations["description"]))
        assert used <= kept | {"namespace", "pod"}, rule["alert"]
        (section,) = re.findall(r"docs/observability\.md#(\w+)$", annotations["description"])
        (text,) = re.findall(rf"^### {section}$(.*?)(?=^##|\Z)", DOCS, re.IGNORECASE | re.MULTILINE | re.DOTALL)
        assert f"| {rule['alert']} |" in text, f"docs/observability.md does not describe {rule['alert']}"


def test_every_alert_in_the_documentation_exists() -> None:
    there = {rule["alert"] for rule in rules() if "alert" in rule}
    assert set(re.findall(r"GenAIFactory\w+", DOCS)) == there


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
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
def test_promtool_accepts_the_rules() -> None:
    run("check", "rules", "--lint-fatal", str(RULES))


@promtool
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_in_their_cases_only(path: Path) -> None:
    run("test", "rules", str(path))


@promtool
@boards
def test_promtool_accepts_the_queries_of_a_dashboard(board: Board, tmp_path: Path) -> None:
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
