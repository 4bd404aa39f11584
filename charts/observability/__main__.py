"""Writes the Grafana dashboards and the Prometheus rules into the chart. Run: make dashboards"""

from __future__ import annotations

from pathlib import Path

from charts.observability import alerts, guardrails, modelserver, traffic, usage

CHART = Path(__file__).resolve().parents[1] / "genai-factory"
BOARDS = (traffic.BOARD, guardrails.BOARD, usage.BOARD, modelserver.BOARD)


def files() -> dict[Path, str]:
    """The generated texts by their paths."""
    written = {CHART / "dashboards" / f"{board.name}.json": board.build() for board in BOARDS}
    written[CHART / "alerts" / "rules.yaml"] = alerts.build()
    return written


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
