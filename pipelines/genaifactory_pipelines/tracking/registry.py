"""The registry: versions of a model or a prompt, which come of runs, and the stages that people give them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, TypeAdapter, ValidationError

from genaifactory_common.errors import Conflict, NotFound
from genaifactory_common.specs.names import NAME
from genaifactory_common.specs.routes import Prompt
from genaifactory_pipelines.tracking import runs, stages
from genaifactory_pipelines.tracking.client import GONE, Tracking, unless
from genaifactory_pipelines.tracking.kinds import MODELS, NUMBER, PROMPTS, REFUSAL, RUN, TEXT, Kind
from genaifactory_pipelines.tracking.stages import Action, Change, Stage
from genaifactory_pipelines.values import Values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
"""Alias of the newest version."""
PRODUCTION = "production"
"""Alias of the version in Production."""
_CHANGE = "genaifactory.change."
"""Tags of a registered model or prompt that hold its record of stages: each change has a tag of its own, so that two
commands at once both add theirs. The time comes first in the name."""
_LINKED = "mlflow.linkedPrompts"
"""Tag of a run by which MLflow shows its prompts."""
_REFUSALS = TypeAdapter(dict[str, str])
_TICK = timedelta(microseconds=1)
_OF_MLFLOW = ("mlflow.", "_mlflow_")
"""What the names of its own tags begin with."""
_SETTLING = 10
"""How often the alias is set anew, because others add to the record."""


class Version(Values):
    """A version of a model or a prompt."""

    version: int
    stage: Stage
    created: datetime
    run_id: str
    gate: str
    """"passed", "not passed", or empty for a version that no step has made."""
    uri: str
    """By which the model server loads it, and MLflow finds it."""
    tags: dict[str, str]
    """What was trained on what, and the SHA-256 of the weights."""
    text: str = ""
    """Of a prompt: its template."""
    refusal: dict[str, str] = Field(default_factory=dict)
    """Of a prompt: the answers without a passage, by language."""


class Model(Values):
    """A registered model, or a prompt."""

    kind: Literal["model", "prompt"] = "model"
    name: str
    production: int | None
    versions: tuple[Version, ...]
    """The newest first."""
    changes: tuple[Change, ...]
    """The oldest first."""

    def has(self, version: int) -> bool:
        """Whether a version is there: the record may name one that was deleted in MLflow."""
        return any(each.version == version for each in self.versions)

    def approval(self, version: int) -> Change | None:
        """The change that moved a version to Staging or Production last."""
        moved = (each for each in reversed(self.changes) if each.version == version)
        return next((each for each in moved if each.action in ("stage", "promote")), None)


class Details(Model):
    """A registered model, or a prompt, with what one version comes of."""

    shown: Version | None
    run: runs.Summary | None
    """Of that version; None where it has none in MLflow any more."""


async def add(tracking: Tracking, model: str, run_id: str, source: str, tags: dict[str, str]) -> int:
    """The version of a run: the same one, whoever registers it and however often. Raises FactoryError.

    source: where its files are, within the run's artifacts.
    """

    def create(client: MlflowClient) -> None:
        client.create_model_version(model, source, run_id, tags=tags)

    found = await _add(tracking, MODELS, model, f"run_id = '{run_id}'", create)
    return int(found.version)


async def add_prompt(tracking: Tracking, prompt: Prompt, run_id: str, tags: Mapping[str, str]) -> str:
    """The URI of a prompt's version in MLflow: the same one, whichever run registers it and however often.

    Raises FactoryError: Conflict when the version is there with another text.
    """
    refusal = json.dumps(prompt.refusal, ensure_ascii=False, sort_keys=True)

    def create(client: MlflowClient) -> None:
        own = {NUMBER: str(prompt.version), RUN: run_id, REFUSAL: refusal, **tags}
        client.create_prompt_version(PROMPTS.stored(prompt.name), prompt.system, tags=own)

    found = await _add(tracking, PROMPTS, prompt.name, f"tags.`{NUMBER}` = '{prompt.version}'", create)
    if (found.tags.get(TEXT), found.tags.get(REFUSAL)) != (prompt.system, refusal):
        raise Conflict(
            f"{prompt.reference} was registered with another text, by the run {PROMPTS.run_id(found)}. "
            "Give the changed prompt a version of its own in factory.yaml, and evaluate that.",
            field="prompt",
        )
    linked = json.dumps([{"name": PROMPTS.stored(prompt.name), "version": str(found.version)}])
    await tracking.call(lambda client: client.set_tag(run_id, _LINKED, linked))
    return PROMPTS.uri(prompt.name, found)


async def _add(
    tracking: Tracking, kind: Kind, name: str, where: str, create: Callable[[MlflowClient], None]
) -> ModelVersion:
    await tracking.call(partial(kind.make, name=name))
    if await tracking.call(partial(kind.tags, name=name)) is None:
        raise Conflict(
            f"The name '{kind.stored(name)}' is taken in MLflow by something else than a {kind.noun}. "
            "Rename that there.",
            field=kind.noun,
        )
    found = await tracking.call(partial(_found_or_created, kind=kind, name=name, where=where, create=create))
    newest = await tracking.call(lambda client: max(map(kind.number, kind.versions(client, name))))
    await tracking.call(partial(kind.point, name=name, alias=CANDIDATE, number=newest))
    return found


async def models(tracking: Tracking, kind: Kind = MODELS) -> tuple[Model, ...]:
    """Everything of a kind whose name the platform could give. Raises FactoryError."""
    names = await tracking.call(kind.names)
    return tuple([await find(tracking, name, kind) for name in sorted(names) if re.fullmatch(NAME, name)])


async def find(tracking: Tracking, model: str, kind: Kind = MODELS) -> Model:
    """One of them. Raises FactoryError: NotFound when there is none."""
    if re.fullmatch(NAME, model) is None:  # it becomes part of queries
        raise _none(kind, model)
    return await tracking.call(partial(_find, model=model, kind=kind))


async def details(tracking: Tracking, model: str, version: int | None, kind: Kind = MODELS) -> Details:
    """One of them, with the run of a version. version: None for the newest. Raises FactoryError."""
    found = await find(tracking, model, kind)
    newest = found.versions[0] if found.versions else None
    shown = newest if version is None else _version(found, version)
    run = None if shown is None or not shown.run_id else await runs.summary(tracking, shown.run_id)
    return Details(**dict(found), shown=shown, run=run)


async def change(
    tracking: Tracking,
    model: str,
    version: int | None,
    action: Action,
    *,
    by: str,
    reason: str,
    despite_gate: bool = False,
    kind: Kind = MODELS,
) -> Model:
    """Adds to the record of stages; the model afterwards. Raises FactoryError.

    version: None for "rollback". Conflict when the change does not apply, also because another one came first or the
    version to roll back to was deleted in MLflow, or when the version's run did not pass its gate and this is not
    `despite_gate`.
    """
    before = await settle(tracking, model, kind)
    moved = before.production or 0 if version is None else version
    run_id, gate = "", ""
    if version is not None or before.has(moved):
        found = _version(before, moved)
        run_id, gate = found.run_id, found.gate
    passed = gate == runs.PASSED
    wanted = Change(
        at=_next(before.changes),
        by=by,
        action=action,
        version=moved,
        reason=reason,
        run_id=run_id,
        despite_gate=action in ("stage", "promote") and not passed,
    )
    so_far = stages.after(before.changes)
    stages.require_applies(so_far, wanted)
    if action == "rollback" and not before.has(so_far.former[0]):
        raise Conflict(
            f"Version {so_far.former[0]}, to which a rollback returns, was deleted in MLflow; promote another one.",
            field="model",
        )
    if wanted.despite_gate and not despite_gate:
        raise Conflict(
            f"The run of version {moved} {'did not pass its gate' if gate else 'has no gate'}. Register one that did, "
            "or promote it despite that.",
            field="version",
        )
    # The name is made once, so that a repeated request sets the same tag again.
    tag = f"{_CHANGE}{wanted.at:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}"
    await tracking.call(partial(kind.tag, name=model, key=tag, value=wanted.model_dump_json()))
    now = await settle(tracking, model, kind)
    at = now.changes.index(wanted)
    if stages.after(now.changes[:at]) == stages.after(now.changes[: at + 1]):
        raise Conflict(
            f"Another change of the {kind.noun} '{model}' came first, so that this one had no effect. Look at its "
            "stages, and decide again.",
            field="model",
        )
    return now


def _next(changes: Sequence[Change]) -> datetime:
    """The time of a change after these, by whatever clocks they were made: the record is in the order of the times."""
    return max((datetime.now(UTC), *(each.at.astimezone(UTC) + _TICK for each in changes)))


async def settle(tracking: Tracking, model: str, kind: Kind = MODELS) -> Model:
    """Points the alias of Production to what the record says, which a killed command may have left undone; to nothing
    where that version was deleted in MLflow.

    Another command may add to the record meanwhile, and be faster. Raises FactoryError.
    """
    found = await find(tracking, model, kind)
    for _ in range(_SETTLING):
        if found.production is None or not found.has(found.production):
            await tracking.call(partial(kind.unpoint, name=model, alias=PRODUCTION))
        else:
            await tracking.call(partial(kind.point, name=model, alias=PRODUCTION, number=found.production))
        now = await find(tracking, model, kind)
        if now.changes == found.changes:
            return now
        found = now
    raise Conflict(f"Other commands go on changing stages of the {kind.noun} '{model}'. Try again.", field="model")


def _version(model: Model, version: int) -> Version:
    for each in model.versions:
        if each.version == version:
            return each
    known = ", ".join(str(each.version) for each in model.versions) or "none"
    raise NotFound(f"The {model.kind} '{model.name}' has no version {version}; it has: {known}.", field="version")


def _found_or_created(
    client: MlflowClient, kind: Kind, name: str, where: str, create: Callable[[MlflowClient], None]
) -> ModelVersion:
    """Numbers grow, and a version is seen by everyone before the next one is made: of two processes that make one at
    once the later sees both, and removes its own."""
    if not kind.versions(client, name, where):
        create(client)
    kept, *others = sorted(kind.versions(client, name, where), key=lambda each: int(each.version))
    for other in others:
        with unless(GONE):
            kind.delete(client, name, other)
    return kept


def _find(client: MlflowClient, model: str, kind: Kind) -> Model:
    tags = kind.tags(client, model)
    if tags is None:
        raise _none(kind, model)
    changes = tuple(_changes(tags, kind, model))
    following = stages.after(changes)
    found = sorted(kind.versions(client, model), key=lambda each: -kind.number(each))
    return Model(
        kind=kind.noun,
        name=model,
        production=following.production,
        versions=tuple(_of_mlflow(kind, model, each, following.of.get(kind.number(each), "None")) for each in found),
        changes=changes,
    )


def _none(kind: Kind, name: str) -> NotFound:
    return NotFound(f"There is no registered {kind.noun} '{name[:64]}'.", field=kind.noun)


def _of_mlflow(kind: Kind, model: str, found: ModelVersion, stage: Stage) -> Version:
    own = (runs.GATE, NUMBER, RUN, REFUSAL)
    return Version(
        version=kind.number(found),
        stage=stage,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        run_id=kind.run_id(found),
        gate=found.tags.get(runs.GATE, ""),
        uri=kind.uri(model, found),
        tags={key: value for key, value in found.tags.items() if key not in own and not key.startswith(_OF_MLFLOW)},
        text=found.tags.get(TEXT, ""),
        refusal=_refusal(found),
    )


def _refusal(found: ModelVersion) -> dict[str, str]:
    try:
        return _REFUSALS.validate_json(found.tags.get(REFUSAL, "{}"))
    except ValidationError:
        raise Conflict(
            f"The tag '{REFUSAL}' of the version {found.version} of '{found.name}' was changed in MLflow: it is "
            "no JSON object of texts by language. Restore it there.",
            field="prompt",
        ) from None


def _changes(tags: Mapping[str, str], kind: Kind, model: str) -> Iterator[Change]:
    for name, value in sorted(tags.items()):
        if name.startswith(_CHANGE):
            try:
                yield Change.model_validate_json(value)
            except ValidationError:
                raise Conflict(
                    f"The tag '{name}' of the {kind.noun} '{model}' was changed in MLflow: it is no change of a stage. "
                    "Restore it or remove it there.",
                    field=kind.noun,
                ) from None
