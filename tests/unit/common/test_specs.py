"""factory.yaml: an invalid document is refused with the path of the bad field, and the last valid one stays."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from genaifactory_common import in_force, specs
from genaifactory_common.specs import entities

GOOD = """
tenants:
- name: acme
  keys:
  - {id: alice, sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, role: developer}
  - {id: bob, sha256: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb, role: developer}
roles:
- {name: developer, permissions: [chat, embed], routes: [docs, minilm]}
models:
- {name: extractive, backend: {type: modelserver, model: extractive}}
- {name: big, backend: {type: openai, base_url: "https://models.example/v1", model: big}}
- {name: minilm, kind: embedding, backend: {type: modelserver, model: minilm}}
routes:
- {name: docs, task: rag, models: [big, extractive], prompt: rag, knowledge_base: handbook}
- {name: talk, task: chat, models: [big], prompt: rag@1}
prompts:
- {name: rag, version: 1, system: Answer.}
- {name: rag, version: 2, system: Answer better.}
knowledge_bases:
- {name: handbook, tenants: [acme]}
policies:
- name: default
  rules:
  - {entities: [PII], input: mask, output: block}
"""

ENTITIES = sorted({*entities.GROUPS, *entities.OTHERS, *(each for group in entities.GROUPS.values() for each in group)})
FOLDER = {"name": "wiki", "type": "folder", "path": "/srv/wiki", "knowledge_base": "handbook"}
BUCKET = {"name": "store", "type": "bucket", "url": "s3://company/x", "knowledge_base": "handbook"}
ARM = {"name": "new", "share": 0.1}
SPLIT = {"name": "trial", "route": "docs", "arms": [ARM]}
VLLM = {"type": "vllm", "model": "llama", "source": "/models/llama"}

Change = Callable[[dict[str, Any]], object]


def put(path: str, value: object) -> Change:
    """Sets a field: put("tenants.0.name", "x")."""

    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            document = document[int(part)] if part.isdigit() else document[part]
        document[int(last) if last.isdigit() else last] = value

    return change


def arm(**fields: object) -> Change:
    """Adds a split whose only arm has these fields."""
    return put("splits", [SPLIT | {"arms": [ARM | fields]}])


def arms(*several: dict[str, object]) -> Change:
    """Adds a split with these arms."""
    return put("splits", [SPLIT | {"arms": list(several)}])


def seeing(document: dict[str, Any]) -> None:
    """Adds a split whose route accepts images, and whose arm does not."""
    put("models.1.vision", True)(document)
    arm(models=["extractive"])(document)


def blocking(document: dict[str, Any]) -> None:
    """Adds a split whose route accepts images, and whose arm's policy blocks them."""
    put("models.1.vision", True)(document)
    put("policies", [*document["policies"], {"name": "open", "images": "allow"}])(document)
    put("routes.0.policy", "open")(document)
    arm(policy="default")(document)


def priced(document: dict[str, Any]) -> None:
    """Adds a split whose arm has prices in two currencies."""
    for number, currency in ((0, "EUR"), (1, "USD")):
        price = {"currency": currency, "input_per_million_tokens": 1, "output_per_million_tokens": 1}
        put(f"models.{number}.price", price)(document)
    put("routes.0.models", ["big"])(document)
    arm(models=["big", "extractive"])(document)


