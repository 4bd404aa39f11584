"""Which rule of a policy decides, and how a change of factory.yaml comes into force."""

from __future__ import annotations

from itertools import chain

import pytest

from genaifactory_common import specs
from genaifactory_common.masking import mask, question_without_masks
from genaifactory_common.specs import entities
from genaifactory_safety.policies import UNSCANNABLE, Policies, catalogue, groups
from genaifactory_safety.verdicts import Action, Direction

from .conftest import compiled, factory, scan

BOTH = "alice@example.com AKIAIOSFODNN7EXAMPLE"


def test_the_first_rule_that_names_an_entity_decides() -> None:
    policy = compiled(
        specs.Rule(entities=("EMAIL_ADDRESS",), output="allow"),
        specs.Rule(entities=("PII",), output="block"),
        specs.Rule(entities=("SECRET",), output="mask"),
    )
    released, verdict = scan(BOTH, policy)
    assert released == "alice@example.com <SECRET_AWS_ACCESS_KEY>"
    assert [(f.entity, f.action) for f in verdict.findings] == [
        ("EMAIL_ADDRESS", Action.ALLOW),
        ("SECRET_AWS_ACCESS_KEY", Action.MASK),
    ]


def test_an_entity_that_no_rule_names_passes_and_is_not_reported() -> None:
    released, verdict = scan(BOTH, compiled(specs.Rule(entities=("CREDIT_CARD",))))
    assert (released, verdict.findings, verdict.scanners) == (BOTH, (), ("pii",))


def test_an_entity_of_a_language_that_the_policy_omits_is_not_searched_for() -> None:
    document = factory("[{name: vi, languages: [vi], rules: [{entities: [PII]}]}]", used="vi")
    policy = Policies(specs.Source(document), catalogue()).get("vi", Direction.OUTPUT)
    assert scan("536-22-1867, 0912345678", policy)[0] == "536-22-1867, <VN_PHONE>"


@pytest.mark.parametrize(
    ("terms", "text", "released"),
    [
        (["dự án mật"], "Về DỰ  ÁN\u200b-mật này", "Về "),
        (["dự án mật"], "dự án mật ong", ""),
        (["cat"], "concatenate the category", "concatenate the category"),
        (["c++"], "we write C++ here", "we write "),
        (["🍆"], "a 🍆 b", "a "),
        (["ác mộng"], "a\u0301c mo\u0323\u0302ng", ""),
        (["a b", "a b c"], "x a b c", "x "),
    ],
)
def test_banned_terms_block_as_whole_words_in_any_case_and_form(terms: list[str], text: str, released: str) -> None:
    policy = compiled(specs.Rule(entities=("PII",)), banned_terms=terms)
    for cuts in ((), range(len(text))):
        assert scan(text, policy, cuts)[0] == released


def test_a_rule_may_mask_banned_terms_instead() -> None:
    policy = compiled(specs.Rule(entities=("BANNED",)), banned_terms=["dự án mật"])
    released, verdict = scan("Về dự án mật, dự án mật và dự án khác", policy)
    assert released == "Về <BANNED_TERM>, <BANNED_TERM> và dự án khác"
    assert verdict.scanners == ("banned_terms",)


def test_a_new_document_is_in_force_at_once() -> None:
    source = specs.Source(factory("[{name: default}]"))
    policies = Policies(source, catalogue())
    assert scan(BOTH, policies.get("default", Direction.OUTPUT))[0] == BOTH
    source.replace(factory("[{name: default, rules: [{entities: [PII]}]}]"))
    assert scan(BOTH, policies.get("default", Direction.OUTPUT))[0] == "<EMAIL_ADDRESS> AKIAIOSFODNN7EXAMPLE"


def test_policies_may_name_exactly_the_entities_that_the_recognisers_find() -> None:
    assert groups(catalogue()) == entities.GROUPS
    assert entities.OTHERS == (UNSCANNABLE,)


@pytest.mark.parametrize("entity", [*entities.GROUPS, *chain.from_iterable(entities.GROUPS.values()), *entities.OTHERS])
def test_a_policy_with_any_entity_name_of_the_schema_compiles(entity: str) -> None:
    document = factory(f"[{{name: default, rules: [{{entities: [{entity}], output: block}}]}}]")
    policy = Policies(specs.Source(document), catalogue()).get("default", Direction.OUTPUT)
    assert {decision.action for decision in policy.decisions.values()} == {Action.BLOCK}


def test_the_mask_of_every_entity_is_recognised_and_removed_from_a_question() -> None:
    entities = {entity for members in groups(catalogue()).values() for entity in members}
    assert len(entities) > 20
    assert {entity for entity in entities if question_without_masks(mask(entity))} == set()
