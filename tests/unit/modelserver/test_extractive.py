"""The extractive engine: what it quotes, when it does not know, and how it obeys sampling."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaifactory_common.engine_specs import Extractive as ExtractiveSpec
from genaifactory_common.errors import ContextTooLong, InvalidArgument
from genaifactory_modelserver.engines.extractive import sentences
from genaifactory_modelserver.engines.extractive.answering import Reader
from genaifactory_modelserver.engines.extractive.engine import TOKENS_PER_STEP, Extractive
from genaifactory_modelserver.engines.extractive.question import Question
from genaifactory_modelserver.engines.protocol import (
    FinishReason,
    Generation,
    GroundingPassage,
    Message,
    OutputFormat,
    Role,
    Sampling,
    Tool,
    ToolChoice,
)
from tests.unit.modelserver.conftest import Answered, Ask

Documents = tuple[GroundingPassage, ...]

UNKNOWN_VI = "Tôi không biết"
UNKNOWN_EN = "I do not know"


def quotes(answer: str) -> list[tuple[str, int]]:
    """Quoted texts and their numbers; the lead-in of a foreign answer and list bullets of ours are taken off."""
    body = answer.partition(":\n\n")[2] or answer
    return [
        (text.strip().removeprefix("- "), int(number))
        for text, number in re.findall(r"(.+?)\s\[(\d+)\]", body, re.DOTALL)
    ]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("question", "sentence", "number"),
    [
        ("Thời gian bảo hành bao lâu?", "Thời gian bảo hành là 24 tháng kể từ ngày mua hàng.", 1),
        ("thoi gian bao hanh bao lau", "Thời gian bảo hành là 24 tháng kể từ ngày mua hàng.", 1),
        ("Pin được bảo hành mấy tháng?", "Pin và phụ kiện được bảo hành 6 tháng.", 1),
        ("Nhân viên được nghỉ phép bao nhiêu ngày mỗi năm?", "Nhân viên chính thức có 12 ngày phép mỗi năm.", 3),
        ("Hoàn tiền mất bao lâu?", "Tiền được hoàn vào tài khoản ngân hàng sau 3 đến 5 ngày làm việc.", 2),
        ("Giờ làm việc là gì?", "Giờ làm việc từ 8 giờ đến 17 giờ 30, thứ Hai đến thứ Sáu.", 3),
        ("Làm sao để xin nghỉ phép?", "Đơn xin nghỉ phép gửi cho quản lý trực tiếp trước ít nhất 3 ngày.", 3),
        ("Phí vận chuyển ai chịu?", "Phí vận chuyển khi đổi trả do công ty chịu.", 2),
    ],
)
async def test_a_vietnamese_question_is_answered_with_the_sentence_that_says_it(
    extractive: Answered, vietnamese: Documents, question: str, sentence: str, number: int
) -> None:
    answer, last = await extractive(question, documents=vietnamese)
    assert (sentence, number) in quotes(answer)
    assert last.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("question", "sentence", "number"),
    [
        ("How much memory do I need on AMD64?", "You need at least 512 MB of memory for a desktop installation", 1),
        ("How long is the warranty?", "The warranty period is 24 months from the date of purchase.", 2),
        ("Which batteries are covered?", "Batteries are covered for 6 months only.", 2),
        ("How do I claim the warranty?", "Send the product with the invoice to our service centre.", 2),
        ("What is the price of the Team plan?", "Team | $25 a month", 2),
        ("Which password does the installer ask for?", "The installer asks for a root password.", 1),
        ("How do I install it?", "1. Download the image from the mirror. 2. Write it to a USB stick.", 1),
        ("What free disk space must I have?", "The disk must have 10 GB of free space.", 1),
    ],
)
async def test_an_english_question_is_answered_with_the_sentence_that_says_it(
    extractive: Answered, english: Documents, question: str, sentence: str, number: int
) -> None:
    answer, _ = await extractive(question, documents=english)
    assert any(sentence in flat(text) and number == n for text, n in quotes(answer)), answer


@pytest.mark.parametrize(
    "question",
    [
        "Ai là giám đốc công ty?",
        "Giá cổ phiếu hôm nay?",
        "Nghỉ thai sản được mấy tháng?",
        "Bảo hiểm y tế đóng thế nào?",
    ],
)
async def test_it_says_in_vietnamese_that_it_does_not_know(
    extractive: Answered, vietnamese: Documents, question: str
) -> None:
    answer, _ = await extractive(question, documents=vietnamese)
    assert answer.startswith(UNKNOWN_VI)


@pytest.mark.parametrize(
    "question", ["Who won the world cup?", "What is the price of Bitcoin?", "Does it run on RISC-V?", "hello"]
)
async def test_it_says_in_english_that_it_does_not_know(
    extractive: Answered, english: Documents, question: str
) -> None:
    answer, _ = await extractive(question, documents=english)
    assert answer.startswith(UNKNOWN_EN)


LOST_KEY = "A lost hardware key is reported to the IT desk within one hour."
SECURITY = GroundingPassage(
    f"Passwords have at least 14 characters. {LOST_KEY}\n\n"
    "Anybody who suspects an incident calls the IT desk at once. Days that are not taken are lost.",
    title="IT security",
    language="en",
)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (
            "What must I do when I lose my hardware key?",
            "A lost hardware key is reported to the IT desk within one hour.",
        ),
        (
            "If I should lose the hardware key, what happens?",
            "A lost hardware key is reported to the IT desk within one hour.",
        ),
        ("What must I do when I suspect an incident?", "Anybody who suspects an incident calls the IT desk at once."),
        ("What happens to days that I do not take?", "Days that are not taken are lost."),
    ],
)
async def test_a_question_with_a_condition_is_answered_with_the_sentence_on_that_condition(
    extractive: Answered, question: str, sentence: str
) -> None:
    answer, _ = await extractive(question, documents=(SECURITY,))
    assert quotes(answer) == [(sentence, 1)]


@pytest.mark.parametrize(
    "question", ["What must I do when I lose my passport?", "What must I do when my car breaks down?"]
)
async def test_a_condition_that_no_document_speaks_of_is_not_known(extractive: Answered, question: str) -> None:
    answer, _ = await extractive(question, documents=(SECURITY,))
    assert answer.startswith(UNKNOWN_EN)


ANNUAL_LEAVE = GroundingPassage(
    "Every employee has 16 days of paid annual leave. Requests for leave go to the manager.\n\n"
    "The warehouse opens at 7. Forklift drivers renew their licence at the depot.",
    title="Staff handbook",
    language="en",
)


@pytest.mark.parametrize(
    "question",
    [
        "How many days of annual leave do I have? (143)",
        "[143] How many days of annual leave do I have?",
        "annual leave (143)",
        "How many days of paid annual leave do I have in 2019?",
        "143: how many days of annual leave has an employee?",
    ],
)
async def test_a_number_beside_the_question_does_not_sink_its_answer(
    extractive: Answered, english: Documents, question: str
) -> None:
    answer, _ = await extractive(question, documents=(ANNUAL_LEAVE, *english))
    assert ("Every employee has 16 days of paid annual leave.", 1) in quotes(answer)


async def test_an_example_that_shows_the_question_is_not_quoted_as_its_answer(extractive: Answered) -> None:
    question = "How many days of annual leave do I have?"
    example = GroundingPassage(
        f'model = ChatOpenAI(model="rag")\nquestion = "{question}"\nprint(model.invoke(question))'
    )
    answer, _ = await extractive(question, documents=(example, ANNUAL_LEAVE))
    assert quotes(answer) == [("Every employee has 16 days of paid annual leave.", 2)]
    answer, _ = await extractive(question, documents=(example,))
    assert answer.startswith(UNKNOWN_EN)


async def test_what_a_guardrail_masked_in_the_question_does_not_sink_its_answer(extractive: Answered) -> None:
    question = "My mail is <EMAIL_ADDRESS>, how many days of annual leave do I have?"
    answer, _ = await extractive(question, documents=(ANNUAL_LEAVE,))
    assert ("Every employee has 16 days of paid annual leave.", 1) in quotes(answer)


async def test_a_number_beside_a_vietnamese_question_does_not_sink_its_answer(
    extractive: Answered, vietnamese: Documents
) -> None:
    answer, _ = await extractive("Thời gian bảo hành bao lâu? (143)", documents=vietnamese)
    assert ("Thời gian bảo hành là 24 tháng kể từ ngày mua hàng.", 1) in quotes(answer)


@pytest.mark.parametrize(
    "question",
    [
        "annual leave 2019",  # little else than the year that no document speaks of
        "Does section 12 allow annual leave?",
        "How many days of annual leave have interns of Sao Mai 143?",
        "What does leave(77) return?",
        "Who is the CEO? (143)",
        "(143)",
    ],
)
async def test_a_missing_number_that_the_question_is_about_is_still_not_known(
    extractive: Answered, english: Documents, question: str
) -> None:
    answer, _ = await extractive(question, documents=(ANNUAL_LEAVE, *english))
    assert answer.startswith(UNKNOWN_EN)


async def test_every_quote_is_word_for_word_in_the_passage_that_it_names(
    extractive: Answered, vietnamese: Documents, english: Documents
) -> None:
    documents = vietnamese + english
    asked = [
        "Hồ sơ bảo hành gồm những gì?",
        "thời hạn bảo hành pin",
        "warranty for batteries",
        "how to install",
        "price",
    ]
    found = 0
    for question in asked:
        answer, _ = await extractive(question, documents=documents)
        for text, number in quotes(answer):
            assert flat(text) in flat(documents[number - 1].text)
            found += 1
    assert found >= len(asked)


async def test_a_list_is_quoted_whole_with_its_lead_in(extractive: Answered, vietnamese: Documents) -> None:
    answer, _ = await extractive("Hồ sơ bảo hành gồm những gì?", documents=vietnamese)
    assert answer == "Hồ sơ bảo hành gồm có:\n- Hóa đơn mua hàng\n- Phiếu bảo hành\n- Giấy tờ tùy thân [1]"


async def test_foreign_documents_are_quoted_after_a_sentence_in_the_questions_language(
    extractive: Answered, english: Documents, vietnamese: Documents
) -> None:
    answer, _ = await extractive("Cần bao nhiêu RAM để cài trên ARM?", documents=english)
    assert answer.startswith("Các đoạn liên quan, trích nguyên văn bằng ngôn ngữ của tài liệu:")
    assert quotes(answer) == [("On ARM, 256 MB of memory is enough.", 1)]
    vpn = GroundingPassage("Nhân viên kết nối VPN bằng mã OTP do phòng kỹ thuật cấp.", language="vi")
    answer, _ = await extractive("How do I connect to the VPN?", documents=(*vietnamese, vpn))
    assert answer.startswith("The passages that bear on the question, word for word in the language of their document:")
    assert quotes(answer) == [(vpn.text, 4)]


async def test_a_foreign_quote_says_nothing_of_the_language_of_other_documents(
    extractive: Answered, english: Documents, vietnamese: Documents
) -> None:
    answer, _ = await extractive("Cài trên ARM cần những gì?", documents=(*vietnamese, *english))
    lead_in = answer.partition(":\n\n")[0]
    assert lead_in == "Các đoạn liên quan, trích nguyên văn bằng ngôn ngữ của tài liệu"


async def test_a_foreign_document_that_shares_no_name_is_not_quoted(extractive: Answered, english: Documents) -> None:
    answer, _ = await extractive("Nhiệt độ sôi của nước là bao nhiêu?", documents=english)
    assert answer.startswith(UNKNOWN_VI)


async def test_documents_in_the_questions_language_go_before_foreign_ones(
    extractive: Answered, english: Documents, vietnamese: Documents
) -> None:
    answer, _ = await extractive("Warranty for batteries?", documents=vietnamese + english)
    assert {number for _, number in quotes(answer)} == {5}


async def test_a_name_that_no_document_holds_is_not_answered_with_what_is_said_of_another(extractive: Answered) -> None:
    english = GroundingPassage("Sao Mai makes sensors. The address of Sao Mai is 1 Main Street.", title="About Sao Mai")
    vietnamese = GroundingPassage("Sao Mai sản xuất cảm biến nông nghiệp.", title="Giới thiệu Sao Mai")
    for documents in ((english,), (vietnamese, english)):
        answer, _ = await extractive("Who is the CEO of Sao Mai?", documents=documents)
        assert answer.startswith(UNKNOWN_EN)


async def test_a_follow_up_takes_its_matter_from_the_turn_before(
    extractive: Answered, english: Documents, vietnamese: Documents
) -> None:
    answer, _ = await extractive("How much memory do I need on AMD64?", "512 MB", "and for ARM?", documents=english)
    assert quotes(answer)[0] == ("On ARM, 256 MB of memory is enough.", 1)
    answer, _ = await extractive("Thời gian bảo hành bao lâu?", "24 tháng", "còn pin thì sao?", documents=vietnamese)
    assert ("Pin và phụ kiện được bảo hành 6 tháng.", 1) in quotes(answer)


async def test_a_follow_up_about_something_unknown_is_not_answered_by_the_turn_before(
    extractive: Answered, english: Documents
) -> None:
    answer, _ = await extractive("How much memory do I need on AMD64?", "512 MB", "and for SPARC?", documents=english)
    assert answer.startswith(UNKNOWN_EN)


async def test_a_new_question_owes_nothing_to_the_turn_before(extractive: Answered, english: Documents) -> None:
    answer, _ = await extractive(
        "How much memory do I need on AMD64?", "512 MB", "How long is the warranty period?", documents=english
    )
    assert quotes(answer) == [("The warranty period is 24 months from the date of purchase.", 2)]


async def test_overlapping_passages_are_not_quoted_twice(extractive: Answered, vietnamese: Documents) -> None:
    text = vietnamese[0].text
    overlapping = (
        vietnamese[0],
        GroundingPassage(text[20:], starts_inside=True),
        GroundingPassage(text.upper()),
        vietnamese[0],
    )
    answer, _ = await extractive("Thời gian bảo hành bao lâu?", documents=overlapping)
    assert [flat(text).casefold() for text, _ in quotes(answer)].count(
        "thời gian bảo hành là 24 tháng kể từ ngày mua hàng."
    ) == 1


async def test_without_documents_it_says_how_to_configure_a_model(extractive: Answered) -> None:
    assert "factory.yaml" in (await extractive("Xin chào, bạn khỏe không?"))[0]
    assert (await extractive("Xin chào, bạn khỏe không?"))[0].startswith("Xin chào!")
    assert (await extractive("What can you do?"))[0].startswith("Hello!")
    assert (await extractive("hi", documents=(GroundingPassage("  \n"),)))[0].startswith("Hello!")


async def test_a_mark_inside_a_passage_cannot_pass_for_a_citation(extractive: Answered) -> None:
    passage = GroundingPassage(
        "The bridge is 300 metres long.[2] The bridge [7] opened in 1902. The bridge carries trams [3]."
    )
    answer, _ = await extractive("How long is the bridge?", documents=(passage,))
    assert {number for _, number in quotes(answer)} == {1}
    assert "The bridge is 300 metres long. [1]" in answer
    assert "1902" not in answer


async def test_a_passage_cut_out_of_a_text_does_not_begin_the_answer_with_a_fragment(extractive: Answered) -> None:
    passage = GroundingPassage("of the warranty was refused. The warranty lasts two years.", starts_inside=True)
    answer, _ = await extractive("warranty?", documents=(passage,))
    assert answer == "The warranty lasts two years. [1]"


async def test_the_answer_comes_in_small_pieces_and_its_tokens_are_its_words(ask: Ask, vietnamese: Documents) -> None:
    request = ask("Thời gian bảo hành bao lâu?", documents=vietnamese[:1])
    steps = [step async for step in Extractive(ExtractiveSpec()).generate(request)]
    answer = "".join(step.delta for step in steps)
    assert all(len(step.delta.split()) <= TOKENS_PER_STEP for step in steps)
    assert len(steps) == math.ceil(len(answer.split()) / TOKENS_PER_STEP) + 1 > 2
    usage = steps[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(answer.split())
    prompt = [request.messages[0].content, vietnamese[0].title, vietnamese[0].text]
    assert usage.prompt_tokens == sum(len(text.split()) for text in prompt)
    assert [step.usage for step in steps[:-1]] == [None] * (len(steps) - 1)


async def test_a_long_prompts_words_are_counted_once_wherever_it_is_cut(extractive: Answered) -> None:
    text = "mười ba chữ " * 9_000
    _, last = await extractive(text)
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(text.split())


@pytest.mark.parametrize("tokens", [1, 5, 11])
async def test_max_tokens_ends_the_answer_after_so_many_words(
    extractive: Answered, vietnamese: Documents, tokens: int
) -> None:
    full, _ = await extractive("Thời gian bảo hành bao lâu?", documents=vietnamese)
    answer, last = await extractive("Thời gian bảo hành bao lâu?", documents=vietnamese, max_tokens=tokens)
    assert answer == " ".join(full.split()[:tokens])
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert last.usage.completion_tokens == tokens


async def test_max_tokens_that_the_answer_does_not_reach_changes_nothing(
    extractive: Answered, vietnamese: Documents
) -> None:
    full, _ = await extractive("Thời gian bảo hành bao lâu?", documents=vietnamese)
    same = await extractive("Thời gian bảo hành bao lâu?", documents=vietnamese, max_tokens=len(full.split()))
    assert (same[0], same[1].finish_reason) == (full, FinishReason.STOP)


async def test_the_first_stop_text_ends_the_answer_and_is_no_part_of_it(
    extractive: Answered, vietnamese: Documents
) -> None:
    answer, last = await extractive("Thời gian bảo hành bao lâu?", documents=vietnamese, stop=("kể từ", "24"))
    assert answer == "Thời gian bảo hành là "
    assert last.finish_reason is FinishReason.STOP


async def test_an_answer_begun_by_itself_goes_on_from_any_place(extractive: Answered, english: Documents) -> None:
    for question in ("Warranty for batteries?", "How do I install it?", "Who won the cup?"):
        full, _ = await extractive(question, documents=english)
        for cut in range(len(full) + 1):
            rest, _ = await extractive(question, documents=english, begun=full[:cut])
            assert full[:cut] + rest == full


async def test_an_answer_begun_by_another_model_is_ended_with_quotes_that_it_lacks(
    extractive: Answered, english: Documents
) -> None:
    question, sentence = "How long is the warranty?", "The warranty period is 24 months from the date of purchase."
    begun = f"As the handbook says: {sentence[:30]}"
    rest, _ = await extractive(question, documents=english, begun=begun)
    assert begun + rest == f"As the handbook says: {sentence} [2]"
    rest, _ = await extractive(question, documents=english, begun="I think that the")
    assert rest == f"… {sentence} [2]"
    rest, _ = await extractive(question, documents=english, begun="Let me look that up.")
    assert rest == f" {sentence} [2]"
    rest, last = await extractive(question, documents=english, begun=f"Yes. {sentence} [2]")
    assert (rest, last.finish_reason) == ("", FinishReason.STOP)
    rest, _ = await extractive(question, documents=english, begun=f"{sentence} [2] And then there is")
    assert rest == "… The given documents say no more about this."


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sampling": Sampling(n=2)}, "sampling.n"),
        ({"sampling": Sampling(logprobs=True)}, "sampling.logprobs"),
        ({"output_format": OutputFormat("json_object")}, "output_format"),
        ({"tools": (Tool("search", "", {}),)}, "tools"),
        ({"messages": (Message(Role.SYSTEM, "Be kind."),)}, "messages"),
    ],
)
async def test_what_needs_a_model_is_refused_by_name(ask: Ask, change: dict[str, Any], field: str) -> None:
    request = replace(ask("hello"), **change)
    with pytest.raises(InvalidArgument) as raised:
        Extractive(ExtractiveSpec()).generate(request)
    assert raised.value.field == field


async def test_tools_that_may_not_be_called_are_no_obstacle(ask: Ask, english: Documents) -> None:
    request = replace(
        ask("How long is the warranty?", documents=english),
        tools=(Tool("search", "", {}),),
        tool_choice=ToolChoice("none"),
    )
    answer = [step.delta async for step in Extractive(ExtractiveSpec()).generate(request)]
    assert "24 months" in "".join(answer)


@pytest.mark.parametrize("text", ["word " * 300, "x" * 10_000])
async def test_a_prompt_longer_than_the_context_is_refused(ask: Ask, text: str) -> None:
    steps = Extractive(ExtractiveSpec(context_tokens=256)).generate(
        ask("question?", documents=(GroundingPassage(text),))
    )
    with pytest.raises(ContextTooLong):
        await anext(steps)


async def test_a_raw_prompt_is_a_question(english: Documents) -> None:
    request = Generation("extractive", prompt="How long is the warranty?", documents=english)
    steps = [step.delta async for step in Extractive(ExtractiveSpec()).generate(request)]
    assert "24 months" in "".join(steps)


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("aăbđ.!?:-#|*[]123 \n\t\"'(…)Pp"), max_size=400),
    st.text(alphabet=st.sampled_from("aăbđp1 ?"), min_size=1, max_size=40),
)
def test_whatever_the_passage_units_are_its_own_text_and_quotes_can_be_found_in_it(passage: str, asked: str) -> None:
    for unit in sentences.units(passage):
        assert passage[unit.start : unit.end] == unit.text
        assert unit.text == unit.text.strip() != ""
    reader = Reader(Question([asked]))
    for _ in reader.read([GroundingPassage(passage)]):
        pass
    for quote in reader.answer().quotes:
        assert flat(quote.text) in flat(passage)
        assert not re.search(r"\[\d+\]", quote.text)


@pytest.mark.parametrize(
    "unkind",
    [
        "." * 60_000,
        "# " + "#" * 60_000 + "x",
        "[1" * 30_000,
        "a" * 60_000,
        "| " * 30_000,
        "- x\n" * 15_000,
        "Is it? " * 8_000,
        "A. " * 20_000,
        "warranty " * 6_000,
        "The warranty is long. " * 3_000,
        ("word " * 12 + "\n") * 900,
        "(" * 30_000 + ")" * 30_000,
        " " * 60_000 + "x.",
    ],
)
@pytest.mark.allow_blocking
async def test_no_passage_holds_the_event_loop(extractive: Answered, unkind: str) -> None:
    longest = 0.0
    done = False
    gc.collect()
    gc.disable()  # a collection of all that the other tests left is not the engine's time

    async def watch() -> None:
        nonlocal longest
        last = time.thread_time()
        while not done:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await extractive("How long is the warranty, really?", documents=(GroundingPassage(unkind),))
            done = True
    finally:
        gc.enable()
    # Typically below a millisecond of processor time; the bound leaves room for a slow and busy machine.
    assert longest < 0.05