def drop(path: str) -> Change:
    """Removes a field."""

    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            document = document[int(part)] if part.isdigit() else document[part]
        del document[int(last) if last.isdigit() else last]

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "unknown field": (put("tennants", []), "tennants: unknown field"),
    "unknown nested field": (put("models.0.backend.url", "x"), "models[0].backend.url: unknown field"),
    "no tenants": (drop("tenants"), "tenants: is missing"),
    "tenants are no list": (put("tenants", "acme"), "tenants: must be a list"),
    "a tenant is no mapping": (put("tenants.0", "acme"), "tenants[0]: must be a mapping"),
    "empty tenants": (
        put("tenants", []),
        "tenants: must have at least 1",
    ),
    "more groups than a call can carry": (
        put("tenants.0.keys.0.groups", [f"g{number}" for number in range(65)]),
        "tenants[0].keys[0].groups: must have at most 64",
    ),
    "a tenant's name in capitals": (
        put("tenants.0.name", "ACME"),
        "tenants[0].name: String should match pattern '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'",
    ),
    "a key that is not hashed": (
        put("tenants.0.keys.1.sha256", "my-secret-key"),
        "tenants[0].keys[1].sha256: String should match pattern '^[0-9a-f]{64}$'",
    ),
    "a key without role": (drop("tenants.0.keys.0.role"), "tenants[0].keys[0].role: is missing"),
    "a key of no known role": (
        put("tenants.0.keys.0.role", "boss"),
        "tenants[0].keys[0].role: unknown name 'boss'; known: developer",
    ),
    "two keys with one id": (put("tenants.0.keys.1.id", "alice"), "tenants[].keys[].id: 'alice' appears twice"),
    "one key for two": (
        put("tenants.0.keys.1.sha256", "a" * 64),
        f"tenants[].keys[].sha256: '{'a' * 64}' appears twice",
    ),
    "a limit below one": (
        put("tenants.0.limits", {"requests_per_minute": 0}),
        "tenants[0].limits.requests_per_minute: Input should be greater than or equal to 1",
    ),
    "a limit that is no number": (
        put("tenants.0.limits", {"tokens_per_minute": "many"}),
        "tenants[0].limits.tokens_per_minute: Input should be a valid integer, unable to parse string as an integer",
    ),
    "no such permission": (
        put("roles.0.permissions.1", "fly"),
        (
            "roles[0].permissions[1]: Input should be 'chat', 'embed', 'models', 'feedback', 'usage', 'ingest', "
            "'export', 'evaluate' or 'operate'"
        ),
    ),
    "two gates of one name": (
        put("gates", [{"name": "g", "rules": [{"metric": "m", "at_least": 1}]}] * 2),
        "gates: 'g' appears twice",
    ),
    "a rule with two conditions": (
        put("gates", [{"name": "g", "rules": [{"metric": "m", "at_least": 1, "at_most": 2}]}]),
        (
            "gates[0].rules[0]: must have one of not_worse_by, better_by, at_least, at_most, and has "
            "at_least and at_most"
        ),
    ),
    "a role with an unknown route": (
        put("roles.0.routes.0", "dox"),
        "roles[0].routes[0]: unknown name 'dox'; known: docs, minilm, talk",
    ),
    "two models with one name": (
        lambda document: document["models"].append(document["models"][0]),
        "models: 'extractive' appears twice",
    ),
    "a backend without type": (
        drop("models.0.backend.type"),
        "models[0].backend: Unable to extract tag using discriminator 'type'",
    ),
    "a backend of an unknown type": (
        put("models.0.backend.type", "magic"),
        (
            "models[0].backend: Input tag 'magic' found using 'type' does not match any of the expected tags: "
            "'modelserver', 'openai'"
        ),
    ),
    "a base_url that is none": (
        put("models.1.backend.base_url", "models.example"),
        "models[1].backend.base_url: Input should be a valid URL, relative URL without a base",
    ),
    "a base_url of another scheme": (
        put("models.1.backend.base_url", "file:///etc/passwd"),
        "models[1].backend.base_url: URL scheme should be 'http' or 'https'",
    ),
    "a key in place of its variable": (
        put("models.1.backend.api_key_env", "sk-secret"),
        "models[1].backend.api_key_env: String should match pattern '^[A-Z][A-Z0-9_]*$'",
    ),
    "a negative price": (
        put("models.1.price", {"input_per_million_tokens": -1}),
        "models[1].price.input_per_million_tokens: Input should be greater than or equal to 0",
    ),
    "a currency that is none": (
        put("models.1.price", {"currency": "dong"}),
        "models[1].price.currency: String should match pattern '^[A-Z]{3}$'",
    ),
    "a route in two currencies": (
        put("models.1.price", {"currency": "VND"}),
        "routes[0].models: prices in several currencies: USD, VND",
    ),
    "too many tries": (
        put("models.1.retry", {"attempts": 11}),
        "models[1].retry.attempts: Input should be less than or equal to 10",
    ),
    "an endless timeout": (
        put("models.1.timeout_seconds", 1e9),
        "models[1].timeout_seconds: Input should be less than or equal to 3600",
    ),
    "an embedding model with vision": (
        put("models.2.vision", True),
        "models[2]: vision: an embedding model accepts texts alone; leave it out",
    ),
    "a model of the model server with vision": (
        put("models.0.vision", True),
        (
            "models[0]: vision: the model server's engines accept no images; name an OpenAI-compatible API of a model "
            "that does (vLLM's own server is one, with dialect: vllm)"
        ),
    ),
    "a policy that masks images": (
        put("policies.0.images", "mask"),
        "policies[0].images: Input should be 'block' or 'allow'",
    ),
    "a route without models": (
        put("routes.0.models", []),
        "routes[0].models: must have at least 1",
    ),
    "a route with an unknown model": (
        put("routes.0.models.1", "huge"),
        "routes[0].models[1]: unknown chat model 'huge'; known: big, extractive",
    ),
    "a route that chats with an embedding model": (
        put("routes.1.models.0", "minilm"),
        "routes[1].models[0]: unknown chat model 'minilm'; known: big, extractive",
    ),
    "a route named like an embedding model": (
        put("routes.1.name", "minilm"),
        "routes: 'minilm' is also an embedding model; clients could not distinguish them",
    ),
    "an unknown task": (put("routes.0.task", "sing"), "routes[0].task: Input should be 'chat' or 'rag'"),
    "rag without knowledge": (drop("routes.0.knowledge_base"), "routes[0]: a rag route needs knowledge_base"),
    "rag without prompt": (drop("routes.0.prompt"), "routes[0]: a rag route needs prompt"),
    "an unknown knowledge base": (
        put("routes.0.knowledge_base", "wiki"),
        "routes[0].knowledge_base: unknown name 'wiki'; known: handbook",
    ),
    "an unknown version of a prompt": (
        put("routes.1.prompt", "rag@7"),
        "routes[1].prompt: unknown name 'rag@7'; known: rag, rag@1, rag@2",
    ),
    "an unknown policy": (
        put("routes.1.policy", "strict"),
        "routes[1].policy: unknown name 'strict'; known: default",
    ),
    "coverage beyond one": (
        put("routes.0.min_term_coverage", 1.5),
        "routes[0].min_term_coverage: Input should be less than or equal to 1",
    ),
    "two prompts with one version": (put("prompts.1.version", 1), "prompts: 'rag@1' appears twice"),
    "an empty prompt": (put("prompts.0.system", "  "), "prompts[0].system: String should have at least 1 character"),
    "knowledge for an unknown tenant": (
        put("knowledge_bases.0.tenants.0", "rival"),
        "knowledge_bases[0].tenants[0]: unknown name 'rival'; known: acme",
    ),
    "an overlap as long as the passage": (
        put("knowledge_bases.0", {"name": "handbook", "chunk_tokens": 40, "chunk_overlap_tokens": 40}),
        "knowledge_bases[0]: chunk_overlap_tokens must be smaller than chunk_tokens",
    ),
    "an embedder of an unknown type": (
        put("knowledge_bases.0.embedder", {"type": "e6"}),
        (
            "knowledge_bases[0].embedder: Input tag 'e6' found using 'type' does not match any of the expected tags: "
            "'minilm', 'e5', 'onnx', 'openai'"
        ),
    ),
    "a folder of a model that depends on where the service was started": (
        put("knowledge_bases.0.embedder", {"type": "onnx", "path": "models/small"}),
        "knowledge_bases[0].embedder.path: String should match pattern '^/'",
    ),
    "an API of more dimensions than are supported": (
        put(
            "knowledge_bases.0.embedder",
            {"type": "openai", "base_url": "https://a.example/v1", "model": "m", "dimensions": 4097},
        ),
        "knowledge_bases[0].embedder.dimensions: Input should be less than or equal to 4096",
    ),
    "an API whose dimensions are unknown": (
        put("knowledge_bases.0.embedder", {"type": "openai", "base_url": "https://a.example/v1", "model": "m"}),
        "knowledge_bases[0].embedder.dimensions: is missing",
    ),
    "a rule about nothing": (
        put("policies.0.rules.0.entities", []),
        "policies[0].rules[0].entities: must have at least 1",
    ),
    "a rule with an unknown action": (
        put("policies.0.rules.0.output", "shrug"),
        "policies[0].rules[0].output: Input should be 'allow', 'mask' or 'block'",
    ),
    "an unknown entity": (
        put("policies.0.rules.0.entities", ["EMAIL_ADDRESS", "SHOE_SIZE"]),
        f"policies[0].rules[0].entities[1]: unknown entity or group 'SHOE_SIZE'; known: {', '.join(ENTITIES)}",
    ),
    "a banned term that cannot be seen": (
        put("policies.0.banned_terms", ["x", "\u200b"]),
        "policies[0].banned_terms[1]: must hold a visible character",
    ),
    "a template that does not end": (
        put("prompts.0.system", "Hello\n{% if question %}"),
        (
            "prompts[0].system: line 2: Unexpected end of template. Jinja was looking for the following tags: "
            "'elif' or 'else' or 'endif'. The innermost block that needs to be closed is 'if'."
        ),
    ),
    "a template with an unknown variable": (
        put("prompts.1.system", "{{ company }}"),
        "prompts[1].system: unknown variable 'company'; known: passages, question, refusal, tenant, today",
    ),
    "an engine argument that is misspelt": (
        put("engines", [VLLM | {"args": {"max_model_length": 100}}]),
        "engines[0].args.max_model_length: vLLM has no engine argument of this name; did you mean 'max_model_len'?",
    ),
    "an engine argument that is far from any": (
        put("engines", [VLLM | {"args": {"--Zzz": 1}}]),
        (
            "engines[0].args.--Zzz: vLLM has no engine argument of this name; arguments have their Python names "
            "(max_model_len)"
        ),
    ),
    "an engine argument that another field sets": (
        put("engines", [VLLM | {"args": {"enable_lora": True}}]),
        "engines[0].args.enable_lora: is set by the engine's field adapters; leave it out here",
    ),
    "a source of an unknown knowledge base": (
        put("sources", [FOLDER | {"knowledge_base": "nowhere"}]),
        "sources[0].knowledge_base: unknown name 'nowhere'; known: handbook",
    ),
    "two sources of one name": (put("sources", [FOLDER, FOLDER]), "sources: 'wiki' appears twice"),
    "a source named like the samples": (
        put("sources", [FOLDER | {"name": "samples"}]),
        "sources[0].name: 'samples' is the sample handbook; choose another name",
    ),
    "a source with a relative path": (
        put("sources", [FOLDER | {"path": "docs"}]),
        "sources[0].path: String should match pattern '^(/|~(/|$))'",
    ),
    "a source with credentials in its URL": (
        put("sources", [BUCKET | {"url": "s3://key:secret@company/x"}]),
        "sources[0].url: String should match pattern '^(s3|gs|az)://[^/\\s?#@]+(/[^\\s?#]*)?$'",
    ),
    "two splits of one name": (
        put("splits", [SPLIT, SPLIT | {"route": "talk"}]),
        "splits: 'trial' appears twice",
    ),
    "two splits of one route": (
        put("splits", [SPLIT, SPLIT | {"name": "other"}]),
        "splits[].route: 'docs' appears twice",
    ),
    "a split of no route": (
        put("splits", [SPLIT | {"route": "nowhere"}]),
        "splits[0].route: unknown name 'nowhere'; known: docs, talk",
    ),
    "a split without arms": (arms(), "splits[0].arms: must have at least 1"),
    "two arms of one name": (arms(ARM, ARM), "splits[0]: two arms have the name 'new'"),
    "an arm named as the stable one": (
        arm(name="stable"),
        "splits[0].arms[0].name: 'stable' is the arm that is the route as it stands; choose another name",
    ),
    "shares of more than all": (
        arms(ARM | {"share": 0.7}, ARM | {"name": "other", "share": 0.4}),
        "splits[0]: the shares of the arms add up to 1.1; they may have 1 at most",
    ),
    "a share of more than all": (
        arm(share=2),
        "splits[0].arms[0].share: Input should be less than or equal to 1",
    ),
    "an arm with an unknown model": (
        arm(models=["large"]),
        "splits[0].arms[0].models[0]: unknown chat model 'large'; known: big, extractive",
    ),
    "an arm with an unknown prompt": (
        arm(prompt="rag@3"),
        "splits[0].arms[0].prompt: unknown name 'rag@3'; known: rag, rag@1, rag@2",
    ),
    "an arm with an unknown policy": (
        arm(policy="strict"),
        "splits[0].arms[0].policy: unknown name 'strict'; known: default",
    ),
    "an arm with an unknown tenant": (
        arm(tenants=["rival"]),
        "splits[0].arms[0].tenants[0]: unknown name 'rival'; known: acme",
    ),
    "a tenant in two arms": (
        arms(ARM | {"tenants": ["acme"]}, ARM | {"name": "other", "tenants": ["acme"]}),
        "splits[0]: the tenant 'acme' is listed twice; it can have one arm only",
    ),
    "an arm with prices in two currencies": (
        priced,
        "splits[0].arms[0].models: prices in several currencies: EUR, USD",
    ),
    "an arm that accepts no images": (
        seeing,
        "splits[0].arms[0].models: none accepts images, which the route 'docs' does",
    ),
    "an arm whose policy blocks images": (
        blocking,
        "splits[0].arms[0].policy: 'default' blocks images, which the route 'docs' accepts",
    ),
    "an arm with passages of a route that searches nothing": (
        put("splits", [SPLIT | {"route": "talk", "arms": [ARM | {"passages": 3}]}]),
        "splits[0].arms[0].passages: the route 'talk' searches no documents",
    ),
    "a version of the future": (put("version", 2), "version: Input should be 1"),
}


