"""A base model from the hub: a server on loopback that speaks as much of its API as a download needs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.unit.modelserver import weights

# The hub's address is read when its library is imported.
_FIND = """
import json, sys
from genaifactory_common.errors import FactoryError
from genaifactory_pipelines.training import base
for source in sys.argv[1:]:
    try:
        print(json.dumps([str(base.find(source).folder)]))
    except FactoryError as error:
        print(json.dumps([error.reason, error.field, error.message]))
"""


async def test_a_base_of_the_hub_is_downloaded_at_its_revision(llama: Path, tmp_path: Path) -> None:
    sources = ["hf://acme/tiny@v2", "hf://acme/tiny@v3", "hf://acme/none", "hf://acme/away"]
    async with weights.web() as served:
        weights.hub(served, "acme/tiny", await asyncio.to_thread(weights.tree, llama), revision="v2")
        for missing, code in (
            ("acme/tiny/revision/v3", "RevisionNotFound"),
            ("acme/none/revision/main", "RepoNotFound"),
        ):
            served.headers[f"/api/models/{missing}"]["x-error-code"] = code
        served.statuses["/api/models/acme/away/revision/main"] = 403
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _FIND, *sources),
            env={**os.environ, "HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
        )
        written, _ = await child.communicate()
    (folder,), other_revision, none, away = (json.loads(line) for line in written.splitlines())
    assert str(tmp_path) in folder
    assert await asyncio.to_thread((Path(folder) / "model.safetensors").read_bytes) == await asyncio.to_thread(
        (llama / "model.safetensors").read_bytes
    )
    for found, source in ((other_revision, sources[1]), (none, sources[2])):
        assert found[:2] == ["INVALID_ARGUMENT", "base"]
        assert found[2].startswith(f"The hub has no {source}")
    assert away == ["UNAVAILABLE", None, "The hub cannot give hf://acme/away now (LocalEntryNotFoundError)."]
