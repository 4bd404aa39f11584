"""Lines of monitor's export, and the examples that they become."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from genaifactory_common import language
from genaifactory_pipelines.datasets.contract import Example, Label, Lineage, Message

Unrated = Literal["leave_out", "take"]
Reason = Literal["not answered", "no text", "refused", "disapproved", "not rated"]
"""Why an interaction is no example."""


class _Line(BaseModel):
    """Within a version of the schema fields are added, so unknown ones are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Feedback(_Line):
    """What somebody said of an answer."""

    time: datetime | None
    rating: str
    correction: str
    ground_truth: dict[str, Any] | None


class RecordedMessage(_Line):
    """A message of the conversation."""

    role: str
    content: str
    tool_calls: tuple[Any, ...]
    images: tuple[Any, ...]

    @property
    def is_text(self) -> bool:
        """Whether its text is all that there is of it."""
        plain = self.role in ("system", "user", "assistant") and not self.tool_calls and not self.images
        return plain and bool(self.content.strip())


class Passage(_Line):
    """A passage that the search found."""

    score: float


class Citation(_Line):
    """A passage that an answer cited."""

    passage_id: str
    document_id: str


class Interaction(_Line):
    """What of a line the pipelines read."""

    schema_version: Literal[1]
    request_id: str
    start_time: datetime | None
    task: str
    route: str
    model: str
    prompt_version: str
    index_version: str
    """That was searched; empty where nothing was."""
    passages: tuple[Passage, ...]
    citations: tuple[Citation, ...]
    input: tuple[RecordedMessage, ...]
    output: str
    outcome: str
    refused: bool
    conversation_id: str
    feedback: tuple[Feedback, ...]

    @property
    def question(self) -> str:
        """The user's last message; empty where it was not recorded."""
        return next((each.content for each in reversed(self.input) if each.role == "user"), "").strip()

    @property
    def topic(self) -> str:
        """The document that the answer cited first; empty for one without citations."""
        return self.citations[0].document_id if self.citations else ""

    @property
    def approved(self) -> bool | None:
        """The latest word of users on the answer; a correction disapproves of it. None where nobody said anything."""
        for each in reversed(self.feedback):
            if each.rating == "up":
                return True
            if each.rating == "down" or each.correction.strip():
                return False
        return None


def example_of(interaction: Interaction, unrated: Unrated) -> Example | Reason:
    """The example that an interaction is, or why it is none.

    The latest word on it counts: a person's correction, the answer of a ground truth ({"answer": TEXT}), a rating. An
    answer that was corrected becomes the rejected side of a preference.
    """
    if interaction.outcome != "answered" or interaction.task == "embedding":
        return "not answered"
    messages = interaction.input
    if not messages or messages[-1].role != "user" or not all(each.is_text for each in messages):
        return "no text"
    output, label = _judged(interaction)
    if label is None:
        return "disapproved"
    if not output.strip():
        return "no text"
    if label == "unrated" and unrated == "leave_out":
        return "not rated"
    if interaction.refused and label in ("approved", "unrated"):
        return "refused"
    own = label in ("approved", "unrated")
    cited = list(dict.fromkeys(each.document_id for each in interaction.citations))
    return Example.model_validate(
        {
            "id": interaction.request_id,
            "messages": [
                *(Message(role=each.role, content=each.content) for each in messages),
                Message(role="assistant", content=output),
            ],
            "rejected": "" if own or output.strip() == interaction.output.strip() else interaction.output,
            "label": label,
            "language": language.nearest(messages[-1].content) or "",
            "topic": interaction.topic,
            "time": interaction.start_time,
            "group": interaction.conversation_id or interaction.request_id,
            "lineage": Lineage(
                request_ids=(interaction.request_id,),
                documents=tuple(cited),
                passages=tuple(dict.fromkeys(each.passage_id for each in interaction.citations)),
                index_version=interaction.index_version,
                model=interaction.model if own else "",
                prompt_version=interaction.prompt_version,
            ),
        }
    )


def _judged(interaction: Interaction) -> tuple[str, Label | None]:
    """The output to learn, and why; None where the answer was disapproved and nobody gave a better one."""
    latest_first = interaction.feedback[::-1]  # they come in the order of their arrival
    for each in latest_first:
        if each.correction.strip():
            return each.correction, "correction"
    for each in latest_first:
        answer = (each.ground_truth or {}).get("answer")
        if isinstance(answer, str) and answer.strip():
            return answer, "ground_truth"
    for each in latest_first:
        if each.rating == "up":
            return interaction.output, "approved"
        if each.rating == "down":
            return "", None
    return interaction.output, "unrated"
