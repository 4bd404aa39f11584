"""Embeddings through the served model server, with the real MiniLM."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common.channels import stream, unary
from genaifactory_common.engine_specs import Extractive, MiniLM
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_modelserver.engines.minilm import MiniLMEngine
from tests.unit.modelserver.conftest import Serve


async def test_texts_are_embedded_in_order_as_unit_vectors_and_their_tokens_counted(serve: Serve) -> None:
    texts = [f"text number {i}" for i in range(18)] + [
        "The cat sat on the mat.",
        "A cat is sitting on a mat.",
        "x " * 5000,
    ]
    async with serve(Extractive(), MiniLM()) as stub:
        request = modelserver_pb2.EmbedRequest(model="minilm", texts=texts)
        response = await unary(stub.Embed, request, timeout_seconds=60)
        alone = await unary(
            stub.Embed, modelserver_pb2.EmbedRequest(model="minilm", texts=texts[18:19]), timeout_seconds=60
        )
        listed = await unary(stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=5)
        generate = modelserver_pb2.GenerateRequest(model="minilm", prompt="hello")
        with pytest.raises(InvalidArgument) as raised:
            await anext(stream(stub.Generate, generate, timeout_seconds=5))
    vectors = np.array([embedding.values for embedding in response.embeddings])
    assert vectors.shape == (21, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[18] @ vectors[19] > 0.8 > 0.5 > vectors[18] @ vectors[0]
    assert np.allclose(vectors[18], alone.embeddings[0].values, atol=1e-5)
    assert alone.usage.prompt_tokens == 9  # the cat sat on the mat . and two marks
    assert response.usage.prompt_tokens > 256  # of the longest text only 256 are read
    assert response.usage.prompt_tokens < 400
    model = next(m for m in listed.models if m.name == "minilm")
    assert (model.capability, model.embedding_dimensions) == (modelserver_pb2.CAPABILITY_EMBED, 384)
    assert raised.value.field == "model"


async def test_a_cancelled_embedding_stops_after_the_texts_in_hand(tmp_path: Path) -> None:
    engine = MiniLMEngine(MiniLM(), tmp_path)
    await engine.open()
    try:
        task = asyncio.create_task(engine.embed("minilm", ["long text " * 120] * 2000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):  # 2,000 texts would take minutes
            assert (await engine.embed("minilm", ["next"])).prompt_tokens == 3
    finally:
        await engine.close()
    assert not engine.ready()
    with pytest.raises(Unavailable):
        await engine.embed("minilm", ["late"])


async def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    await asyncio.to_thread(in_the_way.write_text, "not a folder")
    engine = MiniLMEngine(MiniLM(), in_the_way / "cache")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        await engine.open()
    await engine.close()
