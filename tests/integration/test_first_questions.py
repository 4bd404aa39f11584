"""Questions after those of the README: with an e-mail address, repeated, small talk, overviews, unanswerable ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from genaifactory_local import testing
from genaifactory_local.testing import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Asker:
    """Asks as a person does: through HTTP, and with `genaifactory ask`."""

    def __init__(self, platform: Platform, client: httpx.AsyncClient) -> None:
        self._platform = platform
        self._client = client

    async def post(self, question: str, **headers: str) -> httpx.Response:
        body = {"model": "rag", "messages": [{"role": "user", "content": question}]}
        response = await self._client.post("/chat/completions", json=body, headers=headers)
        response.raise_for_status()
        return response

    async def message(self, question: str) -> tuple[str, set[str]]:
        """The answer and the documents that it cites."""
        message: dict[str, Any] = (await self.post(question)).json()["choices"][0]["message"]
        return message["content"], {note["url_citation"]["document_id"] for note in message["annotations"]}

    async def ask(self, question: str, *options: str) -> tuple[str, str]:
        """What the command prints on stdout and stderr."""
        url, key = self._platform.endpoints.http_url, self._platform.key
        code, out, errors = await testing.genaifactory("ask", question, *options, "--url", url, "--key", key)
        assert code == 0, errors
        return out, errors


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asker(shared_platform: Platform) -> AsyncIterator[Asker]:
    headers = {"Authorization": f"Bearer {shared_platform.key}"}
    client = await asyncio.to_thread(
        lambda: httpx.AsyncClient(base_url=shared_platform.openai_url, headers=headers, timeout=30)
    )
    async with client:
        yield Asker(shared_platform, client)


async def test_an_address_in_a_question_is_masked_and_the_question_is_answered(asker: Asker) -> None:
    response = await asker.post("My mail is anna@example.com, how many days of annual leave do I have?")
    completion = response.json()
    assert "16 days" in completion["choices"][0]["message"]["content"]
    assert response.headers["x-genaifactory-masked"] == "EMAIL_ADDRESS=1"
    assert completion["masked"] == [{"entity_type": "EMAIL_ADDRESS", "count": 1}]
    assert "anna" not in response.text
    assert "anna" not in str(response.headers)
    answer, _ = await asker.message("Email của tôi là anna@example.com, mỗi năm tôi có bao nhiêu ngày nghỉ phép?")
    assert "16 ngày" in answer
    answer, cited = await asker.message("My mail is anna@example.com, who won the world cup?")
    assert not cited, answer
    out, errors = await asker.ask("I am anna@example.com. How long is the warranty of a gateway?")
    assert "24 months" in out
    assert errors == "A guardrail masked in your question: EMAIL_ADDRESS. It was not sent to a model.\n"


async def test_the_same_question_is_cached_unless_the_cache_is_bypassed(asker: Asker) -> None:
    question = "How long is the warranty of a gateway?"
    responses = [
        await asker.post(question),
        await asker.post(question),
        await asker.post(question, **{"Cache-Control": "no-cache"}),
    ]
    assert [each.headers["x-genaifactory-cache"] for each in responses] == ["miss", "hit", "bypass"]
    assert [each.json()["cache"] for each in responses] == ["miss", "hit", "bypass"]
    assert len({each.json()["choices"][0]["message"]["content"] for each in responses}) == 1
    for options, use in (((), "hit"), (("--fresh",), "bypass")):
        out, errors = await asker.ask(question, "--json", *options)
        assert f'"cache": "{use}"' in out
        assert not errors


async def test_small_talk_is_answered_in_its_language_with_subjects_of_the_documents(asker: Asker) -> None:
    for message, begins, names in (
        ("hello", "Hello!", '"Leave"'),
        ("what can I ask?", "Ask whatever", '"IT security"'),
        ("xin chào", "Xin chào!", '"Nghỉ phép"'),
        ("thanks", "You are welcome.", ""),
    ):
        answer, cited = await asker.message(message)
        assert answer.startswith(begins)
        assert names in answer
        assert not cited
    answer, _ = await asker.message("hello, how many days of annual leave do I have?")
    assert "16 days" in answer


async def test_an_overview_shows_headings_and_first_sentences_and_cites_them(asker: Asker) -> None:
    answer, cited = await asker.message("summarise the handbook")
    assert cited == {f"sample/{name}.md" for name in ("leave", "it-security", "expenses", "products")}
    assert "Sick leave" in answer
    answer, cited = await asker.message("summarise leave")
    assert cited == {"sample/leave.md"}
    assert "- Annual leave: Every full-time employee has 16 days of paid annual leave a year. [2]" in answer
    assert answer.splitlines()[1].startswith("- Sao Mai handbook")
    answer, cited = await asker.message("tóm tắt sổ tay")
    assert cited == {f"sample/{name}.md" for name in ("nghi-phep", "bao-mat", "cong-tac-phi", "san-pham")}
    assert "Nghỉ ốm" in answer


ANSWERABLE = {
    "What must I do if I lost my hardware key?": "within one hour",
    "What must I do when I am sick?": "Call your manager before 9:30",
    "What should I do when I suspect an incident?": "calls the IT desk at once",
    "What happens to leave days that I do not take?": "carried over",
    "Where must passwords be kept?": "password manager",
    "What must I do with my laptop when I travel?": "stay with their owner",
    "What happens when the network is down?": "30 days of measurements",
    "How long does maternity leave last?": "six months",
    "When must I take the days that I carried over?": "before 31 March",
    "Tôi phải làm gì khi làm mất khóa phần cứng?": "trong vòng một giờ",
    "Tôi phải làm gì khi bị ốm?": "trước 9 giờ 30",
    "Khi nghi ngờ có sự cố thì tôi phải làm gì?": "gọi ngay cho bộ phận IT",
    "toi phai lam gi khi bi mat khoa phan cung?": "trong vòng một giờ",
}
UNANSWERABLE = (
    "What must I do when I lose my passport?",
    "What must I do when my car breaks down?",
    "What must I do when I want a pay rise?",
    "What do I do when I lose weight?",
    "What must I do if there is a fire?",
    "How do I renew my driving licence?",
    "Who is the CEO of Sao Mai?",
    "What is the price of the Lua 3?",
    "Tôi phải làm gì khi mất hộ chiếu?",
    "Tôi phải làm gì khi xe bị hỏng?",
    "Khi cháy nhà thì phải làm gì?",
    "Công ty thành lập năm nào?",
)


async def test_questions_with_conditions_are_answered_where_the_handbook_does_and_refused_elsewhere(
    asker: Asker,
) -> None:
    wrong = []
    for question, words in ANSWERABLE.items():
        answer, cited = await asker.message(question)
        if words not in answer or not cited:
            wrong.append(f"{question} -> {answer}")
    for question in UNANSWERABLE:
        answer, cited = await asker.message(question)
        if cited:
            wrong.append(f"{question} -> {answer}")
    assert not wrong, "\n".join(wrong)
