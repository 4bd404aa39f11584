"""The descriptions of changes of factory.yaml."""

from __future__ import annotations

import pytest

from genaifactory_common import changes, specs

KEY, OTHER_KEY = "a" * 64, "b" * 64
FACTORY = f"""
tenants:
- {{name: acme, keys: [{{id: alice, sha256: {KEY}, role: user}}]}}
- {{name: rival}}
roles: [{{name: user, permissions: [chat]}}]
models:
- {{name: large, backend: {{type: openai, base_url: "https://one:pass-1@llm.example/v1", model: x, api_key_env: K1}}}}
- {{name: small, backend: {{type: modelserver, model: small}}}}
routes:
- {{name: docs, task: rag, models: [large], prompt: rag, knowledge_base: handbook}}
prompts: [{{name: rag, version: 1, system: Answer from the passages of the secret handbook.}}]
knowledge_bases: [{{name: handbook}}]
policies: [{{name: default, rules: [{{entities: [PII]}}], banned_terms: [projectx]}}]
engines:
- {{type: extractive, model: small}}
- {{type: vllm, model: qwen, source: /models/qwen, args: {{hf_token: token-1, max_model_len: 4096}}, adapters: {{}}}}
"""


def lines(*replacements: tuple[str, str]) -> list[str]:
    text = FACTORY
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return list(changes.between(specs.parse(FACTORY), specs.parse(text)))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("models: [large]", "models: [small, large]", ["routes[docs].models: [large] -> [small, large]"]),
        ("task: rag,", "task: rag, passages: 7,", ["routes[docs].passages: 5 -> 7"]),
        ("task: rag,", "task: rag, cache: {enabled: false},", ["routes[docs].cache.enabled: true -> false"]),
        ("role: user}", "role: user, groups: [staff]}", ["tenants[acme].keys[alice].groups: [] -> [staff]"]),
        ("name: rival", "name: other", ["tenants[rival]: removed", "tenants[other]: added"]),
        ("id: alice", "id: bob", ["tenants[acme].keys[alice]: removed", "tenants[acme].keys[bob]: added"]),
        ("entities: [PII]", "entities: [PII, SECRET]", ["policies[default].rules[0].entities: [PII] -> [PII, SECRET]"]),
        ("[{entities: [PII]}]", "[{entities: [PII]}, {entities: [SECRET]}]", ["policies[default].rules[1]: added"]),
        ("version: 1,", "version: 2,", ["prompts[rag@1]: removed", "prompts[rag@2]: added"]),
    ],
)
def test_a_change_is_named_by_path_and_name(old: str, new: str, expected: list[str]) -> None:
    assert lines((old, new)) == expected


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (KEY, OTHER_KEY, "tenants[acme].keys[alice].sha256"),
        ("api_key_env: K1", "api_key_env: K2", "models[large].backend.api_key_env"),
        ("pass-1", "pass-2", "models[large].backend.base_url"),
        ("secret handbook", "open handbook", "prompts[rag@1].system"),
        ("projectx", "projecty", "policies[default].banned_terms"),
        ("token-1", "token-2", "engines[qwen].args[hf_token]"),
        ("/models/qwen", "/models/other", "engines[qwen].source"),
    ],
)
def test_values_of_secrets_and_free_texts_are_not_shown(old: str, new: str, path: str) -> None:
    (line,) = lines((old, new))
    assert line.startswith(f"{path}: changed")
    assert old not in line
    assert new not in line


def test_a_change_that_takes_effect_later_is_marked() -> None:
    assert lines(("max_model_len: 4096", "max_model_len: 8192")) == [
        "engines[qwen].args[max_model_len]: 4096 -> 8192 (in force after a restart of the model server)"
    ]
    assert lines(("{name: handbook}", "{name: handbook, chunk_tokens: 100}")) == [
        "knowledge_bases[handbook].chunk_tokens: 200 -> 100 (in force with the next index that is built)"
    ]
    assert lines(("{name: handbook}", "{name: handbook, embedder: {type: e5}}")) == [
        "knowledge_bases[handbook].embedder: changed (in force with the next index that is built)"
    ]
    adapter = "adapters: {serve: [{name: support, source: /adapters/support}]}"
    assert lines(("adapters: {}", adapter)) == ["engines[qwen].adapters.serve[support]: added"]


def test_another_order_of_the_same_items_is_a_change() -> None:
    factory = specs.parse(FACTORY)
    turned = factory.model_copy(update={"tenants": factory.tenants[::-1]})
    assert list(changes.between(factory, turned)) == ["tenants: in another order"]


def test_the_same_document_has_no_changes() -> None:
    assert lines() == []
    assert lines(("policies:", "# a comment\npolicies:")) == []
