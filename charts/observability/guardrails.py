"""The dashboard of guardrails: verdicts, findings, texts that could not be scanned, and the duration of scans."""

from __future__ import annotations

from charts.observability.panels import Board, Choice, Panel, increase, quantiles, rate

_POLICY = 'policy=~"$policy"'
_VERDICTS = "genaifactory_safety_verdicts_total"
_FINDINGS = "genaifactory_safety_findings_total"


def _share(action: str) -> str:
    some = rate(_VERDICTS, "policy, direction", _POLICY, f'action="{action}"')
    return f"{some} / {rate(_VERDICTS, 'policy, direction', _POLICY)}"


BOARD = Board(
    "guardrails",
    "guardrails",
    choices=(Choice("policy", "Policy", _VERDICTS, "policy"),),
    rows={
        "Verdicts": (
            Panel(
                "Verdicts",
                "reqps",
                {"{{policy}} {{direction}} {{action}}": rate(_VERDICTS, "policy, direction, action", _POLICY)},
            ),
            Panel("Blocked, of all texts", "percentunit", {"{{policy}} {{direction}}": _share("BLOCK")}),
            Panel("Masked, of all texts", "percentunit", {"{{policy}} {{direction}}": _share("MASK")}),
        ),
        "Findings": (
            Panel(
                "In inputs, in 5 min",
                "short",
                {"{{entity}} {{action}}": increase(_FINDINGS, "entity, action", 'direction="INPUT"')},
            ),
            Panel(
                "In outputs, in 5 min",
                "short",
                {"{{entity}} {{action}}": increase(_FINDINGS, "entity, action", 'direction="OUTPUT"')},
            ),
            Panel(
                "Blocked answers",
                "reqps",
                {"{{route}}": rate("genaifactory_answers_total", "route", 'outcome="blocked"')},
            ),
        ),
        "Scanning": (
            Panel(
                "Not scanned, so not used, in 5 min",
                "short",
                {"{{direction}} {{reason}}": increase("genaifactory_safety_not_scanned_total", "direction, reason")},
            ),
            Panel("Scanning a text", "s", quantiles("genaifactory_safety_scan_seconds", "direction")),
            Panel(
                "Characters",
                "cps",
                {"{{direction}}": rate("genaifactory_safety_scanned_characters_total", "direction")},
            ),
        ),
    },
)
