"""Embeddings of texts by the platform's model, each text once: what a killed attempt has stored is not asked again."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genaifactory_common.errors import InvalidArgument

FILE = "embeddings.sqlite"
# About a second of MiniLM on one core: so much is lost with a killed attempt.
_BATCH_TEXTS = 64
# Models of embeddings read some hundred tokens; a batch stays far below the bound of one call.
_MOST_CHARACTERS = 10_000


class Embedder(Protocol):
    """Embeds texts."""

    async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
        """A vector for each text. texts: 1 to conversation.MAX_TEXTS, none empty. Raises FactoryError."""
        ...


async def of(
    texts: Iterable[str], embedder: Embedder, model: str, folder: Path, report: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    """The vector of each text, from the folder's file where it is known.

    report: called with how many are done. Raises FactoryError; InvalidArgument for vectors of different lengths.
    """
    wanted = {_key(text): text for text in texts}
    with closing(await asyncio.to_thread(_opened, folder / FILE)) as store:
        known = await asyncio.to_thread(_stored, store)
        missing = [key for key in wanted if key not in known]
        for start in range(0, len(missing), _BATCH_TEXTS):
            keys = missing[start : start + _BATCH_TEXTS]
            vectors = await embedder.embed([wanted[key][:_MOST_CHARACTERS] for key in keys], model)
            found = {key: np.array(vector, np.float32) for key, vector in zip(keys, vectors, strict=True)}
            await asyncio.to_thread(_store, store, found)
            known |= found
            report(len(wanted) - len(missing) + start + len(keys))
    if len(lengths := {len(known[key]) for key in wanted}) > 1:
        raise InvalidArgument(f"The model '{model}' returned vectors of {len(lengths)} lengths.", field="model")
    return {text: known[key] for key, text in wanted.items()}


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _opened(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, check_same_thread=False)
    store.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
    return store


def _stored(store: sqlite3.Connection) -> dict[bytes, NDArray[np.float32]]:
    return {key: np.frombuffer(vector, np.float32) for key, vector in store.execute("SELECT text, vector FROM vectors")}


def _store(store: sqlite3.Connection, vectors: dict[bytes, NDArray[np.float32]]) -> None:
    with store:
        store.executemany("INSERT INTO vectors VALUES (?, ?)", [(key, each.tobytes()) for key, each in vectors.items()])
