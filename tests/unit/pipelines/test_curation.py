"""From records to a dataset: what is taken, what is left out and why, and that the same goes in and comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import curation
from genaifactory_pipelines.curation import Options
from genaifactory_pipelines.datasets import contamination, dataset, records, splits
from genaifactory_pipelines.datasets.contract import Example, InvalidDataset
from genaifactory_pipelines.datasets.records import Interaction
from tests.unit.pipelines.examples import Masks, example, examples, feedback, question, recorded

UP, DOWN = feedback(rating="up"), feedback(rating="down")


def interaction(number: int = 0, **values: Any) -> Interaction:
    return Interaction.model_validate(recorded(number, **values))


def example_of(**values: Any) -> Example:
    found = records.example_of(interaction(**values), "leave_out")
    assert isinstance(found, Example), found
    return found


def test_an_approved_answer_is_an_example_with_its_lineage() -> None:
    found = example_of(feedback=[UP], conversation_id="c")
    assert (found.output, found.label, found.group, found.topic) == ("answer 0", "approved", "c", "guide/0.md")
    assert found.lineage.model_dump() == {
        "request_ids": ("req-00000",),
        "documents": ("guide/0.md",),
        "passages": ("p0",),
        "index_version": "v1",
        "model": "tiny",
        "prompt_version": "rag@1",
    }


def test_a_correction_is_the_output_and_the_answer_what_is_rejected() -> None:
    found = example_of(feedback=[DOWN, feedback(correction="the right answer")])
    assert (found.output, found.rejected, found.label) == ("the right answer", "answer 0", "correction")
    assert found.lineage.model == ""


def test_a_ground_truth_that_confirms_the_answer_is_no_preference() -> None:
    found = example_of(feedback=[feedback(ground_truth={"answer": "answer 0 "})])
    assert (found.label, found.rejected) == ("ground_truth", "")


def test_the_latest_rating_counts() -> None:
    assert example_of(feedback=[DOWN, UP]).label == "approved"
    assert records.example_of(interaction(feedback=[UP, DOWN]), "take") == "disapproved"


def test_a_refusal_is_an_example_only_where_somebody_gave_the_answer() -> None:
    assert records.example_of(interaction(refused=True, feedback=[UP]), "take") == "refused"
    assert example_of(refused=True, feedback=[feedback(correction="it is 12")]).output == "it is 12"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"outcome": "blocked"}, "not answered"),
        ({"outcome": "9"}, "not answered"),
        ({"task": "embedding"}, "not answered"),
        ({"output": " "}, "no text"),
        ({"input": []}, "no text"),
        ({"input": [{"role": "user", "content": "a", "tool_calls": [], "images": [{"data": None}]}]}, "no text"),
        ({"input": [{"role": "tool", "content": "a", "tool_calls": [], "images": []}]}, "no text"),
    ],
)
def test_other_interactions_are_left_out_with_the_reason(values: dict[str, Any], reason: str) -> None:
    assert records.example_of(interaction(**values), "take") == reason


def test_unrated_answers_are_taken_only_when_asked_for() -> None:
    assert records.example_of(interaction(), "leave_out") == "not rated"
    taken = records.example_of(interaction(), "take")
    assert isinstance(taken, Example)
    assert taken.label == "unrated"


def test_a_broken_line_of_an_export_is_named(tmp_path: Path) -> None:
    path = tmp_path / "interactions.jsonl"
    path.write_text(json.dumps(recorded(0)) + "\n" + json.dumps(recorded(1, schema_version=2)) + "\n{")
    with pytest.raises(InvalidDataset, match=r"interactions\.jsonl:2: schema_version: Input should be 1"):
        list(curation.interactions(path))


def test_an_interaction_that_is_there_twice_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="'req-00000' is there twice"):
        curation.candidates([interaction(), interaction()], "take")


async def curated(
    items: list[Example], *, given: list[Example] | None = None, golden: list[Example] | None = None, **options: object
) -> curation.Curated:
    return await curation.curate(
        items, given or [], golden or [], Masks(), Options.model_validate({"policy": "training", **options})
    )


def everything(found: curation.Curated) -> list[Example]:
    return [*found.splits.train, *found.splits.validation, *found.splits.test]


async def test_personal_data_is_masked_everywhere_and_blocked_texts_are_left_out() -> None:
    items = examples(40)
    items[1] = example(1, output="ask Nguyen", rejected="ask Nguyen now")
    items[2] = example(2, rejected="hunter2")
    found = await curated(items)
    (masked,) = [each for each in everything(found) if each.id == "req-00001"]
    assert (masked.output, masked.rejected) == ("ask <PERSON>", "ask <PERSON> now")
    assert found.left_out == {"blocked by the policy": 1}


async def test_personal_data_that_masking_leaves_ends_the_step() -> None:
    items = [example(0, output="ask Nguyen"), *examples(40)[1:]]
    with pytest.raises(InvalidArgument, match="'req-00000' still holds personal data") as refused:
        await curation.curate(items, [], [], Masks(forgets=True), Options(policy="training"))
    assert "Nguyen" not in refused.value.message


async def test_of_near_duplicates_the_most_trusted_is_kept_and_names_the_others() -> None:
    items = examples(40)
    items += [
        example(50, input=f"{question(3)}?", output="b", label="correction"),
        example(51, input=f"{question(3)}!"),
    ]
    found = await curated(items)
    (kept,) = [each for each in everything(found) if each.questions.startswith(question(3))]
    assert (kept.id, kept.output) == ("req-00051", "answer 51")  # given, and newer than req-00003
    assert found.left_out == {"near-duplicate": 2}
    assert {dropped.id for dropped, for_it, _ in found.duplicates if for_it.id == kept.id} == {"req-00003", "req-00050"}


async def test_what_holds_a_golden_item_is_left_out_of_records_and_refused_in_files() -> None:
    golden = [example(900, input="How many days of annual leave do I have after five years?", output="15")]
    quoted = example(7, input="Please tell me: how many days of annual leave do I have after five years? Thanks")
    found = await curated([*examples(40)[8:], quoted], golden=golden, least_examples=20)
    assert [(each.id, item) for each, item in found.contaminated] == [("req-00007", "req-00900")]
    assert contamination.find(everything(found), golden) == []
    with pytest.raises(InvalidDataset, match="the given example 'req-00007' holds the golden item 'req-00900'"):
        await curated(examples(40)[8:], given=[quoted], golden=golden)


async def test_a_given_example_that_was_recorded_is_one_example_and_another_with_its_id_is_refused() -> None:
    found = await curated(examples(40), given=[example(3)])
    assert [each.id for each in everything(found)].count("req-00003") == 1
    with pytest.raises(InvalidDataset, match="the id 'req-00003' is that of a recorded and of a given example"):
        await curated(examples(40), given=[example(99, id="req-00003")])


async def test_too_few_and_too_uniform_examples_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="0 examples are left, and 20 are the least"):
        await curated([])
    with pytest.raises(InvalidArgument, match="All 30 examples have the same output"):
        await curated(examples(30, output="yes"))


async def test_the_same_examples_have_the_same_version_in_any_order() -> None:
    items = [example(number, topic=f"t{number % 4}" if number < 80 else "t0") for number in range(120)]
    one = await curated(items, most_times_median=1.5)
    random.Random(4).shuffle(items)
    other = await curated(items, most_times_median=1.5)
    assert dataset.version(one.splits) == dataset.version(other.splits)
    changed = await curated([*items[1:], items[0].model_copy(update={"topic": "another"})], most_times_median=1.5)
    assert dataset.version(changed.splits) != dataset.version(one.splits)


def test_a_dataset_is_read_as_it_was_written_and_refused_when_it_was_changed(tmp_path: Path) -> None:
    parts = splits.split(
        [*examples(40), example(41, rejected="worse", language="vi", label="correction")], validation=0.1, test=0.2
    )
    manifest = dataset.write(tmp_path, parts, left_out={"not rated": 3}, made_from={"window": "7 days"})
    assert dataset.read(tmp_path) == (manifest, parts)
    assert manifest.examples == {"train": 27, "validation": 5, "test": 9}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (manifest.version, "| correction | 1 |", "| vi | 1 |", "| not rated | 3 |", "- window: 7 days"):
        assert line in card
    assert "- lineage: 0 interactions; their answers cited 0 passages of 0 documents." in card
    assert "Document that the answer cited" not in card
    train = dataset.file_of(tmp_path, "train")
    train.write_bytes(train.read_bytes().replace(b"answer", b"Answer", 1))
    with pytest.raises(InvalidArgument, match="was changed after it was made"):
        dataset.read(tmp_path)
    (tmp_path / dataset.MANIFEST).unlink()
    with pytest.raises(InvalidArgument, match="holds no complete dataset"):
        dataset.read(tmp_path)


def test_the_card_names_the_interactions_passages_and_documents_that_a_dataset_comes_from(tmp_path: Path) -> None:
    rated = [interaction(number, feedback=[UP]) for number in range(75)]  # of three documents
    own = [{"passage_id": "own", "document_id": f"own/{number}.md"} for number in range(25)]
    rated += [interaction(100 + number, citations=[each], feedback=[UP]) for number, each in enumerate(own)]
    found, _ = curation.candidates(rated, "leave_out")
    manifest = dataset.write(tmp_path, splits.split(found, validation=0.1, test=0.2), left_out={}, made_from={})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- lineage: 100 interactions; their answers cited 76 passages of 28 documents." in card
    assert "| guide/2.md | 25 |\n" in card
    assert [*manifest.cited.values()] == [25, 25, 25, *[1] * 17]  # the twenty that were cited most often
    assert dataset.read(tmp_path)[0] == manifest
