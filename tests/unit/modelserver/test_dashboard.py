"""The Grafana dashboard: generated, committed, and about metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import REGISTRY

import genaifactory_modelserver.metrics  # noqa: F401  # registers them

FOLDER = Path(__file__).resolve().parents[3] / "services" / "modelserver" / "dashboards"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_dashboard_is_what_the_generator_writes(generate: ModuleType) -> None:
    assert (FOLDER / "modelserver.json").read_text(encoding="utf-8") == generate.build(), "run: make dashboards"


def test_every_metric_of_ours_that_it_asks_for_exists(generate: ModuleType) -> None:
    ours = set(REGISTRY._names_to_collectors)
    asked = {name for query in generate.queries() for name in re.findall(r"genaifactory_modelserver_\w+", query)}
    assert asked
    assert {name for name in asked if not name.startswith(generate.VLLM)} <= ours


def test_every_panel_has_a_title_a_unit_and_queries_of_their_own(generate: ModuleType) -> None:
    panels = [panel for panel in json.loads(generate.build())["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in panels}) == len(panels) >= 12
    for panel in panels:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)) != []
        assert panel["fieldConfig"]["defaults"]["unit"]
