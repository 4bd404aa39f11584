"""MiniLM: vectors close to the original model's, independent of other texts."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from genaifactory_common import minilm
from genaifactory_common.minilm import MiniLM

if TYPE_CHECKING:
    from tokenizers import Encoding


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("minilm")


@pytest.fixture(scope="module")
def model(cache_dir: Path) -> MiniLM:
    return MiniLM(cache_dir)


def test_vectors_are_of_unit_length_and_in_order(model: MiniLM) -> None:
    vectors = model.embed(["a cat sleeps", "x", "the stock market fell today " * 40])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[1], model.embed(["x"])[0])


def test_no_texts_give_no_vectors(model: MiniLM) -> None:
    assert model.embed([]).shape == (0, 384)


def test_an_empty_text_has_a_vector(model: MiniLM) -> None:
    assert np.isfinite(model.embed([""])).all()


def test_quantisation_keeps_the_original_models_vectors(model: MiniLM) -> None:
    """The reference computes the same architecture in numpy with the original weights, in 32-bit floats."""
    texts = ["How do I partition a disk for Debian?", "Máy tính của tôi không khởi động được từ đĩa USB.", "ok"]
    got = model.embed(texts)
    cosines = [float(vector @ _reference(model, text)) for vector, text in zip(got, texts, strict=True)]
    assert min(cosines[:2]) > 0.985
    assert cosines[2] > 0.95  # with one token, rounding errors do not average out


def test_sentences_that_mean_the_same_are_closer(model: MiniLM) -> None:
    query, near, far = model.embed(
        ["How do I restart the computer?", "The machine reboots when you press the button.", "Rice grows in the delta."]
    )
    assert query @ near > query @ far + 0.2


def test_text_beyond_the_limit_is_ignored(model: MiniLM) -> None:
    long = "disk " * 300
    first, second = model.embed([long + "alpha", long + "beta"])
    assert np.array_equal(first, second)


def test_tokens_read_counts_up_to_the_limit(model: MiniLM) -> None:
    assert [model.tokens_read(text) for text in ("", "disk", "disk " * 300)] == [2, 3, 256]


def test_the_tokenizer_does_not_get_text_beyond_the_limit(model: MiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer holds the interpreter's lock: a text of megabytes would stall every other request."""
    seen: list[int] = []
    whole = model._tokenizer

    class Watched:
        def encode(self, text: str) -> Encoding:
            seen.append(len(text))
            return whole.encode(text)

    monkeypatch.setattr(model, "_tokenizer", Watched())
    long = "disk " * 300_000
    assert np.array_equal(model.embed([long]), model.embed(["disk " * 300]))
    assert model.tokens_read(long) == 256
    assert max(seen) <= 32_768


def test_token_offsets_are_code_points_of_the_text(model: MiniLM) -> None:
    text = "Đĩa cứng 😀 partition"
    offsets = model.token_offsets(text)
    assert text[offsets[0][0] : offsets[0][1]].startswith("Đ")
    assert text[offsets[-1][0] : offsets[-1][1]] == "partition"


def test_threads_share_one_model(model: MiniLM) -> None:
    expected = model.embed(["alpha", "beta"])
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = model.embed(["alpha", "beta"])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(vectors, expected) for vectors in results.values())


def test_services_of_one_process_share_the_model(cache_dir: Path) -> None:
    assert minilm.load(cache_dir) is minilm.load(cache_dir)


def test_the_graph_is_built_once_and_no_temporary_file_is_left(cache_dir: Path, model: MiniLM) -> None:
    def found() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()}

    before = found()
    assert sorted(name.rpartition(".")[2] for name in before) == ["crc32", "onnx"]
    MiniLM(cache_dir)
    assert found() == before


@pytest.mark.parametrize("harm", ["cut in half", "a word of the weights", "a checksum of nonsense"])
def test_a_damaged_graph_is_built_again(
    harm: str, model: MiniLM, cache_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(cache_dir, tmp_path / "cache")
    (graph,) = (tmp_path / "cache").glob("*.onnx")
    whole = graph.read_bytes()
    match harm:
        case "cut in half":
            os.truncate(graph, len(whole) // 2)
        case "a word of the weights":
            graph.write_bytes(whole[: len(whole) // 2] + b"nonsense" + whole[len(whole) // 2 + 8 :])
        case _:
            graph.with_suffix(".crc32").write_bytes(b"\xff")
    assert np.array_equal(MiniLM(tmp_path / "cache").embed(["giờ làm việc"]), model.embed(["giờ làm việc"]))
    assert graph.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records] == [f"{graph} is damaged and is built again"]


def _reference(model: MiniLM, text: str) -> np.ndarray:
    from math import erf, sqrt

    from safetensors.numpy import load_file

    w = load_file(minilm._model_dir() / "model.safetensors")
    ids = [101, *model._tokenizer.encode(text, add_special_tokens=False).ids, 102]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(x * w[f"{name}.weight"] + w[f"{name}.bias"])

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    e = "embeddings."
    x = w[f"{e}word_embeddings.weight"][ids] + w[f"{e}position_embeddings.weight"][: len(ids)]
    x = norm(x + w[f"{e}token_type_embeddings.weight"][0], f"{e}LayerNorm")
    gelu = np.vectorize(lambda v: v * 0.5 * (1 + erf(v / sqrt(2))))
    for i in range(6):
        at = f"encoder.layer.{i}.attention"
        q, k, v = (dense(x, f"{at}.self.{p}").reshape(-1, 12, 32).transpose(1, 0, 2) for p in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / sqrt(32)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(-1, 384)
        x = norm(x + dense(mixed, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        hidden = gelu(dense(x, f"encoder.layer.{i}.intermediate.dense"))
        x = norm(x + dense(hidden, f"encoder.layer.{i}.output.dense"), f"encoder.layer.{i}.output.LayerNorm")
    mean: np.ndarray = x.mean(0)
    return mean / float(np.linalg.norm(mean))
