"""Every question that README, docs, banner, charts, help and samples show is answered right by `make run`."""

from __future__ import annotations

from pathlib import Path

import httpx

from genaifactory_local import testing
from tests.journey import shown
from tests.journey.facts import FACTS, Fact

ROOT = Path(__file__).parents[2]


def _shown_questions() -> dict[str, str]:
    """Each question with the first file that shows it."""
    found: dict[str, str] = {}
    for file in filter(Path.is_file, shown.question_files(ROOT)):
        for question in shown.questions(file.read_text(encoding="utf-8")):
            found.setdefault(question, file.relative_to(ROOT).as_posix())
    return found


SHOWN = _shown_questions()


def test_every_shown_question_has_a_fact_in_the_table() -> None:
    missing = [f"{file} shows {question!r}" for question, file in SHOWN.items() if question not in FACTS]
    assert not missing, (
        f"{'; '.join(missing)}: add to FACTS in tests/journey/facts.py the document that answers it on a fresh "
        "`make run` and words of the right answer, or show a question that the sample handbook answers"
    )


async def test_every_shown_question_is_answered_right_on_a_fresh_run(tmp_path: Path) -> None:
    wrong: list[str] = []
    async with (
        testing.started(tmp_path / "state") as process,
        httpx.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {process.platform.key}"}) as client,
    ):
        for question, fact in FACTS.items():
            body = {"model": "rag", "messages": [{"role": "user", "content": question}]}
            response = await client.post(f"{process.platform.openai_url}/chat/completions", json=body)
            response.raise_for_status()
            wrong += _mistakes(question, fact, response.json()["choices"][0]["message"])
    assert not wrong, "\n".join(wrong)


def _mistakes(question: str, fact: Fact, message: dict[str, object]) -> list[str]:
    annotations = message["annotations"]
    assert isinstance(annotations, list)
    cited = {note["url_citation"]["document_id"] for note in annotations if note["type"] == "url_citation"}
    mistakes = []
    if fact.words not in str(message["content"]):
        mistakes.append(f"{question!r}: the answer must hold {fact.words!r}; it is: {message['content']}")
    if question in str(message["content"]):
        mistakes.append(f"{question!r}: the answer quotes the question from an example: {message['content']}")
    if fact.document not in cited:
        mistakes.append(f"{question!r}: the answer must cite {fact.document}; it cites {sorted(cited) or 'nothing'}")
    return mistakes


def test_the_questions_of_readme_and_banner_are_found() -> None:
    assert {file for file in SHOWN.values() if file == "README.md"}, "README shows no question that is recognised"
    assert "What must I do when I lose my hardware key?" in SHOWN
    assert "Pin của cảm biến Lúa 3 dùng được bao lâu?" in SHOWN