def test_every_wrong_reference_is_named_at_once() -> None:
    document = yaml.safe_load(GOOD)
    put("routes.1.policy", "strict")(document)
    put("tenants.0.keys.0.role", "boss")(document)
    put("knowledge_bases.0.tenants.0", "rival")(document)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(document))
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "tenants[0].keys[0].role",
        "routes[1].policy",
        "knowledge_bases[0].tenants[0]",
    ]


def test_what_is_wrong_with_a_route_is_not_reported_for_its_arms_too() -> None:
    document = yaml.safe_load(GOOD)
    put("routes.0.policy", "strict")(document)
    arms(ARM, ARM | {"name": "other", "prompt": "rag@1"})(document)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(document))
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["routes[0].policy"]


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused_with_its_path(case: str) -> None:
    change, problem = WRONG[case]
    document = yaml.safe_load(GOOD)
    change(document)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(document), source="test.yaml")
    assert refused.value.problems == [problem]
    assert refused.value.message == f"test.yaml: {problem}"
    assert refused.value.field == problem.partition(":")[0]


TEXTS = {
    "empty": ("", "document: must be a mapping with tenants, roles, models, routes and policies"),
    "a list": ("- a", "document: must be a mapping with tenants, roles, models, routes and policies"),
    "a tab": ("a:\n\tb: 1", "line 2, column 1: not YAML: found character '\\t' that cannot start any token"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: not YAML: the key 'a' appears twice"),
    "a nested key twice": ("a:\n  b: 1\n  b: 2", "line 3, column 3: not YAML: the key 'b' appears twice"),
    "an open bracket": ("a: [1, 2", "line 1, column 9: not YAML: expected ',' or ']', but got '<stream end>'"),
    "an object of Python": (
        "a: !!python/object/apply:os.system [id]",
        (
            "line 1, column 4: not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'"
        ),
    ),
    "an unknown anchor": ("a: *nowhere", "line 1, column 4: not YAML: found undefined alias 'nowhere'"),
    "a day that is none": ("a: 2026-13-99", "document: not YAML: month must be in 1..12"),
    "endless nesting": ("[" * 5000, "document: not YAML: nested too deeply"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_document_is_refused_with_the_place_of_the_fault(case: str) -> None:
    text, problem = TEXTS[case]
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(text)
    assert refused.value.problems == [problem]


def test_every_problem_is_named_at_once() -> None:
    document = yaml.safe_load(GOOD)
    put("routes.0.task", "sing")(document)
    put("tenants.0.nick", "x")(document)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(document))
    assert sorted(problem.partition(":")[0] for problem in refused.value.problems) == [
        "routes[0].task",
        "tenants[0].nick",
    ]


def test_no_value_of_the_document_is_shown_where_it_may_be_a_secret() -> None:
    document = yaml.safe_load(GOOD)
    put("tenants.0.keys.0.sha256", "sk-very-secret")(document)
    put("models.1.backend.api_key_env", "sk-other-secret")(document)
    with pytest.raises(specs.InvalidConfiguration) as refused:
        specs.parse(yaml.safe_dump(document))
    assert "secret" not in refused.value.message


def test_parts_of_the_document_are_found_by_name() -> None:
    factory = specs.parse(GOOD)
    prompts = [factory.prompt(name) for name in ("rag", "rag@1", "rag@2")]
    assert [prompt and prompt.system for prompt in prompts] == [
        "Answer better.",
        "Answer.",
        "Answer better.",
    ]
    assert factory.prompt("rag@9") is None
    assert factory.knowledge_base("handbook", "acme") is not None
    assert factory.knowledge_base("handbook", "rival") is None
    assert factory.route("docs") is not None
    assert factory.route("nowhere") is None


def test_yaml_anchors_and_merge_keys_are_supported() -> None:
    base = "knowledge_bases:\n- &base {name: handbook, tenants: [acme], chunk_tokens: 100}\n- {<<: *base, name: wiki}\n"
    text = GOOD.replace("knowledge_bases:\n- {name: handbook, tenants: [acme]}\n", base)
    second = specs.parse(text).knowledge_bases[1]
    assert (second.name, second.chunk_tokens, second.tenants) == ("wiki", 100, ("acme",))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"\xff\xfe", "must be UTF-8 text"), (b"", "must be a mapping")],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "factory.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(specs.InvalidConfiguration, match=message) as refused:
        specs.Source.from_file(path)
    assert str(path) in refused.value.message


