"""A wrong factory.yaml or command is refused before anything starts; the error names the place and what is expected."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from genaifactory_local import cli, testing

SECRET = "AKIAQ7ZK3M5XN2WB8RTD"
KEYS = "keys: []"
MODEL = "  - name: extractive\n"
RAG = "  - name: rag\n    task: rag\n"
BASE = "knowledge_bases:\n  - name: documents\n"

Edit = tuple[str, str]
"""A text of the default factory.yaml, and its replacement."""


def key(**fields: str) -> Edit:
    """A key of the first tenant."""
    named = {"id": "alice", "sha256": f'"{"0" * 64}"', "role": "user"} | fields
    return KEYS, "keys: [{" + ", ".join(f"{name}: {value}" for name, value in named.items()) + "}]"


def model(text: str) -> Edit:
    """A model before the first."""
    return MODEL, f"  - {{{text}}}\n{MODEL}"


# An edit or a whole document; the paths of what is wrong; text of the message.
DOCUMENTS: dict[str, tuple[Edit | bytes, str, str]] = {
    "an empty file": (b"", "document", "must be a mapping"),
    "no UTF-8": (b"version: \xff", "document", "UTF-8"),
    "no YAML": (("version: 1", "version: [1"), "line 10, column 1", "not YAML"),
    "a tab": (("    limits:", "\tlimits:"), "line 12, column 1", "\\t"),
    "a name twice": (("version: 1", "version: 1\nversion: 1"), "line 7, column 1", "appears twice"),
    "another version": (("version: 1", "version: 2"), "version", "should be 1"),
    "a misspelt part": (("\nroutes:", "\nroute:"), "routes, route", "unknown field"),
    "a misspelt field": (("passages: 5", "passage: 5"), "routes[0].passage", "unknown field"),
    "a tenant in capitals": (("- name: dev", "- name: Dev Team"), "tenants[0].name", "a-z0-9"),
    "no requests at all":
        (("requests_per_minute: 6000", "requests_per_minute: 0"),
         "tenants[0].limits.requests_per_minute", "greater than or equal to 1"),
    "a key instead of its hash": (key(sha256="gf-my-own-key"), "tenants[0].keys[0].sha256", "[0-9a-f]{64}"),
    "a key with a role that is not there": (key(role="boss"), "tenants[0].keys[0].role", "known: admin, user"),
    "an unknown permission":
        (("[chat, embed, models, feedback]", "[chat, write]"), "roles[0].permissions[1]", "'chat', 'embed'"),
    "a role for a route that is not there":
        (("[chat, embed, models, feedback]", "[chat]\n    routes: [poetry]"),
         "roles[0].routes[0]", "known: chat, minilm, rag"),
    "a backend of another kind":
        (model("name: a, backend: {type: ollama}"), "models[0].backend", "'modelserver', 'openai'"),
    "an address that is none":
        (model("name: a, backend: {type: openai, base_url: llm.example.com, model: a}"),
         "models[0].backend.base_url", "URL"),
    "a key in the open":
        (model(f"name: a, backend: {{type: openai, base_url: 'https://a/v1', model: a, api_key: {SECRET}}}"),
         "models[0].backend.api_key", "unknown field"),
    "a price below nothing":
        ((MODEL, f"{MODEL}    price: {{input_per_million_tokens: -1}}\n"),
         "models[0].price.input_per_million_tokens", "greater than or equal to 0"),
    "a model twice":
        (model("name: minilm, backend: {model: extractive, type: modelserver}"), "models", "'minilm' appears twice"),
    "a route to a model that is not there":
        (("models: [extractive]", "models: [gpt]"),
         "routes[0].models[0]", "unknown chat model 'gpt'; known: extractive"),
    "a chat with an embedding model":
        (("models: [extractive]", "models: [minilm]"), "routes[0].models[0]", "known: extractive"),
    "a route without models": (("models: [extractive]", "models: []"), "routes[0].models", "at least 1"),
    "a rag without knowledge": (("    knowledge_base: documents\n", ""), "routes[0]", "needs knowledge_base"),
    "a rag without a prompt": (("    prompt: rag\n", ""), "routes[0]", "needs prompt"),
    "a prompt's version that is not there": (("prompt: rag", "prompt: rag@9"), "routes[0].prompt", "known: rag, rag@1"),
    "a policy that is not there": (("policy: default", "policy: lax"), "routes[0].policy", "known: default"),
    "a number in words": (("passages: 5", "passages: five"), "routes[0].passages", "valid integer"),
    "a share in percent":
        ((RAG, f"{RAG}    min_term_coverage: 34\n"), "routes[0].min_term_coverage", "less than or equal to 1"),
    "a template that does not end": (("{% endfor %}", ""), "prompts[0].system", "endfor"),
    "a template with an unknown name": (("{{ passage.title }}", "{{ company }}"), "prompts[0].system", "company"),
    "an overlap as long as a passage":
        ((BASE, f"{BASE}    chunk_overlap_tokens: 200\n"), "knowledge_bases[0]", "smaller than chunk_tokens"),
    "knowledge of a tenant that is not there":
        ((BASE, f"{BASE}    tenants: [acme]\n"), "knowledge_bases[0].tenants[0]", "known: dev"),
    "something that no guardrail finds": (("[SECRET]", "[SHOES]"), "policies[0].rules[0].entities[0]", "SECRET"),
    "another action": (("input: block", "input: deny"), "policies[0].rules[0].input", "'allow', 'mask' or 'block'"),
}  # fmt: skip

# {port}: one in use. Arguments; text of the error, which is one line.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "no file to check": (["config", "check", "nowhere.yaml"], "cannot be read: No such file"),
    "no such documents": (["run", "nowhere"], "nowhere does not exist"),
    "a picture for a document": (["run", "photo.jpg"], "documents end in .bash, .c, "),
    "a port that is none": (["run", "--port", "70000"], "--port (PORT) must be from 0 (any free one) to 65535"),
    "a port in use": (["run", "--port", "{port}"], "is in use by another program. Choose another: --port "),
    "a gRPC port in use": (
        ["run", "--port", "0", "--grpc-port", "{port}"],
        "is in use by another program. Choose another: --grpc-port ",
    ),
    "one port for both": (
        ["run", "--port", "8080", "--grpc-port", "8080"],
        "--port (PORT) and --grpc-port (GRPC_PORT) are both 8080; give each a port of its own",
    ),
    "an address of another machine": (["run", "--host", "192.0.2.1"], "192.0.2.1 is not an address of this machine"),
    "no such factory.yaml": (["run", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    "a factory.yaml that is no text": (["run", "--config", "photo.jpg"], "must be UTF-8 text"),
    "a factory.yaml that does not fit": (["run", "--config", "wrong.yaml"], "routes: must be a list"),
    "knowledge that is not there": (["run", "--knowledge-base", "wiki"], "there are: documents"),
    "a question without a platform": (["ask", "hello"], "Start one with: make run"),
    "an address without a key": (["ask", "hello", "--url", "http://127.0.0.1:{port}"], "GENAIFACTORY_API_KEY"),
    "metadata without a value": (["ingest", ".", "--metadata", "year"], "write NAME=VALUE"),
    "usage since a word": (["usage", "--since", "yesterday"], "an age like 24h or 7d"),
}  # fmt: skip


def _run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["genaifactory", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(("given", "paths", "says"), [pytest.param(*row, id=name) for name, row in DOCUMENTS.items()])
def test_a_wrong_factory_yaml_is_refused_with_the_path_of_the_wrong_field(
    given: Edit | bytes, paths: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "factory.yaml"
    if isinstance(given, tuple):
        default = testing.DEFAULT_FACTORY.read_text(encoding="utf-8")
        assert given[0] in default
        given = default.replace(*given, 1).encode()
    file.write_bytes(given)
    code = _run("config", "check", str(file))
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    lines = printed.err.splitlines()
    problems = [line.removeprefix(f"{file}: ").partition(": ") for line in lines]
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert ", ".join(path for path, _, _ in problems) == paths
    assert says in "; ".join(what for _, _, what in problems)
    for secret in (SECRET, "gf-my-own-key"):
        assert secret not in printed.err


@pytest.mark.parametrize(("arguments", "says"), [pytest.param(*row, id=name) for name, row in COMMANDS.items()])
def test_a_wrong_command_is_an_error_of_one_line_and_starts_nothing(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENAIFACTORY_API_KEY", raising=False)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "wrong.yaml").write_text("routes: 5\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = _run(*(argument.format(port=port) for argument in arguments))
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    (line,) = printed.err.splitlines()
    assert says in line
    assert not (tmp_path / ".genaifactory" / "data").exists()
