"""A dataset as a folder: its splits, its manifest with the version, and its card."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import Field

from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets import contract
from genaifactory_pipelines.datasets.splits import Splits
from genaifactory_pipelines.values import Values

FORMAT = 1
"""Of the folder; part of the version."""
MANIFEST = "dataset.json"
CARD = "README.md"
SPLITS = ("train", "validation", "test")
_DOCUMENTS_NAMED = 20


class Manifest(Values):
    """What a folder holds."""

    format: int = FORMAT
    version: str
    """The SHA-256 of the splits' lines: the same examples have the same version, wherever they are made."""
    examples: dict[str, int]
    """Of each split."""
    preferences: int
    """Examples of the train split with a rejected output."""
    languages: dict[str, int]
    labels: dict[str, int]
    topics: int
    interactions: int = 0
    """That the examples come from, with those of their near-duplicates."""
    passages: int = 0
    """That their answers cited."""
    documents: int = 0
    """With these passages."""
    cited: dict[str, int] = Field(default_factory=dict)
    """Examples of the twenty documents that were cited most often, by the document's id."""
    first_time: datetime | None
    last_time: datetime | None
    """When the first and the last question were asked."""
    left_out: dict[str, int]
    """Why and how many interactions and examples are not in it."""
    made_from: dict[str, str]
    """Where the examples come from: window, filters, files; for people."""

    def tables(self) -> dict[str, dict[str, int]]:
        """Counts of examples by what they are counted by, for people."""
        counts = {
            "Split": self.examples,
            "Language": self.languages,
            "Why an output is taken for right": self.labels,
            "Document that the answer cited": self.cited,
            "Left out": self.left_out,
        }
        return {heading: count for heading, count in counts.items() if count}

    def lineage(self) -> str:
        """What the examples come from, for people."""
        return (
            f"{self.interactions:,} interactions; their answers cited {self.passages:,} passages of "
            f"{self.documents:,} documents."
        )


def version(splits: Splits) -> str:
    """The content's version, `sha256:` and 64 hex digits."""
    digest = hashlib.sha256(f"dataset format {FORMAT}\n".encode())
    for name in SPLITS:
        digest.update(f"split {name}\n".encode())
        for example in getattr(splits, name):
            digest.update(contract.line_of(example))
    return f"sha256:{digest.hexdigest()}"


def write(folder: Path, splits: Splits, *, left_out: Mapping[str, int], made_from: Mapping[str, str]) -> Manifest:
    """Writes the folder's files, the manifest last: a folder without one is not complete. Blocks. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        contract.write(file_of(folder, name), getattr(splits, name))
    everything = [*splits.train, *splits.validation, *splits.test]
    times = [example.time for example in everything if example.time is not None]
    cited = _counts(each for example in everything for each in example.lineage.documents)
    manifest = Manifest(
        version=version(splits),
        examples={name: len(getattr(splits, name)) for name in SPLITS},
        preferences=sum(bool(example.rejected) for example in splits.train),
        languages=_counts(example.language or "undetected" for example in everything),
        labels=_counts(example.label for example in everything),
        topics=len({example.topic for example in everything}),
        interactions=len({each for example in everything for each in example.lineage.request_ids}),
        passages=len({each for example in everything for each in example.lineage.passages}),
        documents=len(cited),
        cited=dict([*cited.items()][:_DOCUMENTS_NAMED]),
        first_time=min(times, default=None),
        last_time=max(times, default=None),
        left_out=dict(left_out),
        made_from=dict(made_from),
    )
    files.write(folder / CARD, card(manifest).encode(), mode=0o644)
    files.write(folder / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n", mode=0o644)
    return manifest


def read(folder: Path) -> tuple[Manifest, Splits]:
    """A dataset whose content is what its version says. Blocks. Raises InvalidArgument."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise InvalidArgument(
            f"{folder} holds no complete dataset: {MANIFEST} cannot be read ({error.strerror}).", field=str(folder)
        ) from None
    except ValueError:
        raise InvalidArgument(f"{folder / MANIFEST} is no manifest of a dataset.", field=str(folder)) from None
    splits = Splits(*(tuple(contract.read(file_of(folder, name))) for name in SPLITS))
    if (found := version(splits)) != manifest.version:
        raise InvalidArgument(
            f"{folder} was changed after it was made: its content is {found}, {MANIFEST} says {manifest.version}.",
            field=str(folder),
        )
    return manifest, splits


def file_of(folder: Path, split: str) -> Path:
    """The file of a split."""
    return folder / f"{split}.jsonl"


def card(manifest: Manifest) -> str:
    """The dataset card, in Markdown."""
    return "".join(_card(manifest))


def _card(manifest: Manifest) -> Iterator[str]:
    yield f"# Dataset {manifest.version.removeprefix('sha256:')[:12]}\n\nVersion: `{manifest.version}`\n\n"
    yield 'Lines of `{"messages"}` in the contract of docs/datasets.md; the last message is the output to learn.\n\n'
    for heading, counts in manifest.tables().items():
        yield f"| {heading} | examples |\n| --- | ---: |\n"
        yield from (f"| {name} | {count:,} |\n" for name, count in counts.items())
        yield "\n"
    yield f"Preferences: {manifest.preferences:,}. Topics: {manifest.topics:,}.\n"
    if manifest.first_time and manifest.last_time:
        yield f"Questions from {manifest.first_time:%Y-%m-%d %H:%M} to {manifest.last_time:%Y-%m-%d %H:%M} UTC.\n"
    yield "\n## Made from\n\n"
    yield f"- lineage: {manifest.lineage()}\n"
    yield from (f"- {name}: {value}\n" for name, value in manifest.made_from.items())


def _counts(values: Iterator[str] | Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))