async def test_a_changed_file_is_put_in_force_unless_it_is_invalid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "factory.yaml"

    async def write(text: str) -> None:
        # Atomically, as an editor or a ConfigMap does.
        new = path.with_suffix(".new")
        await asyncio.to_thread(new.write_text, text)
        await asyncio.to_thread(new.rename, path)

    def refusals() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # the watcher under test polls as well
                await asyncio.sleep(0.005)

    await write(GOOD)
    source = await asyncio.to_thread(specs.Source.from_file, path)
    heard: list[specs.Factory] = []
    source.follow(lambda change: heard.append(change.after))
    watching = asyncio.create_task(source.watch(interval_seconds=0.005))

    for bad, why in (
        (GOOD.replace("task: rag", "task: sing"), "routes[0].task"),
        ("a: 2026-13-99", "month must be"),
        ("[" * 5000, "nested too deeply"),
    ):
        before = len(refusals())

        def refused(before: int = before) -> bool:
            return len(refusals()) > before

        await write(bad)
        await until(refused)
        assert why in refusals()[-1]
        assert source.current.routes[0].task == "rag"
        assert heard == []

    await asyncio.to_thread(path.unlink)
    await until(lambda: "cannot be read" in refusals()[-1])

    assert metric("refused") == 1
    assert metric("info", digest=hashlib.sha256(GOOD.encode()).hexdigest()) == 1

    await write(GOOD.replace("name: talk", "name: chat"))
    await until(lambda: len(heard) == 1)
    assert source.current is heard[0]
    assert source.current.route("chat") is not None
    watching.cancel()
    await asyncio.wait([watching])


