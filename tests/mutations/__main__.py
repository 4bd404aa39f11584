"""Breaks a line in a copy of the project, and requires that the tests named for it fail: `make test-mutations`.

Exits with 1 when a mutation survives, when its text does not stand exactly once in its file, or when a named test does
not pass without it. Nothing is written into the folder that it is run from.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

from tests.mutations import checks
from tests.mutations.checks import BELOW, ROOT
from tests.mutations.table import MUTATIONS, Mutation

_PACKAGES = re.compile(r"(?:services/\w+|operators|pipelines)/(genaifactory_\w+)/__init__\.py|protos/(genaifactory)/.*")
_COPIES = 2
_PASSED, _FAILED = "passed", "failed"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run of tests."""

    code: int
    """pytest's exit code."""
    results: dict[str, set[str]]
    """Dotted name of a test, without parameters -> "passed", "failed", "skipped": of all its cases."""
    output: str
    cpu_seconds: float


class Copy:
    """One copy of the project, with an interpreter that imports from it, and the worker that runs tests there."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """folder: empty. files: of the project, relative to its root."""
        self.root = folder / "project"
        for file in files:
            target = self.root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, target, follow_symlinks=False)
        self._report, self._output = folder / "report.xml", folder / "output"
        packages = sorted(
            {name for file in files if (found := _PACKAGES.fullmatch(file)) for name in found.groups() if name}
        )
        self._worker = subprocess.Popen(
            [_interpreter(folder / "python", self.root), self.root / "tests/mutations/worker.py", *packages],
            cwd=self.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            raise SystemExit("a copy of the project cannot be tested; the reason is above")

    def run(self, tests: Sequence[str], *, until_failed: bool = False) -> Outcome:
        """Runs the tests on what the copy holds now. until_failed: only until each has failed in one of its cases."""
        self._report.unlink(missing_ok=True)
        job = {
            "tests": [BELOW + test for test in tests],
            "report": str(self._report),
            "output": str(self._output),
            "until_failed": until_failed,
        }
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(job) + "\n")
        self._worker.stdin.flush()
        code, cpu_seconds = self._answer().split()
        results = _results(self._report) if self._report.exists() else {}
        return Outcome(int(code), results, self._output.read_text(errors="replace"), float(cpu_seconds))

    @contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """Applies the mutation inside the block."""
        path = self.root / mutation.file
        former = path.read_text()
        try:
            _write(path, former.replace(mutation.text, mutation.replacement))
            yield
        finally:
            _write(path, former)

    def close(self) -> None:
        """Ends the worker."""
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()

    def _answer(self) -> str:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            raise SystemExit("the process that runs the tests has ended; the reason is above")
        return line.strip()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="make test-mutations", description=__doc__)
    parser.add_argument("--only", default="", help="those whose file or reason holds this text")
    chosen = [m for m in MUTATIONS if (only := parser.parse_args().only) in m.file or only in m.why]
    problems = [problem for mutation in chosen for problem in checks.problems(mutation)]
    if problems or not chosen:
        print("\n".join(problems) or "no mutation matches")
        return 1
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder, _copies(Path(folder)) as copies:
        problems = _unbroken(copies, sorted({test for mutation in chosen for test in mutation.tests}))
        if problems:
            print("\n".join(problems))
            return 1
        free: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            free.put(copy)

        def verdict(mutation: Mutation) -> str:
            copy = free.get()
            try:
                with copy.mutated(mutation):
                    outcome = copy.run(mutation.tests, until_failed=True)
            finally:
                free.put(copy)
            found = _survived(mutation, outcome)
            word = "SURVIVED" if found else "killed"
            print(f"{word:8}  {outcome.cpu_seconds:4.1f} s of CPU  {mutation.file}: {mutation.why}", flush=True)
            return found

        with ThreadPoolExecutor(len(copies)) as pool:
            survivors = [found for found in pool.map(verdict, chosen) if found]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("\n".join(survivors), end="\n" if survivors else "")
    print(
        f"{len(chosen)} mutations: {len(chosen) - len(survivors)} killed, {len(survivors)} survived; "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    return 1 if survivors else 0


@contextmanager
def _copies(folder: Path) -> Iterator[list[Copy]]:
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    present = [file for file in files if file and (ROOT / file).is_file()]
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Copy(folder / str(number), present))) for number in range(_COPIES)]


def _interpreter(folder: Path, project: Path) -> Path:
    """A virtual environment with this one's libraries, and the project's packages from the copy in place of this one's.

    Rather than PYTHONPATH, which `python -I` ignores, as the retriever starts its parsers.
    """
    (folder / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    python = folder / "bin" / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries = folder / "lib" / version / "site-packages"
    libraries.mkdir(parents=True)
    # .pth files in the folders named here are not read: they would lead to the folder that this is run from.
    places = [project / name for name in ("protos", "operators", "pipelines")]
    places += sorted((project / "services").glob("*/"))
    places.append(Path(sys.prefix) / "lib" / version / "site-packages")
    (libraries / "project.pth").write_text("".join(f"{place}\n" for place in places))
    return python


def _unbroken(copies: Sequence[Copy], tests: Sequence[str]) -> list[str]:
    """The named tests that do not pass while nothing is broken."""
    by_file: dict[str, list[str]] = {}
    for test in tests:
        by_file.setdefault(test.partition("::")[0], []).append(test)
    parts: list[list[str]] = [[] for _ in copies[: len(by_file)]]  # no tests at all would mean every test
    for group in sorted(by_file.values(), key=len, reverse=True):
        min(parts, key=len).extend(group)
    with ThreadPoolExecutor(len(copies)) as pool:
        outcomes = list(pool.map(lambda copy, part: copy.run(part), copies[: len(parts)], parts))
    problems = []
    for part, outcome in zip(parts, outcomes, strict=True):
        bad = [test for test in part if not _has(outcome, test, _PASSED) or _has(outcome, test, _FAILED)]
        problems += [f"without any mutation this does not pass: {test}" for test in bad]
        if bad or outcome.code:
            problems.append(outcome.output)
    cpu = sum(outcome.cpu_seconds for outcome in outcomes)
    word = "do not all pass" if problems else "pass"
    print(f"without a mutation {len(tests)} tests {word}: {cpu:.1f} s of CPU", flush=True)
    return problems


def _survived(mutation: Mutation, outcome: Outcome) -> str:
    """Why the mutation counts as survived; empty when every named test failed."""
    missed = [test for test in mutation.tests if not _has(outcome, test, _FAILED)]
    if outcome.code == 1 and not missed:
        return ""
    why = f"passed all the same: {', '.join(missed)}" if outcome.code in (0, 1) else f"pytest ended with {outcome.code}"
    shown = outcome.output if outcome.code not in (0, 1) else ""
    return f"\n{mutation.file}: {mutation.why}\n  {mutation.text!r}\n  -> {mutation.replacement!r}\n  {why}\n{shown}"


def _has(outcome: Outcome, test: str, result: str) -> bool:
    file, *names = (BELOW + test).split("::")
    return result in outcome.results.get(".".join((*Path(file).with_suffix("").parts, *names)), ())


def _results(report: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname', '')}.{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        found.setdefault(test, set()).add(
            _FAILED if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else _PASSED
        )
    return found


def _write(path: Path, text: str) -> None:
    """Removes the former text's bytecode too, which Python checks by its source's size and second alone."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


if __name__ == "__main__":
    sys.exit(main())
