"""Reports: what a client wrote is text in them, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from genaifactory_pipelines.reports import Report, bars, lines

ATTACK = "</td><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>\"'"


def test_a_question_with_markup_is_shown_as_text() -> None:
    report = Report(ATTACK, ATTACK)
    report.heading(ATTACK)
    report.text(ATTACK)
    report.table((ATTACK,), [(ATTACK,)])
    report.drawing(bars({ATTACK: 1}))
    report.drawing(lines({ATTACK: [(0, 1)]}, x=ATTACK))
    html = report.html()
    assert html.count("&lt;script&gt;alert(1)") == 10
    assert not re.search(r"<(script|img|link|iframe)", html)


def test_a_part_without_content_says_none() -> None:
    report = Report("Empty")
    report.table(("a",), [])
    report.drawing(bars({}))
    report.drawing(lines({"loss": []}, x="step"))
    assert report.html().count('<p class="none">none</p>') == 3


def test_bars_are_as_long_as_their_values() -> None:
    drawing = ElementTree.fromstring(bars({"train": 70, "test": 35, "none": 0}))
    widths = [float(bar.attrib["width"]) for bar in drawing.iter("rect")]
    assert widths == [420.0, 210.0, 0.0]
    assert ElementTree.fromstring(bars({"none": 0})).find("rect") is not None


def test_curves_go_through_their_points_on_one_scale() -> None:
    drawing = ElementTree.fromstring(lines({"train": [(0, 3), (5, 2), (10, 1)], "validation": [(0, 2)]}, x="step"))
    train, validation = (
        [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
        for line in drawing.iter("polyline")
    )
    frame = next(drawing.iter("rect")).attrib
    left, top, width, height = (float(frame[name]) for name in ("x", "y", "width", "height"))
    assert train == [(left, top), (left + width / 2, top + height / 2), (left + width, top + height)]
    assert validation == [(left, top + height / 2)]
    assert [text.text for text in drawing.iter("text")] == ["3", "1", "0", "step 10", "train", "validation"]
    assert ElementTree.fromstring(lines({"flat": [(1, 2), (2, 2)]}, x="step")).find("polyline") is not None


def test_a_long_cell_is_cut() -> None:
    report = Report("Long")
    report.table(("a",), [("x" * 10_000,)])
    assert "x" * 597 + "...</td>" in report.html()