def metric(name: str, **labels: str) -> float:
    """A metric of the configuration that this process has in force."""
    gauge = {"refused": in_force.REFUSED, "info": in_force.INFO, "loaded": in_force.LOADED}[name]
    return next(each.value for each in next(iter(gauge.collect())).samples if each.labels == labels)


async def test_a_change_is_logged_with_the_files_checksum_and_passed_to_followers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "factory.yaml"
    # With the line ends of another system: the checksum is of the file's bytes.
    await asyncio.to_thread(path.write_bytes, GOOD.replace("\n", "\r\n").encode())
    source = await asyncio.to_thread(specs.Source.from_file, path)
    followed: asyncio.Queue[specs.Change] = asyncio.Queue()
    source.follow(followed.put_nowait)
    watching = asyncio.create_task(source.watch(interval_seconds=0.005))
    try:
        changed = GOOD.replace("name: talk", "name: chat").encode()
        await asyncio.to_thread(path.write_bytes, changed)
        async with asyncio.timeout(10):
            change = await followed.get()
    finally:
        watching.cancel()
    digest = hashlib.sha256(changed).hexdigest()
    lines = ("routes[talk]: removed", "routes[chat]: added")
    assert (change.lines, change.digest, source.digest) == (lines, digest, digest)
    first, last = (record for record in caplog.records if hasattr(record, "genai_configuration"))
    assert vars(first)["genai_configuration"] == hashlib.sha256(GOOD.replace("\n", "\r\n").encode()).hexdigest()
    assert (vars(last)["genai_configuration"], vars(last)["genai_changes"]) == (digest, lines)
    assert "routes[talk]: removed; routes[chat]: added" in last.getMessage()
    assert (metric("info", digest=digest), metric("refused")) == (1, 0)
    assert time.time() - 10 < metric("loaded") <= time.time()


