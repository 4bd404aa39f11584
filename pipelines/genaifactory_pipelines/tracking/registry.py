"""The registry: versions of a model, which come of runs, and the stages that people give them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from genaifactory_common.errors import Conflict, NotFound
from genaifactory_common.specs.names import NAME
from genaifactory_pipelines.tracking import runs, stages
from genaifactory_pipelines.tracking.client import GONE, MADE, Tracking, unless
from genaifactory_pipelines.tracking.stages import Action, Change, Stage
from genaifactory_pipelines.values import Values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CANDIDATE = "candidate"
"""Alias of the newest version."""
PRODUCTION = "production"
"""Alias of the version in Production."""
_CHANGE = "genaifactory.change."
"""Tags of the registered model that hold its record of stages: each change has a tag of its own, so that two commands
at once both add theirs. The time comes first in the name."""
_TICK = timedelta(microseconds=1)
_SETTLING = 10
"""How often the alias is set anew, because others add to the record."""
_PAGE = 200


class Version(Values):
    """A version of a model."""

    version: int
    stage: Stage
    created: datetime
    run_id: str
    gate: str
    """"passed", "not passed", or empty for a version that was not made by the step register."""
    uri: str
    """By which the model server loads it."""
    tags: dict[str, str]
    """What was trained on what, and the SHA-256 of the weights."""


class Model(Values):
    """A registered model."""

    name: str
    production: int | None
    versions: tuple[Version, ...]
    """The newest first."""
    changes: tuple[Change, ...]
    """The oldest first."""


async def add(tracking: Tracking, model: str, run_id: str, source: str, tags: dict[str, str]) -> int:
    """The version of a run: the same one, whoever registers it and however often. Raises FactoryError.

    source: where its files are, within the run's artifacts.
    """
    await tracking.call(partial(_make, model=model))
    create = partial(_found_or_created, model=model, run_id=run_id, source=source, tags=tags)
    version = await tracking.call(create)
    await tracking.call(partial(_point, model=model, alias=CANDIDATE, version=version, only_to_newer=True))
    return version


async def models(tracking: Tracking) -> tuple[Model, ...]:
    """Every registered model whose name the platform could give. Raises FactoryError."""
    names = await tracking.call(lambda client: [each.name for each in _pages(client.search_registered_models, "")])
    return tuple([await find(tracking, name) for name in sorted(names) if re.fullmatch(NAME, name)])


async def find(tracking: Tracking, model: str) -> Model:
    """One model. Raises FactoryError: NotFound when there is none."""
    if re.fullmatch(NAME, model) is None:  # it becomes part of queries
        raise NotFound(f"There is no registered model '{model[:64]}'.", field="model")
    return await tracking.call(partial(_find, model=model))


async def change(
    tracking: Tracking,
    model: str,
    version: int | None,
    action: Action,
    *,
    by: str,
    reason: str,
    despite_gate: bool = False,
) -> Model:
    """Adds to the record of stages; the model afterwards. Raises FactoryError.

    version: None for "rollback". Conflict when the change does not apply, also because another one came first, or when
    the version's run did not pass its gate and this is not `despite_gate`.
    """
    before = await settle(tracking, model)
    moved = before.production or 0 if version is None else version
    run_id, gate = "", ""
    if version is not None or before.production is not None:
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
    stages.require_applies(stages.after(before.changes), wanted)
    if wanted.despite_gate and not despite_gate:
        raise Conflict(
            f"The run of version {moved} {'did not pass its gate' if gate else 'has no gate'}. Register one that did, "
            "or promote it despite that.",
            field="version",
        )
    # The name is made once, so that a repeated request sets the same tag again.
    tag = f"{_CHANGE}{wanted.at:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}"
    await tracking.call(lambda client: client.set_registered_model_tag(model, tag, wanted.model_dump_json()))
    now = await settle(tracking, model)
    at = now.changes.index(wanted)
    if stages.after(now.changes[:at]) == stages.after(now.changes[: at + 1]):
        raise Conflict(
            f"Another change of the model '{model}' came first, so that this one had no effect. Look at its stages, "
            "and decide again.",
            field="model",
        )
    return now


def _next(changes: Sequence[Change]) -> datetime:
    """The time of a change after these, by whatever clocks they were made: the record is in the order of the times."""
    return max((datetime.now(UTC), *(each.at.astimezone(UTC) + _TICK for each in changes)))


async def settle(tracking: Tracking, model: str) -> Model:
    """Points the alias of Production to what the record says, which a killed command may have left undone.

    Another command may add to the record meanwhile, and be faster. Raises FactoryError.
    """
    found = await find(tracking, model)
    for _ in range(_SETTLING):
        if found.production is None:
            await tracking.call(lambda client: client.delete_registered_model_alias(model, PRODUCTION))
        else:
            await tracking.call(partial(_point, model=model, alias=PRODUCTION, version=found.production))
        now = await find(tracking, model)
        if now.changes == found.changes:
            return now
        found = now
    raise Conflict(f"Other commands go on changing stages of the model '{model}'. Try again.", field="model")


def _version(model: Model, version: int) -> Version:
    for each in model.versions:
        if each.version == version:
            return each
    known = ", ".join(str(each.version) for each in model.versions) or "none"
    raise NotFound(f"The model '{model.name}' has no version {version}; it has: {known}.", field="version")


def _make(client: MlflowClient, model: str) -> None:
    with unless(MADE):
        client.create_registered_model(model)


def _found_or_created(client: MlflowClient, model: str, run_id: str, source: str, tags: dict[str, str]) -> int:
    """Numbers grow, and a version is seen by everyone before the next one is made: of two processes that make one at
    once the later sees both, and removes its own."""
    if not _of_run(client, model, run_id):
        client.create_model_version(model, source, run_id, tags=tags)
    kept, *others = _of_run(client, model, run_id)
    for other in others:
        with unless(GONE):
            client.delete_model_version(model, str(other))
    return kept


def _of_run(client: MlflowClient, model: str, run_id: str) -> list[int]:
    query = f"name = '{model}' and run_id = '{run_id}'"
    return sorted(int(each.version) for each in _pages(client.search_model_versions, query))


def _point(client: MlflowClient, model: str, alias: str, version: int, only_to_newer: bool = False) -> None:
    current = client.get_registered_model(model).aliases.get(alias)
    if current is not None and (int(current) == version or (only_to_newer and int(current) > version)):
        return
    client.set_registered_model_alias(model, alias, str(version))


def _find(client: MlflowClient, model: str) -> Model:
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == GONE:
            raise NotFound(f"There is no registered model '{model}'.", field="model") from None
        raise
    changes = tuple(_changes(registered))
    following = stages.after(changes)
    found = sorted(_pages(client.search_model_versions, f"name = '{model}'"), key=lambda each: -int(each.version))
    return Model(
        name=model,
        production=following.production,
        versions=tuple(_of_mlflow(model, each, following.of.get(int(each.version), "None")) for each in found),
        changes=changes,
    )


def _of_mlflow(model: str, found: ModelVersion, stage: Stage) -> Version:
    return Version(
        version=int(found.version),
        stage=stage,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        run_id=found.run_id or "",
        gate=found.tags.get(runs.GATE, ""),
        uri=f"models:/{model}/{found.version}",
        tags={name: value for name, value in found.tags.items() if name != runs.GATE},
    )


def _changes(model: RegisteredModel) -> Iterator[Change]:
    for name, value in sorted(model.tags.items()):
        if name.startswith(_CHANGE):
            try:
                yield Change.model_validate_json(value)
            except ValidationError:
                raise Conflict(
                    f"The tag '{name}' of the model '{model.name}' was changed in MLflow: it is no change of a stage. "
                    "Restore it or remove it there.",
                    field="model",
                ) from None


def _pages(search: Any, query: str) -> Sequence[Any]:
    found, token = [], None
    while True:
        page = search(query, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
