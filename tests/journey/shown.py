"""The commands and snippets in the fenced code blocks of README and docs, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\s*$")
_LANGUAGES = {"bash": "bash", "sh": "bash", "shell": "bash", "python": "python"}


@dataclass(frozen=True)
class Shown:
    """A command (one line, without its comment) or a whole Python snippet."""

    file: str
    line: int
    language: str
    """bash or python."""
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text.splitlines()[0]}"


def pages(root: Path) -> list[Path]:
    """README.md and the pages of docs/, in reading order."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def read(page: Path, root: Path) -> list[Shown]:
    """The commands and snippets of a page, in order; blocks of other languages (yaml, output) are left out."""
    found: list[Shown] = []
    language: str | None = None
    block: list[tuple[int, str]] = []
    name = page.relative_to(root).as_posix()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            block.append((number, line))
        elif language is None:
            language, block = fence[1], []
        else:
            kind = _LANGUAGES.get(language)
            if kind == "python":
                found.append(Shown(name, block[0][0], kind, "\n".join(text for _, text in block)))
            elif kind == "bash":
                found += [Shown(name, at, kind, command) for at, command in _commands(block)]
            language = None
    return found


def _commands(block: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """One entry a command: continued lines joined, comments left out."""
    commands: list[tuple[int, str]] = []
    waiting: tuple[int, str] | None = None
    for number, line in block:
        at, text = (waiting[0], f"{waiting[1]} {line.strip()}") if waiting else (number, line.strip())
        if text.endswith("\\"):
            waiting = (at, text[:-1].rstrip())
            continue
        waiting = None
        text = re.sub(r"(^|\s+)#( .*)?$", "", text).strip()
        if text:
            commands.append((at, text))
    return commands


# A question is in quotes, or the content of a message; after "ask" it may lack the question mark.
_QUESTION = re.compile(r'["“](\w[^"”\n{}<>$]*\s[^"”\n{}<>$]*\?)["”]|(?<!\w)ask\s+(?:-\S+\s+)*["“]([^"”\n{}$]+)["”]')


def question_files(root: Path) -> list[Path]:
    """Files that show questions: README, docs, charts, help of the command line, and the samples."""
    local = root / "services" / "local" / "genaifactory_local"
    return [
        *pages(root),
        *sorted((root / "charts").rglob("*.md")),
        *sorted((root / "charts").rglob("*.txt")),
        *sorted((root / "charts").rglob("*.yaml")),
        *sorted(local.rglob("*.yaml")),
        *sorted((local / "commands").glob("*.py")),
        *sorted((local / "sample").rglob("*")),
        local / "finding.py",
    ]


def questions(text: str) -> list[str]:
    """The questions in a text, in its order, each once."""
    return list(dict.fromkeys(found[1] or found[2] for found in _QUESTION.finditer(text)))