async def test_a_document_that_a_reviewer_refuses_is_not_put_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "factory.yaml"
    await asyncio.to_thread(path.write_text, GOOD)
    source = await asyncio.to_thread(specs.Source.from_file, path)
    before, reviewed = source.current, asyncio.Event()

    async def review(in_force: specs.Factory, new: specs.Factory) -> None:
        assert in_force is before
        if new.route("chat") is not None:
            reviewed.set()
            raise specs.InvalidConfiguration(["routes[talk]: is missed"], "factory.yaml")

    source.review(review)
    followed: asyncio.Queue[specs.Change] = asyncio.Queue()
    source.follow(followed.put_nowait)
    watching = asyncio.create_task(source.watch(interval_seconds=0.005))
    try:
        async with asyncio.timeout(10):
            await asyncio.to_thread(path.write_text, GOOD.replace("name: talk", "name: chat"))
            await reviewed.wait()
            await asyncio.to_thread(path.write_text, GOOD.replace("name: talk", "name: converse"))
            change = await followed.get()
    finally:
        watching.cancel()
    assert change.before is before
    assert source.current.route("converse") is not None
    assert "stays in force: factory.yaml: routes[talk]: is missed" in caplog.text


async def test_a_document_that_one_consumer_refuses_is_not_put_in_force_for_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "factory.yaml"
    await asyncio.to_thread(path.write_text, GOOD)
    source = await asyncio.to_thread(specs.Source.from_file, path)
    before = source.current

    def talking(factory: specs.Factory) -> specs.Route:
        if (route := factory.route("talk")) is None:
            raise specs.InvalidConfiguration(["routes: one must be called 'talk'"], str(path))
        return route

    first, second = source.derive(lambda factory: factory), source.derive(talking)
    heard: asyncio.Queue[specs.Change] = asyncio.Queue()
    source.follow(heard.put_nowait)
    watching = asyncio.create_task(source.watch(interval_seconds=0.005))
    try:
        async with asyncio.timeout(10):
            await asyncio.to_thread(path.write_text, GOOD.replace("name: talk", "name: chat"))
            while not caplog.records:  # noqa: ASYNC110  # the watcher under test polls as well
                await asyncio.sleep(0.005)
            assert f"stays in force: {path}: routes: one must be called 'talk'" in caplog.text
            assert (source.current, first.current, heard.empty()) == (before, before, True)
            assert second.current is before.route("talk")
            renamed = GOOD.replace("name: big", "name: large").replace("[big", "[large")
            await asyncio.to_thread(path.write_text, renamed)
            after = (await heard.get()).after
    finally:
        watching.cancel()
    assert after.model("large") is not None
    assert (source.current, first.current, second.current) == (after, after, after.route("talk"))


