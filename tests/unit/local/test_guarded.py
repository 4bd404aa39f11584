"""Enforced guardrail rules of a request, without any of its text."""

from __future__ import annotations

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_local import guarded
from genaifactory_local.guarded import Enforced, Rule

ALLOW, MASK, BLOCK = types_pb2.ACTION_ALLOW, types_pb2.ACTION_MASK, types_pb2.ACTION_BLOCK
IN, OUT = types_pb2.DIRECTION_INPUT, types_pb2.DIRECTION_OUTPUT


def verdict(
    direction: types_pb2.Direction.ValueType, *findings: tuple[str, types_pb2.Action.ValueType]
) -> types_pb2.Verdict:
    return types_pb2.Verdict(
        action=max((action for _, action in findings), default=ALLOW),
        findings=[types_pb2.Finding(entity_type=name, action=action) for name, action in findings],
        policy="default",
        direction=direction,
    )


def test_allowed_findings_are_no_enforcement() -> None:
    record = monitor_pb2.Interaction(verdicts=[verdict(IN, ("EMAIL_ADDRESS", ALLOW)), verdict(OUT)])
    assert guarded.enforced(record) == []
    assert guarded.in_words([]) == ""


def test_blocks_come_first_and_equal_findings_are_counted() -> None:
    record = monitor_pb2.Interaction(
        verdicts=[verdict(OUT, ("EMAIL", MASK), ("EMAIL", MASK), ("PHONE", MASK)), verdict(IN, ("KEY", BLOCK))],
        outcome=monitor_pb2.OUTCOME_BLOCKED,
    )
    items = guarded.enforced(record)
    assert items[0] == Enforced(Rule("blocked", "in", "KEY", "default"), 1)
    assert guarded.in_words(items) == "blocked in: KEY; masked out: EMAIL x2, PHONE"


def test_a_block_without_a_finding_is_shown_by_its_policy_or_reason() -> None:
    by_verdict = monitor_pb2.Interaction(verdicts=[types_pb2.Verdict(action=BLOCK, policy="strict", direction=IN)])
    by_outcome = monitor_pb2.Interaction(outcome=monitor_pb2.OUTCOME_BLOCKED, error_reason="CONTENT_BLOCKED")
    assert guarded.in_words(guarded.enforced(by_verdict)) == "blocked in: strict"
    assert guarded.in_words(guarded.enforced(by_outcome)) == "blocked: CONTENT_BLOCKED"


def test_the_summary_counts_requests_and_findings_by_rule() -> None:
    twice = guarded.enforced(monitor_pb2.Interaction(verdicts=[verdict(IN, ("EMAIL", MASK), ("EMAIL", MASK))]))
    once = guarded.enforced(monitor_pb2.Interaction(verdicts=[verdict(IN, ("EMAIL", MASK), ("KEY", BLOCK))]))
    assert [(rule.entity, requests, findings) for rule, requests, findings in guarded.summary([twice, once])] == [
        ("EMAIL", 2, 3),
        ("KEY", 1, 1),
    ]
