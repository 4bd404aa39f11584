"""What uv.lock puts into an image: lists for `uv pip install`, one for each layer, and the bill of materials.

    python services/locked.py genaifactory-gateway FOLDER

writes common.txt (what every service needs), minilm.txt (what the embedding model runs on, empty for a package without
it), own.txt (the rest), workspace.txt (our own packages), sbom.cdx.json (CycloneDX 1.5) and build.txt (what
writes the embedding model's graph and stays out of the image). Needs uv and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tomllib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.markers import Marker

COMMON = "genaifactory-common"
CLUSTER = "cluster"
"""The extra of what only a cluster needs. Images have it; the environment of `make run` does not."""
ONLY_TO_BUILD = ("safetensors",)
"""What only writes MiniLM's graph; an image has the graph instead, and neither that nor what it alone needs."""
_ROOT = Path(__file__).parents[1]
_PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0", "implementation_name": "cpython"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="a package of the workspace, such as genaifactory-gateway")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(arguments.package).items():
        (arguments.folder / name).write_text(text, encoding="utf-8")


def files(package: str) -> dict[str, str]:
    """Name -> content of each file."""
    common = _requirements(COMMON)
    minilm = _requirements(COMMON, "--extra", "minilm") - common
    build = _requirements(COMMON, "--extra", "minilm", pruned=()) - common - minilm
    needed = _requirements(package)
    if not minilm <= needed:
        minilm = build = set()
    workspace = _export(package, "--only-emit-workspace", "--no-hashes", "--no-annotate", "--no-header")
    folders = [line.removeprefix("-e ").partition(" ;")[0] for line in workspace.splitlines()]
    ours = {_project(_ROOT / folder / "pyproject.toml")["name"] for folder in folders}
    lists = {
        "common": common,
        "minilm": minilm,
        "own": needed - common - minilm,
        "build": build,
        "workspace": ours,
    }
    texts = {f"{name}.txt": "".join(f"{line}\n" for line in sorted(lines)) for name, lines in lists.items()}
    return texts | {"sbom.cdx.json": json.dumps(bill_of_materials(package), indent=1) + "\n"}


def bill_of_materials(package: str) -> dict[str, Any]:
    """CycloneDX 1.5 of the package and of all that it is installed with; the same for the same lock."""
    found: dict[str, Any] = json.loads(_export(package, "--format", "cyclonedx1.5"))
    found["components"] = [each for each in found["components"] if _is_installed(each)]
    names = {each["bom-ref"] for each in found["components"]} | {found["metadata"]["component"]["bom-ref"]}
    found["dependencies"] = [
        each | {"dependsOn": [name for name in each.get("dependsOn", ()) if name in names]}
        for each in found["dependencies"]
        if each["ref"] in names
    ]
    del found["metadata"]["timestamp"], found["serialNumber"]
    found["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(found)).urn
    return found


def _is_installed(component: dict[str, Any]) -> bool:
    properties = {each["name"]: each["value"] for each in component.get("properties", ())}
    marker = properties.get("uv:package:marker")
    return marker is None or Marker(marker).evaluate(_PYTHON)


def _requirements(package: str, *arguments: str, pruned: Sequence[str] = ONLY_TO_BUILD) -> set[str]:
    text = _export(package, "--no-emit-workspace", "--no-annotate", "--no-header", *arguments, pruned=pruned)
    return {" ".join(line.split()) for line in text.replace("\\\n", "").splitlines()}


def _export(package: str, *arguments: str, pruned: Sequence[str] = ONLY_TO_BUILD) -> str:
    uv = os.environ.get("UV") or "uv"
    prune = [word for name in pruned for word in ("--prune", name)]
    extras = ("--extra", CLUSTER) if _has_cluster(package) else ()
    command = (uv, "export", "--quiet", "--frozen", "--no-dev", "--package", package, *extras, *prune, *arguments)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)  # noqa: S603
    return done.stdout


def _has_cluster(package: str) -> bool:
    for path in _ROOT.glob("services/*/pyproject.toml"):
        project = _project(path)
        if project["name"] == package:
            return CLUSTER in project.get("optional-dependencies", {})
    return False


def _project(path: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project


if __name__ == "__main__":
    main()
