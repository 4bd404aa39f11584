"""From the records of a window to what signals compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.drift.protocol import Window


def answers(recorded: Iterable[Interaction]) -> list[Interaction]:
    """The interactions that asked something: those that embedded texts are left out, as a drift check's own."""
    return [each for each in recorded if each.task != "embedding" and each.start_time is not None]


def independent(interactions: Sequence[Interaction]) -> list[Interaction]:
    """One of each conversation; which one is a matter of the ids alone, so that it is the same each time."""
    chosen: dict[str, Interaction] = {}
    for each in sorted(interactions, key=_lot):
        chosen.setdefault(each.conversation_id or each.request_id, each)
    ids = {each.request_id for each in chosen.values()}
    return [each for each in interactions if each.request_id in ids]


def sample(interactions: Sequence[Interaction], most: int) -> list[Interaction]:
    """The interactions with a question, or as many of them as may be, drawn by lot, and the same each time."""
    return sorted((each for each in interactions if each.question), key=_lot)[:most]


def make(
    interactions: Sequence[Interaction],
    asked: Sequence[Interaction],
    vectors: Mapping[str, NDArray[np.float32]],
) -> Window:
    """A window of these interactions, of which `asked` have a vector by the text of their question."""
    rows = np.array([vectors[each.question] for each in asked], np.float32).reshape(len(asked), -1 if asked else 0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return Window(interactions, independent(interactions), asked, rows / np.where(lengths > 0, lengths, 1))


def require_apart(reference: Sequence[Interaction], current: Sequence[Interaction]) -> None:
    """Raises InvalidArgument when the windows overlap: what is in both hides what has changed."""
    both = {each.request_id for each in reference} & {each.request_id for each in current}
    if both:
        raise InvalidArgument(
            f"{len(both):,} interactions are in both windows. End the reference window where the current one begins, "
            "or before.",
            field="reference",
        )


def require_enough(name: str, interactions: Sequence[Interaction], least: int) -> None:
    """Raises InvalidArgument: with too few interactions nothing can be said of a window, and silence is no drift."""
    count = len(independent(interactions))
    if count < least:
        raise InvalidArgument(
            f"The {name} window has {count:,} conversations; {least:,} are needed to judge it. Take a longer window, "
            "or accept fewer.",
            field=name,
        )


def _lot(interaction: Interaction) -> bytes:
    return hashlib.sha256(interaction.request_id.encode()).digest()