async def test_an_exception_of_a_consumer_refuses_one_document_and_the_next_is_put_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "factory.yaml"
    await asyncio.to_thread(path.write_text, GOOD)
    source = await asyncio.to_thread(specs.Source.from_file, path)
    talk = source.derive(lambda factory: {route.name: route for route in factory.routes}["talk"])
    heard: asyncio.Queue[specs.Change] = asyncio.Queue()
    source.follow(heard.put_nowait)
    watching = asyncio.create_task(source.watch(interval_seconds=0.005))
    try:
        async with asyncio.timeout(10):
            await asyncio.to_thread(path.write_text, GOOD.replace("name: talk", "name: chat"))
            while not caplog.records:  # noqa: ASYNC110  # the watcher under test polls as well
                await asyncio.sleep(0.005)
            assert caplog.records[-1].getMessage() == "factory.yaml cannot be followed"
            assert (metric("refused"), source.current.route("chat"), heard.empty()) == (1, None, True)
            await asyncio.to_thread(
                path.write_text, GOOD.replace("name: talk, task: chat", "name: talk, task: chat, passages: 9")
            )
            await heard.get()
    finally:
        watching.cancel()
    assert (talk.current.passages, metric("refused")) == (9, 0)


def test_a_consumer_that_refuses_the_document_in_force_raises_at_once() -> None:
    source = specs.Source(specs.parse(GOOD))

    def make(_: specs.Factory) -> None:
        raise specs.InvalidConfiguration(["prompts[0].system: no template"], "factory.yaml")

    with pytest.raises(specs.InvalidConfiguration) as raised:
        source.derive(make)
    assert raised.value.field == "prompts[0].system"
