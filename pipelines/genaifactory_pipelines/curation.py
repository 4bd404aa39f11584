"""Curation: from records and files to a dataset that is safe to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pydantic import Field, ValidationError

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import anonymiser
from genaifactory_pipelines.anonymiser import Checker
from genaifactory_pipelines.datasets import contamination, duplicates, records, splits
from genaifactory_pipelines.datasets.contract import Example, InvalidDataset, Label, first_problem
from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.datasets.splits import Splits
from genaifactory_pipelines.values import Values

_TRUST: dict[Label, int] = {"given": 4, "correction": 3, "ground_truth": 2, "approved": 1, "unrated": 0}
"""Of near-duplicates the one with the most trusted output is kept."""


class Options(Values):
    """How a dataset is made."""

    policy: str
    """The guardrail policy that masks personal data and secrets."""
    unrated: records.Unrated = "leave_out"
    """Answers that nobody rated: leave them out, or take them as they are."""
    duplicate_similarity: float = Field(default=0.85, ge=0.5, le=1.0)
    """Questions this similar are one example."""
    validation: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the validation split."""
    test: float = Field(default=0.2, gt=0, lt=0.5)
    """Share of the test split."""
    most_times_median: float = Field(default=5.0, ge=1.0)
    """The most examples of one language and topic in the train split, in multiples of the median's count."""
    least_examples: int = Field(default=20, ge=3)
    """Fewer are refused: nothing can be learnt or measured with them."""


@dataclass
class Curated:
    """Splits, and what became of everything else."""

    splits: Splits
    left_out: Counter[str]
    duplicates: list[tuple[Example, Example, float]] = field(default_factory=list)
    """An example that was left out, the one that is kept for it, and their similarity."""
    contaminated: list[tuple[Example, str]] = field(default_factory=list)
    """An example that held a golden item, and the item's id."""


def interactions(path: Path) -> Iterator[Interaction]:
    """The records of an export. Blocks. Raises InvalidDataset at the first line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Interaction.model_validate_json(line)
            except ValidationError as error:
                problem = f"{path.name}:{number}: {first_problem(error)}; it must be a line of an export"
                raise InvalidDataset([problem]) from None


def candidates(recorded: Iterable[Interaction], unrated: records.Unrated) -> tuple[list[Example], Counter[str]]:
    """The examples that interactions give, and how many give none, by the reason. Raises InvalidDataset."""
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for interaction in recorded:
        if interaction.request_id in seen:
            raise InvalidDataset([f"the interaction '{interaction.request_id}' is there twice; ids must be unique"])
        seen.add(interaction.request_id)
        found = records.example_of(interaction, unrated)
        if isinstance(found, Example):
            examples.append(found)
        else:
            left_out[found] += 1
    return examples, left_out


async def curate(
    recorded: Sequence[Example],
    given: Sequence[Example],
    golden: Sequence[Example],
    checker: Checker,
    options: Options,
    not_taken: Mapping[str, int] = MappingProxyType({}),
) -> Curated:
    """A dataset out of examples from records and examples from files.

    Masks personal data, removes near-duplicates, keeps the golden set out, splits, and balances the train split. The
    result depends on the examples alone, not on their order. Raises InvalidArgument: too few or too uniform examples,
    a given example that holds a golden item, personal data that masking leaves.

    not_taken: interactions that gave no example, by the reason.
    """
    left_out = Counter(not_taken)
    if found := contamination.find(given, golden):
        raise InvalidDataset(
            [f"the given example '{given[each.example].id}' holds the golden item '{each.golden}'" for each in found]
        )
    recorded = sorted(recorded, key=lambda example: example.id)
    held = {each.example: each.golden for each in contamination.find(recorded, golden)}
    contaminated = [(recorded[position], item) for position, item in held.items()]
    left_out["holds a golden item"] += len(held)
    safe = [each for position, each in enumerate(recorded) if position not in held]
    examples = sorted([*safe, *given], key=lambda example: example.id)
    clean = await anonymiser.masked(examples, checker, options.policy)
    left_out["blocked by the policy"] += clean.count(None)
    examples = [each for each in clean if each is not None]
    kept, dropped = without_duplicates(examples, options.duplicate_similarity)
    left_out["near-duplicate"] += len(dropped)
    if again := [name for name, count in Counter(each.id for each in kept).items() if count > 1]:
        raise InvalidDataset([f"the id '{name}' is that of a recorded and of a given example" for name in again])
    _require_enough(kept, +left_out, options.least_examples)
    parts = splits.split(kept, validation=options.validation, test=options.test)
    train, surplus = splits.balanced(parts.train, most_times_median=options.most_times_median)
    left_out["balance"] += len(surplus)
    parts = Splits(tuple(train), parts.validation, parts.test)
    if shared := splits.leaks(parts):
        raise InvalidDataset(shared)
    return Curated(parts, +left_out, dropped, contaminated)


def without_duplicates(
    examples: Sequence[Example], threshold: float
) -> tuple[list[Example], list[tuple[Example, Example, float]]]:
    """What is kept, with the request ids of what it stands for, and what is left out.

    Of questions that are nearly the same the most trusted is kept, of those the newest. Each that is left out is as
    similar as `threshold` to the one that is kept for it.
    """
    best_first = sorted(examples, key=lambda each: (-_TRUST[each.label], -_seconds(each), each.id))
    stands_for: dict[int, int] = {}
    similar: dict[int, float] = {}
    for later, earlier, similarity in duplicates.pairs([each.questions for each in best_first], threshold):
        if later not in stands_for and earlier not in stands_for:
            stands_for[later], similar[later] = earlier, similarity
    ids: dict[int, list[str]] = {}
    for later, earlier in stands_for.items():
        ids.setdefault(earlier, []).extend(best_first[later].lineage.request_ids)
    kept = {
        position: _standing_for(example, ids.get(position, ()))
        for position, example in enumerate(best_first)
        if position not in stands_for
    }
    dropped = [(best_first[later], kept[earlier], similar[later]) for later, earlier in stands_for.items()]
    return sorted(kept.values(), key=lambda each: each.id), dropped


def _standing_for(example: Example, request_ids: Sequence[str]) -> Example:
    lineage = example.lineage
    return example.model_copy(
        update={"lineage": lineage.model_copy(update={"request_ids": (*lineage.request_ids, *sorted(request_ids))})}
    )


def _seconds(example: Example) -> float:
    return example.time.timestamp() if example.time else 0.0


def _require_enough(examples: Sequence[Example], left_out: Mapping[str, int], least: int) -> None:
    if len(examples) < least:
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items())) or "none"
        raise InvalidArgument(
            f"{len(examples)} examples are left, and {least} are the least; left out: {why}. Take a longer window, ask "
            "for feedback, add examples from a file, or take unrated answers as well.",
            field="least_examples",
        )
    if len({example.output.strip() for example in examples}) == 1:
        raise InvalidArgument(
            f"All {len(examples)} examples have the same output: a model would learn to say nothing else.",
            field="output",
        )
