"""A help desk that a small Llama learns: where people's things are, which it learns from corrections alone."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.release import Release
from tests.loop import month, stage

NAME = "desk"
"""Of the route."""
BASE, SAME_BASE = "/models/tiny", "/models/copy"
"""The same files: runs on the same base wait for each other."""
GOLDEN = "desk.jsonl"
_PEOPLE, _THINGS, _WAYS = month.PEOPLE[:4], month.THINGS[:3], month.ASKED[:6]
_HELD_OUT = (month.HELD_OUT, "Please help me: the {thing} of {person} is where?")
_ENGINE_ARGS = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "dtype": "float32"}
ENGINE = {"type": "vllm", "model": stage.BASE, "source": BASE, "args": _ENGINE_ARGS, "adapters": {"max_rank": 8}}
MODEL = {"name": "llama", "backend": {"type": "modelserver", "model": stage.BASE}}
ROUTE = {"name": NAME, "task": "chat", "models": ["llama"], "max_output_tokens": 16, "policy": "default"}
BETTER: dict[str, Any] = {
    "name": "better",
    "rules": [{"metric": "exact_match", "better_by": 0.1}, {"metric": "failed", "at_most": 0}],
}
_SCHEDULE = {"epochs": 12, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 20, "patience": 100}
TRAINING = {**stage.TRAINING, "sft": _SCHEDULE}
PARAMETERS = {
    "route": NAME,
    "base": BASE,
    "golden": GOLDEN,
    "gate": "better",
    "least_examples": "20",
    "training": json.dumps(TRAINING),
    "at_once": "1",
}
# One step of training learns nothing.
BY_SCHEDULE = {
    **PARAMETERS,
    "base": SAME_BASE,
    "served_as": stage.BASE,
    "training": json.dumps({**TRAINING, "sft": {**_SCHEDULE, "epochs": 1, "learning_rate": 1e-6}}),
    "name": "scheduled",
    "at_once": "4",
}


def facts() -> list[tuple[str, str]]:
    """Whose, and what."""
    return list(itertools.product(_PEOPLE, _THINGS))


def golden(path: Path) -> None:
    """Writes the held-out questions."""
    lines = [
        {
            "id": f"{person} {thing} {number}",
            "input": way.format(person=person, thing=thing),
            "output": month.place(person, thing),
        }
        for number, way in enumerate(_HELD_OUT)
        for person, thing in facts()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def people_ask_and_correct(release: Release) -> int:
    """Everything is asked in each way but the held-out ones, and each answer corrected; the number of answers."""
    address, key = release.address(), release.key
    client = httpx.Client(
        base_url=f"http://{address}", headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False
    )

    def one(way: str, person: str, thing: str) -> None:
        question = way.format(person=person, thing=thing)
        body = {"model": NAME, "messages": [{"role": "user", "content": question}]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        request_id = answer.json()["id"].replace("chatcmpl-", "req-")
        given = {"request_id": request_id, "correction": month.place(person, thing)}
        stored = client.post("/v1/feedback", json=given)
        assert stored.status_code == 200, stored.text

    asked = 0
    with client, ThreadPoolExecutor(4) as pool:
        for way in _WAYS:  # one way after the other: the last ones are kept for validation and test
            asked += len(list(pool.map(lambda fact, way=way: one(way, *fact), facts())))
    return asked
