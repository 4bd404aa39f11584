"""Reports that a person opens in a browser: one HTML file without scripts, styles or images from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
.version { color: #57606a; font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .3rem .6rem }
td { overflow-wrap: anywhere } tr { border-bottom: 1px solid #d0d7de } .none { color: #57606a }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } tr { border-color: #30363d } }
"""
_CELL_CHARACTERS = 600
_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH, _BAR_WIDTH = 20, 6, 260, 420


class Report:
    """Parts of a report, in their order. Every text is escaped."""

    def __init__(self, title: str, version: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if version:
            self._parts.append(f'<p class="version">{escape(version)}</p>')

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """One paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; without rows the word "none". Long cells are cut."""
        if not rows:
            self._parts.append('<p class="none">none</p>')
            return
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(f'<td>{escape(_cut(cell))}</td>' for cell in row)}</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def drawing(self, svg: str) -> None:
        """A plot, by a function of this module."""
        self._parts.append(svg)

    def html(self) -> str:
        """The file's text."""
        head = f'<meta charset="utf-8">\n<title>{escape(self._title)}</title>\n<style>{_STYLE}</style>'
        body = "\n".join(self._parts)
        return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def bars(counts: Mapping[str, float]) -> str:
    """A bar for each value, 0 or more, with its label and the value, as SVG; without values the word "none"."""
    if not counts:
        return '<p class="none">none</p>'
    most = max(counts.values()) or 1
    step = _BAR_HEIGHT + _BAR_GAP
    rows = "".join(
        f'<text x="{_LABEL_WIDTH - 8}" y="{i * step + 15}" text-anchor="end" fill="currentColor">{escape(label)}</text>'
        f'<rect x="{_LABEL_WIDTH}" y="{i * step}" width="{_BAR_WIDTH * value / most:.1f}" height="{_BAR_HEIGHT}" '
        f'fill="#4493f8"/><text x="{_LABEL_WIDTH + _BAR_WIDTH * value / most + 8:.1f}" y="{i * step + 15}" '
        f'fill="currentColor">{value:,}</text>'
        for i, (label, value) in enumerate(counts.items())
    )
    width = _LABEL_WIDTH + _BAR_WIDTH + 100
    return f'<svg role="img" viewBox="0 0 {width} {len(counts) * step}" width="{width}" font-size="13">{rows}</svg>'


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS else f"{text[: _CELL_CHARACTERS - 3]}..."
