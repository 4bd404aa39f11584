"""The factory.yaml that is followed, and the development key in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from genaifactory_common import identity, passes, specs, tokens
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.followed import Fixed
from genaifactory_local import configuration
from genaifactory_local.state import State

ANSWER = "/genaifactory.orchestrator.v1.OrchestratorService/Answer"
DEFAULT = Path(configuration.__file__).with_name("factory.yaml")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".genaifactory"
    folder.mkdir()
    return State(folder)


def test_without_a_file_of_ones_own_the_commented_default_is_copied_to_the_state_folder(state: State) -> None:
    chosen = configuration.choose(state, None)
    assert chosen == state.folder / "factory.yaml"
    assert chosen.read_text(encoding="utf-8") == DEFAULT.read_text(encoding="utf-8")


def test_an_edited_default_is_not_overwritten(state: State) -> None:
    configuration.choose(state, None).write_text("version: 1")
    assert configuration.choose(state, None).read_text() == "version: 1"


def test_the_working_folders_file_overrides_the_default_and_a_given_one_both(state: State) -> None:
    own, given = Path("factory.yaml").absolute(), Path("other.yaml").absolute()
    for path in (own, given):
        path.write_text("version: 1")
    assert configuration.choose(state, None) == own
    assert configuration.choose(state, Path("other.yaml")) == given


def test_a_given_file_that_does_not_exist_is_refused(state: State) -> None:
    with pytest.raises(InvalidArgument, match=r"nowhere\.yaml does not exist"):
        configuration.choose(state, Path("nowhere.yaml"))


def test_the_default_has_a_route_with_documents_and_one_without() -> None:
    factory = specs.load(DEFAULT)
    assert {route.name: route.task for route in factory.routes} == {"rag": "rag", "chat": "chat"}


def test_the_development_key_may_do_everything_in_the_first_tenant_after_every_reload() -> None:
    source = configuration.Source(DEFAULT, "gf-secret")
    for _ in range(2):
        key = source.current.tenants[0].keys[-1]
        role = next(role for role in source.current.roles if role.name == key.role)
        assert key.sha256 == specs.hash_key("gf-secret")
        assert role.permissions == configuration.PERMISSIONS
        assert role.routes == ("*",)
        source.replace(specs.load(DEFAULT))
    specs.Factory.model_validate(source.current.model_dump())  # nothing stands twice


async def test_followers_of_the_file_receive_a_change_with_the_key(tmp_path: Path) -> None:
    path = tmp_path / "factory.yaml"
    text = await asyncio.to_thread(DEFAULT.read_text, encoding="utf-8")
    await asyncio.to_thread(path.write_text, text, encoding="utf-8")
    source = await asyncio.to_thread(configuration.Source, path, "gf-secret")
    changed: asyncio.Queue[specs.Change] = asyncio.Queue()
    source.follow(changed.put_nowait)
    watching = asyncio.create_task(source.watch(interval_seconds=0.01))
    try:
        await asyncio.to_thread(path.write_text, text.replace("passages: 5", "passages: 7"), encoding="utf-8")
        async with asyncio.timeout(10):
            await changed.get()
    finally:
        watching.cancel()
    assert source.current.routes[0].passages == 7
    assert source.current.tenants[0].keys[-1].id == configuration.DEVELOPMENT_KEY_ID


async def test_signing_in_makes_a_caller_that_services_accept() -> None:
    signer = tokens.Signer.generate()
    configuration.sign_in(signer, "dev")
    shown = identity.passes()
    assert shown is not None
    metadata = dict(shown.metadata(ANSWER, 60))
    verifier = tokens.Verifier(Fixed(tokens.key_set([signer.public_key])))
    caller = await verifier.verify(metadata[passes.CONTEXT], ANSWER)
    assert (caller.tenant, caller.key_id) == ("dev", configuration.DEVELOPMENT_KEY_ID)
    caller.require("ingest")
