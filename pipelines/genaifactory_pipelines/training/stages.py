"""The stages of a training: which examples each learns from, and how many are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.datasets.splits import Splits
from genaifactory_pipelines.training import encoding
from genaifactory_pipelines.training.encoding import Encoder
from genaifactory_pipelines.training.options import Options, Schedule, StageName

Rows = Sequence[Mapping[str, list[int]]]


@dataclass(frozen=True)
class Stage:
    """What a stage learns from."""

    name: StageName
    schedule: Schedule
    train: Rows
    """As TRL reads them, in the dataset's order."""
    validation: Rows
    too_long: Mapping[str, int]
    """Examples of each split that are not among them."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.schedule.steps(len(self.train))


def make(options: Options, splits: Splits, encoder: Encoder, most_tokens: int) -> list[Stage]:
    """The stages of the method. Raises InvalidArgument when one has nothing to learn from, or to be measured by."""
    stages = []
    for name, schedule in options.stages():
        rows, too_long = {}, {}
        for split, examples in (("train", splits.train), ("validation", splits.validation)):
            chosen = _of_stage(name, split, examples)
            kept, too_long[split] = encoding.that_fit(map(encoder.encode, chosen), most_tokens)
            if not kept:
                raise InvalidArgument(
                    f"Each of the {len(chosen):,} examples of the {split} split has more than {most_tokens:,} tokens. "
                    "Allow more, up to the base's context, or shorten them.",
                    field="max_tokens",
                )
            rows[split] = encoding.to_imitate(kept) if name == "sft" else encoding.to_prefer(kept)
        stages.append(Stage(name, schedule, rows["train"], rows["validation"], too_long))
    return stages


def _of_stage(name: StageName, split: str, examples: Sequence[Example]) -> Sequence[Example]:
    if name == "sft":
        return examples
    preferences = [example for example in examples if example.rejected]
    if not preferences:
        raise InvalidArgument(
            f"The {split} split holds no preference, an example with a rejected output, and 'dpo' needs some in the "
            "train and in the validation split. Collect corrections, give examples with 'rejected', or train by 'sft'.",
            field="method",
        )
    return preferences
