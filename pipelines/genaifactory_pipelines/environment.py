"""What a step is run by: commit, interpreter, packages, processor. It explains a result, and helps to make it again."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from genaifactory_pipelines.values import Values

FILE: Final = "environment.json"
_REVISION = "GENAIFACTORY_REVISION"
_GIT_TIMEOUT_SECONDS = 10.0


class Environment(Values):
    """Where a step was run."""

    revision: str
    """The commit, with "+changes" where the working tree differs from it; empty where it is not known."""
    python: str
    machine: str
    """System and architecture."""
    processor: str
    processors: int
    """That the process may use."""
    threads: str
    """OMP_NUM_THREADS; empty where it is not set."""
    packages: dict[str, str]
    """Versions of all installed distributions that have a name; of two with one name, of the one that is imported."""

    def lock(self) -> str:
        """Equal for equal packages under an equal interpreter, `sha256:` and 64 hex digits."""
        lines = [f"python=={self.python}", *(f"{name}=={version}" for name, version in sorted(self.packages.items()))]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return f"sha256:{digest}"

    def differences(self, other: Environment) -> list[str]:
        """What is not the same, "torch 2.13.0, 2.14.0", without the commit."""
        names = ("python", "machine", "processor", "processors", "threads")
        pairs = [(name, str(getattr(self, name)), str(getattr(other, name))) for name in names]
        packages = sorted(self.packages.keys() | other.packages.keys())
        pairs += [(name, self.packages.get(name, "none"), other.packages.get(name, "none")) for name in packages]
        return [f"{name} {one or 'unset'}, {two or 'unset'}" for name, one, two in pairs if one != two]


def of_step(folder: Path) -> Environment:
    """What a step was run by, from its folder. Blocks. Raises OSError, and ValueError for a file of something else."""
    return Environment.model_validate_json((folder / FILE).read_bytes())


@functools.cache
def here() -> Environment:
    """This process's, as it was at the first call. Blocks."""
    return Environment(
        revision=os.environ.get(_REVISION, "") or commit(Path(__file__)),
        python=platform.python_version(),
        machine=f"{platform.system()}-{platform.machine()}",
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)),
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        packages=_packages(),
    )


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for each in distributions():
        try:
            name, version = each.metadata["Name"], each.metadata["Version"]
        except FileNotFoundError:  # of importlib_metadata, whose finder is in force once MLflow was imported
            continue
        if name and version:  # an uninstallation that was interrupted leaves folders without either
            found.setdefault(name.lower(), version)
    return found


def commit(file: Path) -> str:
    """The commit of the checkout that tracks a file, as of Environment.revision. Blocks.

    An installed package may lie in a checkout of something else: that does not track it.
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        head = _git(file, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(file, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _git(file: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603
        ("git", "-C", str(file.parent), *arguments),  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_TIMEOUT_SECONDS,
    )
    return done.stdout.strip()
