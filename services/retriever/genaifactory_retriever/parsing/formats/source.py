"""Source code and configuration to blocks: the unchanged text, under the first line of each definition."""

from __future__ import annotations

import re

from genaifactory_retriever.documents import Block

# At the beginning of a line: definitions of Python, JavaScript, TypeScript, Go, Rust, Java, C, SQL and shell, sections
# of TOML and INI files. The text of a definition that is missed is under the heading above.
_BEGINS = re.compile(
    r"""^(?:
        (?:(?:export|default|declare|pub(?:\([^)\n]*\))?|public|private|protected|internal|static|abstract|final|async|
              unsafe|extern|inline|const)\s+)*
        (?:def|class|function|func|fn|struct|enum|union|trait|impl|interface|type|module|namespace|message|service)
        \s[^\n]+
      | (?i:create)\s+(?i:or\s+replace\s+)?(?i:table|view|function|procedure|index|trigger|type)\s[^\n]+
      | \[[^\]\n]+\]{1,2}
      | \w[\w-]*\s*\(\)\s*\{
    )\s*$""",
    re.VERBOSE,
)
_MAX_LINE = 300
_STATEMENTS = frozenset(("case", "do", "else", "for", "if", "return", "switch", "while"))


def parse(text: str) -> list[Block]:
    """Listings, each under the first line of its definition, which the listing repeats."""
    blocks: list[Block] = []
    lines: list[str] = []

    def close() -> None:
        if any(line.strip() for line in lines):
            blocks.append(Block("\n".join(lines), verbatim=True))
        lines.clear()

    for line in text.replace("\r\n", "\n").split("\n"):
        if len(line) <= _MAX_LINE and (_BEGINS.match(line) or _is_c_function(line)):
            close()
            blocks.append(Block(line.strip().rstrip("{:( "), 1))
        lines.append(line)
    close()
    return blocks


def _is_c_function(line: str) -> bool:
    """Whether it begins a function of C, C++ or Java: types, a name, parentheses and a brace."""
    words = line.partition("(")[0].split()
    return (
        len(words) > 1
        and line.rstrip().endswith("{")
        and (line[0].isalpha() or line[0] == "_")
        and "(" in line
        and words[0] not in _STATEMENTS
    )
