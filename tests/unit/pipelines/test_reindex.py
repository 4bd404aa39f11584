"""What a re-index is given: by its gate, and by factory.yaml at the moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from genaifactory_common import channels, specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import testing
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import reindex as step
from genaifactory_pipelines.workflows import reindex as workflow
from genaifactory_pipelines.workflows.protocol import Surroundings

pytestmark = pytest.mark.allow_blocking  # files of the tests' own

ITEM = {"input": "Where is it?", "output": "In Hue.", "rejected": "In Vinh.", "lineage": {"documents": ["a.md"]}}


@pytest.mark.parametrize("metric", ["judge", "judge_agreement", "judge_consistency"])
async def test_a_gate_that_needs_a_judge_is_refused_before_the_build(tmp_path: Path, metric: str) -> None:
    (tmp_path / "golden.jsonl").write_text("".join(f"{json.dumps(ITEM | {'id': f'{n}'})}\n" for n in range(20)))
    rules = (*step.AS_GOOD.rules, specs.GateRule(metric=metric, at_least=0.5))
    wanted = step.Parameters(
        knowledge_base="documents",
        golden=tmp_path / "golden.jsonl",
        route="rag",
        gate=specs.Gate(name="strict", rules=rules),
    )
    async with channels.connect("unix:/nonexistent/gateway.sock") as nobody:
        context = Context(tmp_path / "run", Gateway(nobody), Progress(Console(file=StringIO())))
        with pytest.raises(
            InvalidArgument, match=f"'{metric} at_least 0.5' of the gate 'strict'; 20 others need a"
        ) as caught:
            await step.reindex.run(wanted, context)
    assert caught.value.field == "gates[strict].rules[2].metric"


def given(folder: Path, **index: object) -> step.Parameters:
    """What the workflow passes to the step, of a factory.yaml with this chunking or embedder."""
    document = yaml.safe_load(testing.DEFAULT_FACTORY.read_text(encoding="utf-8"))
    document["knowledge_bases"] = [{"name": "documents", **index}]
    (folder / "factory.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    (folder / "inputs").mkdir(exist_ok=True)
    (folder / "inputs" / "golden.jsonl").write_text("")
    around = Surroundings("nightly", datetime(2026, 11, 21, tzinfo=UTC), folder, folder / "factory.yaml")
    return workflow._wanted(workflow.Parameters(golden="golden.jsonl"), around)


def test_another_chunking_of_factory_yaml_makes_another_run_of_the_same_folder(tmp_path: Path) -> None:
    assert given(tmp_path) == given(tmp_path, chunk_tokens=200)
    assert given(tmp_path) != given(tmp_path, chunk_tokens=64)
    assert given(tmp_path) != given(tmp_path, chunk_overlap_tokens=10)
    assert given(tmp_path, chunk_tokens=64).chunking == (64, 30)


def test_another_embedder_of_factory_yaml_makes_another_run_of_the_same_folder(tmp_path: Path) -> None:
    assert given(tmp_path) == given(tmp_path, embedder={"type": "minilm"})
    assert given(tmp_path) != given(tmp_path, embedder={"type": "e5"})
    models = [given(tmp_path, embedder={"type": "onnx", "path": folder}).embedder for folder in ("/a", "/b")]
    assert models[0] != models[1]


def test_what_no_answer_may_repeat_is_the_system_prompt_of_the_route(tmp_path: Path) -> None:
    (hidden,) = given(tmp_path).hidden
    assert "Answer in the language of the question" in hidden
