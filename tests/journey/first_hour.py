"""A user's first hour: types what README and docs show, in their order, and checks the output.

`make test-journey` runs it in a bare container with Python and make; with the standard library alone, since nothing
else is installed yet. By hand, in a fresh clone: python3 -m tests.journey.first_hour
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.journey import shown
from tests.journey.facts import FACTS
from tests.journey.shown import Shown
from tests.journey.terminal import Running, typed

ROOT = Path(__file__).parents[2]

# Commands that are not run here, and where they are. A command that is neither here nor in PLAYED fails the journey.
ELSEWHERE = (
    (r"make (vllm-(cpu|gpu)|run MODEL=.*|test-vllm|bench-vllm)", "5 GB of vLLM: tests/vllm"),
    (r"make (train-cpu|test-train)", "5 GB of torch: tests/train"),
    (
        r"make vllm-cpu train-cpu|make (pipeline|test-loop)|.*genaifactory (retrain|train|adapters load) .*",
        "needs both: tests/loop",
    ),
    (r"make mlflow", "1 GB of MLflow, and a server that stays: tests/unit/pipelines/test_registry.py"),
    (r".*genaifactory (registry|reproduce) .*", "needs a run in MLflow: tests/unit/pipelines/test_registry.py"),
    (r"make test-gpu", "needs a GPU"),
    (r"make (test|test-fast|test-mutations|test-soak|test-clients|test-journey)", ".ci/run"),
    (r"make bench", "minutes of load: run by hand, its figures are in docs and notes"),
    (r"make (images|cluster-up|deploy)\b.*|skaffold .*|POD=.*", "needs a cluster: tests/cluster"),
    (r"(argo|kubectl|helm) .*", "needs a cluster: tests/cluster"),
    (r".*config check /tmp/factory\.yaml", "needs a cluster: tests/cluster"),
    (r".*genaifactory dataset .*", "needs answers that were rated: tests/integration/test_pipelines_data.py"),
    (r".*genaifactory evaluate .*", "needs a golden set: tests/integration/test_pipelines_evaluate.py"),
    (r".*genaifactory sources (list|sync .*)", "needs sources in factory.yaml: tests/integration/test_sources.py"),
    (r".*genaifactory (reindex .*|indexes .*)", "needs a golden set: tests/integration/test_reindex.py"),
    (r".*genaifactory splits .*", "needs a split in factory.yaml: tests/integration/test_splits.py"),
    (r".*genaifactory drift .*", "needs weeks on record: tests/integration/test_pipelines_drift.py"),
)
# Pages whose Python snippets are run elsewhere.
SNIPPETS_ELSEWHERE = {"docs/batches.md": "tests/integration/test_batches.py", "docs/clients.md": "tests/clients"}

REFUSALS = ("I do not know", "Tôi không biết")
OWN_DOCUMENT = "# Leave\n\nEverybody has 42 days of annual leave per year at Bamboo Systems.\n"


class Newcomer:
    """Types commands and checks their output."""

    def __init__(self) -> None:
        self.platform: Running | None = None

    def make_run(self, step: Shown) -> None:
        """Starts the platform and runs what its banner shows."""
        self._start(step.text)
        self.banner()

    def make_run_with_documents(self, step: Shown) -> None:
        """Answers come from the user's documents, not from the sample; then from the sample again, as in the README."""
        folder = ROOT / "path" / "to" / "folder"
        folder.mkdir(parents=True)
        (folder / "leave.md").write_text(OWN_DOCUMENT)
        self._stop()
        self._start(step.text)
        try:
            answer = self.ask('.venv/bin/genaifactory ask "How many days of annual leave do I have?"', "42 days")
            assert "16" not in answer, f"the sample still answers:\n{answer}"
            self.refused("Pin của cảm biến Lúa 3 dùng được bao lâu?")
        finally:
            self._stop()
            self._start("make run")
            self.command(".venv/bin/genaifactory ingest --samples")
            self.command(".venv/bin/genaifactory documents remove folder/leave.md")

    def ask_shown(self, step: Shown) -> None:
        """A question gets the right answer, with its source."""
        question = re.search(r'"([^"]+)"', step.text)
        assert question, step
        self.ask(step.text, _fact(question[1]))

    def ask(self, command: str, fact: str) -> str:
        """Types a question; the answer. Raises AssertionError unless it holds the fact and names a source."""
        answer = self.command(command)
        assert not answer.startswith(REFUSALS), f"{command}\n{answer}"
        assert fact in answer, f"'{fact}' is missing:\n{command}\n{answer}"
        assert "Sources" in answer, f"no source:\n{command}\n{answer}"
        return answer

    def refused(self, question: str) -> None:
        """A question that no document answers is refused."""
        answer = self.command(f'.venv/bin/genaifactory ask "{question}"')
        assert answer.startswith(REFUSALS), f"{question}\n{answer}"

    def watch(self, step: Shown) -> None:
        """A request appears on the page; Ctrl-C ends it."""
        page = Running(step.text, ROOT)
        try:
            page.wait_for("Ctrl-C", timeout_seconds=60)
            self.command('.venv/bin/genaifactory ask "How many days of annual leave do I have?" --fresh')
            page.wait_for("extractive", timeout_seconds=30)
            page.interrupt()
        finally:
            page.close()
        assert "Traceback" not in page.output, page.output

    def plain(self, step: Shown) -> None:
        """A command that succeeds and prints something."""
        self.command(step.text)

    def config_schema(self, step: Shown) -> None:
        """The schema is written to the file."""
        typed_code, output = typed(step.text, ROOT)
        assert typed_code == 0, output
        assert '"tenants"' in (ROOT / step.text.rpartition(">")[2].strip()).read_text()

    def export(self, step: Shown) -> None:
        """Every question of this hour is in the file."""
        self.command(step.text)
        exported = (ROOT / step.text.rpartition(" ")[2]).read_text(encoding="utf-8")
        assert "annual leave" in exported
        assert "nghỉ phép" in exported

    def upload(self, step: Shown) -> None:
        """Stores the named file; removes it afterwards, so that later answers come from the samples."""
        file = ROOT / step.text.split()[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(OWN_DOCUMENT)
        stored = self.command(step.text)
        assert '"outcome":"added"' in stored, stored
        self.command(f".venv/bin/genaifactory documents remove {file.relative_to(ROOT)}")

    def snippet(self, step: Shown) -> None:
        """A Python snippet with the official client, in a virtual environment of its own."""
        if not (ROOT / "mine").is_dir():
            self.command(f"{sys.executable} -m venv mine && mine/bin/pip install --quiet openai")
        (ROOT / "snippet.py").write_text(step.text)
        answer = self.command("mine/bin/python snippet.py")
        assert not answer.startswith(REFUSALS), f"{step}\n{answer}"

    def banner(self) -> None:
        """Runs everything that the banner shows, as it is printed."""
        assert self.platform is not None
        banner = self.platform.output.partition("Ready")[2]
        questions = re.findall(r'^  (\S+genaifactory ask ".*")\r?$', banner, re.MULTILINE)
        assert len(questions) >= 3, banner
        for question in questions:
            text = question.partition('"')[2].rstrip('"')
            self.ask(question, _fact(text))
        curl = re.search(r"^  (curl -N .*\\\n.*)$", banner, re.MULTILINE)
        assert curl, banner
        assert "data: [DONE]" in self.command(curl[1])
        python = banner.partition("with the openai package\n")[2].partition("\n\n")[0]
        self.snippet(Shown("banner", 0, "python", re.sub(r"^  ", "", python, flags=re.MULTILINE)))

    def mistakes(self) -> None:
        """Common mistakes end with an error that names the problem, and no traceback."""
        for command, says in (
            ("make run", "Another process runs a platform"),
            ("make run DOCS=nowhere PORT=9100 GRPC_PORT=9101", "nowhere does not exist"),
            (".venv/bin/genaifactory ask 'Anything?' --route nope", "nope"),
            (".venv/bin/genaifactory ingest nowhere", "nowhere does not exist"),
            (".venv/bin/genaifactory ask 'Anything?' --state nowhere", "No platform runs on"),
        ):
            code, output = typed(command, ROOT)
            assert code != 0, f"{command}\n{output}"
            assert says in output, f"{command}\n{output}"
            assert "Traceback" not in output, f"{command}\n{output}"

    def command(self, command: str) -> str:
        """Types a command that must succeed; returns its output."""
        code, output = typed(command, ROOT)
        assert code == 0, f"{command} ended with {code}:\n{output}"
        assert "Traceback" not in output, f"{command}\n{output}"
        assert output.strip() or ">" in command or "install" in command, f"{command} printed nothing"
        return output

    def _start(self, command: str) -> None:
        self.platform = Running(command, ROOT)
        self.platform.wait_for("Ctrl-C stops it.", timeout_seconds=300)

    def _stop(self) -> None:
        assert self.platform is not None
        self.platform.interrupt()
        assert "Traceback" not in self.platform.output, self.platform.output

    def close(self) -> None:
        """Stops the platform."""
        if self.platform is not None:
            self.platform.close()


def _fact(question: str) -> str:
    """Words of a right answer; empty for a question without an entry, which must still be answered with a source."""
    return FACTS[question].words if question in FACTS else ""


Play = Callable[[Newcomer, Shown], None]
PLAYED: tuple[tuple[str, Play], ...] = (
    (r"make run", Newcomer.make_run),
    (r"make run DOCS=.*", Newcomer.make_run_with_documents),
    (r'\.venv/bin/genaifactory ask ".*"', Newcomer.ask_shown),
    (r"\.venv/bin/genaifactory config schema > .*", Newcomer.config_schema),
    (r"\.venv/bin/genaifactory export (--since \S+ )?-o .*", Newcomer.export),
    (r"curl .*/v1/interactions\S* .* > .*", Newcomer.export),
    (r"curl -T .*", Newcomer.upload),
    (r"\.venv/bin/genaifactory watch", Newcomer.watch),
    (r"\.venv/bin/genaifactory .*", Newcomer.plain),
    (r"from openai import OpenAI", Newcomer.snippet),
)


def main() -> int:
    """Runs every step; 0 when all succeeded, 1 after a list of those that failed."""
    # In a shell's background job it would be ignored, also by the processes started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    newcomer = Newcomer()
    failures: list[str] = []
    try:
        for page in shown.pages(ROOT):
            for step in shown.read(page, ROOT):
                failures += _play(newcomer, step, started)
        try:
            newcomer.mistakes()
        except AssertionError as error:
            failures.append(f"a mistake has no clear error: {error}")
    finally:
        newcomer.close()
    print(f"\nThe first hour took {time.monotonic() - started:.0f} s; {len(failures)} of its steps failed.")
    for failure in failures:
        print(f"\nFAILED {failure}")
    return 1 if failures else 0


def _play(newcomer: Newcomer, step: Shown, started: float) -> list[str]:
    first_line = step.text.splitlines()[0]
    if why := _elsewhere(step, first_line):
        print(f"[{time.monotonic() - started:5.0f} s] {step}   not typed here: {why}", flush=True)
        return []
    for pattern, play in PLAYED:
        if re.fullmatch(pattern, first_line):
            print(f"[{time.monotonic() - started:5.0f} s] {step}", flush=True)
            try:
                play(newcomer, step)
            except AssertionError as failure:
                print(f"FAILED {failure}", flush=True)
                return [f"{step}\n{failure}"]
            return []
    return [f"{step}\nNothing runs it: add it to PLAYED or ELSEWHERE in tests/journey/first_hour.py."]


def _elsewhere(step: Shown, first_line: str) -> str | None:
    """What runs it, if this journey does not."""
    if step.language == "python":
        return SNIPPETS_ELSEWHERE.get(step.file)
    return next((why for pattern, why in ELSEWHERE if re.fullmatch(pattern, first_line)), None)


if __name__ == "__main__":
    sys.exit(main())
