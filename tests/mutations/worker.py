"""Runs named tests in one copy of the project, each time in a fresh child; jobs come as JSON lines on standard input.

A child is forked after the libraries are imported and before any code of the project is: most of what a small test
costs is that import, and a mutation must be what the child imports.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

# Libraries that the tests import, and plugins of pytest. A missing one costs time only.
_LIBRARIES = (
    "pytest", "grpc.aio", "grpc_status.rpc_status", "grpc_health.v1.health_pb2_grpc", "google.protobuf.json_format",
    "google.rpc.error_details_pb2", "pydantic", "pydantic_settings", "sqlalchemy.ext.asyncio", "alembic.operations",
    "alembic.script", "aiosqlite", "asyncpg", "opentelemetry.sdk.trace.export", "prometheus_client", "blockbuster",
    "cryptography.x509", "httpx", "httpx2", "jinja2.sandbox", "lxml.etree", "numpy", "openai", "orjson", "yaml",
    "hypothesis", "uvicorn.protocols.http.httptools_impl", "uvloop", "anyio._backends._asyncio", "anyio.pytest_plugin",
    "grpc_reflection.v1alpha.reflection", "h2.connection", "httpcore", "jwt", "tiktoken", "xml.etree.ElementTree",
    "_hypothesis_pytestplugin", "_pytest.junitxml", "_pytest.unraisableexception", "pytest_asyncio.plugin",
    "pytest_timeout",
)  # fmt: skip
_PROJECT = "genaifactory"
ELSEWHERE = 70
"""Exit code of a child that imported the project from another place than its copy."""


def main() -> None:
    """argv: the project's packages. Answers each job, the arguments of `_run`, with exit code and CPU seconds."""
    root = Path.cwd()
    sys.path[0] = str(root)  # as `python -m pytest` does
    for name in sys.argv[1:]:
        found = importlib.util.find_spec(name)
        places = [] if found is None else list(found.submodule_search_locations or ())
        if not places or not all(Path(place).is_relative_to(root) for place in places):
            sys.exit(f"{name} would be imported from {places}, not from {root}")
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if ours := [name for name in sys.modules if name.startswith(_PROJECT)]:
        sys.exit(f"imported before the fork: {', '.join(ours)}")
    gc.collect()
    gc.freeze()  # otherwise each child would scan, and so copy, all of it
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(root, **job))
        _, status, used = os.wait4(child, 0)
        print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)


class _UntilFailed:
    """A plugin that ends a run when each test has failed in one of its cases: the others would show nothing more."""

    def __init__(self, tests: list[str]) -> None:
        self._left = set(tests)
        self._session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        self._session = session

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._left.discard(report.nodeid.partition("[")[0])
            if not self._left:
                self._session.shouldfail = "every named test has failed"


def _run(root: Path, tests: list[str], report: str, output: str, *, until_failed: bool) -> int:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, descriptor), (2, descriptor)):
        os.dup2(source, target)
    import pytest

    # Failures without their source: Python 3.11 may raise SystemError where it is parsed while a finalizer runs.
    options = ["-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=60", f"--junitxml={report}"]
    plugins = [_UntilFailed(tests)] if until_failed else []
    # The libraries are imported already: what pytest would rewrite in them does not matter here.
    code = int(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests], plugins))
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None)
        if name.startswith(_PROJECT) and file and not Path(file).is_relative_to(root):
            print(f"{name} was imported from {file}")
            return ELSEWHERE
    return code


if __name__ == "__main__":
    main()
