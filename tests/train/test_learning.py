"""An adapter that was trained answers as its examples do, and the model server accepts it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from genaifactory_common.errors import InvalidArgument
from genaifactory_modelserver.adapters import checks
from genaifactory_modelserver.threads import Stop
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.training import base
from genaifactory_pipelines.training.encoding import Encoder
from tests.train import runs
from tests.train.conftest import Learnt
from tests.train.models import Asked


def test_questions_are_answered_word_for_word_afterwards_and_not_before(llama: Path, learnt: Learnt) -> None:
    assert Asked(llama).right(learnt.examples) == 0
    assert Asked(llama, learnt.adapter).right(learnt.examples) >= 38


def test_the_loss_is_that_of_the_answers_alone(llama: Path, learnt: Learnt) -> None:
    stage = learnt.outputs.stages["sft"]
    assert stage.loss_before == pytest.approx(Asked(llama).loss(learnt.examples[:8]), rel=1e-4)
    assert stage.loss_after == pytest.approx(Asked(llama, learnt.adapter).loss(learnt.examples[:8]), rel=1e-3)
    assert stage.loss_after < stage.loss_before / 100
    assert (stage.steps, stage.stopped_early, stage.examples["train"]) == (100, False, 40)


def test_the_model_server_accepts_the_adapter(llama: Path, learnt: Learnt) -> None:
    served = checks.Base("tiny", str(llama), llama, max_rank=8)
    found = checks.check("learnt", learnt.adapter, learnt.outputs.sha256, served, Stop())
    assert found.sha256 == learnt.outputs.sha256
    assert (found.rank, len(found.target_modules)) == (8, 7)
    with pytest.raises(InvalidArgument, match="was trained for 'tiny'"):
        checks.check("learnt", learnt.adapter, "", checks.Base("other", "/other", llama, max_rank=8), Stop())


def test_the_adapters_files_say_what_it_is_and_nothing_of_this_machine(llama: Path, learnt: Learnt) -> None:
    assert sorted(path.name for path in learnt.adapter.iterdir()) == sorted(checks.FILES)
    metadata = json.loads((learnt.adapter / "metadata.json").read_bytes())
    weights = (learnt.adapter / "adapter_model.safetensors").read_bytes()
    assert metadata["sha256"] == hashlib.sha256(weights).hexdigest()
    assert (metadata["base_model"], metadata["prompt_version"]) == ("tiny", "rag@1")
    assert metadata["data_version"] == json.loads((learnt.run / "curate/dataset/dataset.json").read_bytes())["version"]
    assert metadata["metrics"]["sft/validation_loss"] == learnt.outputs.stages["sft"].loss_after
    for name in ("metadata.json", "adapter_config.json"):
        assert str(llama) not in (learnt.adapter / name).read_text()


def test_curves_are_written_for_mlflow_and_people_and_checkpoints_are_gone(learnt: Learnt) -> None:
    folder = learnt.run / "train"
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    steps = {name: [point["step"] for point in points if point["name"] == name] for name in {p["name"] for p in points}}
    assert steps["sft/train_loss"] == list(range(1, 101))
    assert steps["sft/validation_loss"] == [0, 50, 100]
    report = (folder / "report.html").read_text()
    assert report.count("<polyline") == 2
    assert "lora.rank" in report
    assert sorted(path.name for path in folder.iterdir()) == [
        ".attempt", "adapter", "environment.json", "metrics.jsonl", "report.html", "result.json",
    ]  # fmt: skip


async def test_preferences_move_the_margin(llama: Path, tmp_path: Path) -> None:
    examples = runs.questions(16)
    run = runs.made(tmp_path, examples, examples[:8])
    outputs = await runs.trained(run, runs.options(llama, method="dpo", dpo={"epochs": 5, "learning_rate": 2e-3}))
    before = Asked(llama).margin(examples)
    after = Asked(llama, run / "train" / "adapter").margin(examples)
    assert after > before + 5
    stage = outputs.stages["dpo"]
    assert stage.loss_before == pytest.approx(0.6931, abs=1e-3)  # of a model that is its own reference: log 2
    assert stage.loss_after < 0.3


async def test_preferences_go_on_from_what_was_imitated(llama: Path, tmp_path: Path) -> None:
    examples = runs.questions(16)
    run = runs.made(tmp_path, examples, examples[:8])
    both = await runs.trained(
        run, runs.options(llama, method="sft+dpo", sft={"epochs": 10}, dpo={"epochs": 2, "learning_rate": 5e-4})
    )
    assert both.stages["dpo"].loss_before == pytest.approx(0.6931, abs=1e-3)  # its reference is the stage before
    imitating = Asked(llama).loss(examples)
    assert Asked(llama, run / "train" / "adapter").loss(examples) < imitating / 10
    assert (
        checks.check("both", run / "train" / "adapter", both.sha256, checks.Base("tiny", "", llama, 8), Stop()).rank
        == 8
    )


def test_an_example_is_encoded_as_the_engine_reads_it_and_ends_where_generation_ends(llama: Path) -> None:
    found = base.find(str(llama))
    start = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", found.tokenizer.bos_token_id)])
    found.tokenizer.backend_tokenizer.post_processor = start  # as that of most models; the template has written it
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Leave?"},
        {"role": "assistant", "content": "12 days."},
        {"role": "user", "content": "And in Huế?"},
        {"role": "assistant", "content": "13 days."},
    ]
    example = Example.model_validate({"id": "turns", "messages": turns, "rejected": "None."})
    encoded = Encoder(found.tokenizer, found.ends).encode(example)
    asked = Asked(llama)
    assert encoded.prompt == asked.prompt(example)
    assert encoded.answer == asked.tokens(" 13 days.</s>")
    assert encoded.rejected == asked.tokens(" None.</s>")


def test_a_template_that_ends_answers_itself_is_kept_to(llama: Path) -> None:
    found = base.find(str(llama))
    found.tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    encoded = Encoder(found.tokenizer, found.ends).encode(runs.questions(1)[0])
    assert found.tokenizer.decode(encoded.prompt).endswith("</s>\n[assistant]")
    assert found.tokenizer.decode(encoded.answer) == "In Hue.</s>"
    quoting = Example.model_validate({"id": "quoting", "input": "What ends it?", "output": "It is </s>, always."})
    answer = Encoder(found.tokenizer, found.ends).encode(quoting).answer
    assert found.tokenizer.decode(answer) == "It is </s>, always.</s>"
