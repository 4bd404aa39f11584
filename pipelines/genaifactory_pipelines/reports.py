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
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_LEFT, _PLOT_TOP = 640, 240, 70, 30
_COLOURS = ("#4493f8", "#d1762c", "#3fb950", "#ab7df8")
Line = Sequence[tuple[float, float]]
"""Points, x and y, in the order of x."""


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

    def links(self, targets: Mapping[str, str]) -> None:
        """A list of links: what is read, and the address, relative to the report's own."""
        items = "".join(f'<li><a href="{escape(to)}">{escape(text)}</a></li>' for text, to in targets.items())
        self._parts.append(f"<ul>{items}</ul>")

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


def lines(series: Mapping[str, Line], *, x: str) -> str:
    """A curve for each of up to four series, with its name, over one scale, as SVG; without points the word "none".

    x: what the horizontal axis counts. A series of one point is a dot.
    """
    everything = [point for points in series.values() for point in points]
    if not everything:
        return '<p class="none">none</p>'
    left, right = min(each[0] for each in everything), max(each[0] for each in everything)
    low, high = min(each[1] for each in everything), max(each[1] for each in everything)
    across, up = _PLOT_WIDTH / ((right - left) or 1), _PLOT_HEIGHT / ((high - low) or 1)
    frame = f'x="{_PLOT_LEFT}" y="{_PLOT_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}"'
    parts = [
        f'<rect {frame} fill="none" stroke="currentColor" stroke-opacity=".3"/>',
        _label(_PLOT_LEFT - 8, _PLOT_TOP + 10, f"{high:.4g}", "end"),
        _label(_PLOT_LEFT - 8, _PLOT_TOP + _PLOT_HEIGHT, f"{low:.4g}", "end"),
        _label(_PLOT_LEFT, _PLOT_TOP + _PLOT_HEIGHT + 18, f"{left:g}", "start"),
        _label(_PLOT_LEFT + _PLOT_WIDTH, _PLOT_TOP + _PLOT_HEIGHT + 18, f"{x} {right:g}", "end"),
    ]
    for i, ((name, points), colour) in enumerate(zip(series.items(), _COLOURS, strict=False)):
        places = [
            (_PLOT_LEFT + (one - left) * across, _PLOT_TOP + _PLOT_HEIGHT - (other - low) * up) for one, other in points
        ]
        path = " ".join(f"{one:.1f},{other:.1f}" for one, other in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{one:.1f}" cy="{other:.1f}" r="3" fill="{colour}"/>' for one, other in places[-1:]]
        parts.append(_label(_PLOT_LEFT + 160 * i, 16, name, "start", colour))
    width, height = _PLOT_LEFT + _PLOT_WIDTH + 10, _PLOT_TOP + _PLOT_HEIGHT + 30
    return f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" font-size="13">{"".join(parts)}</svg>'


def _label(x: float, y: float, text: str, anchor: str, colour: str = "currentColor") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS else f"{text[: _CELL_CHARACTERS - 3]}..."
