"""Sources of factory.yaml: what is new, changed and gone, access lists, and places that are damaged."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytest_asyncio
import yaml

from genaifactory_common import specs
from genaifactory_local import testing
from genaifactory_local.testing import Platform
from tests.integration import s3
from tests.integration.commands import genaifactory
from tests.integration.s3 import Bucket

# The platform is another process, which blocking here does not affect.
pytestmark = [pytest.mark.slow, pytest.mark.allow_blocking, pytest.mark.asyncio(loop_scope="module")]


OUTSIDER, HR = "gf-outsider", "gf-hr"
"""Keys with the permission 'ingest' alone; the second is of the group 'hr'."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    folder = tmp_path_factory.mktemp("sources")
    document = yaml.safe_load(testing.DEFAULT_FACTORY.read_text(encoding="utf-8"))
    document["roles"].append({"name": "ingesting", "permissions": ["ingest"]})
    document["tenants"][0]["keys"] = [
        {"id": name, "sha256": specs.hash_key(key), "role": "ingesting", "groups": groups}
        for name, key, groups in (("outsider", OUTSIDER, []), ("hr", HR, ["hr"]))
    ]
    (folder / "factory.yaml").write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    (folder / "first").mkdir()
    (folder / "first" / "a.md").write_text("# First\n\nThe first folder that was given.\n")
    arguments = (str(folder / "first"), "--config", str(folder / "factory.yaml"))
    async with testing.started(folder / "state", *arguments) as process:
        yield process.platform


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def place(platform: Platform, name: str, **fields: object) -> Path:
    """An empty folder, which alone factory.yaml names as a source."""
    folder = platform.state.folder.parent / f"{name}-folder"
    folder.mkdir(exist_ok=True)
    source = {"name": name, "type": "folder", "path": str(folder), "knowledge_base": "documents", **fields}
    configure(platform, [source])
    return folder


def configure(platform: Platform, sources: list[dict[str, object]]) -> None:
    path = platform.state.folder.parent / "factory.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["sources"] = sources
    changed = path.with_suffix(".new")
    changed.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    os.replace(changed, path)


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(f"# {name}\n\n{text}\n")


async def synced(platform: Platform, *arguments: str) -> dict[str, Any]:
    code, out, err = await genaifactory(platform.state.folder, "sources", "sync", "--json", *arguments)
    assert code == 0, err
    (found,) = json.loads(out)
    return dict(found)


async def stored(platform: Platform, source: str) -> dict[str, list[str]]:
    """Ids of a source's documents, with their groups."""
    arguments = ("documents", "list", "--json", "--source", source)
    _, out, _ = await genaifactory(platform.state.folder, *arguments)
    return {each["id"]: each["groups"] for each in json.loads(out)}


async def test_what_is_new_changed_and_gone_is_stored_replaced_and_removed(platform: Platform) -> None:
    wiki = place(platform, "wiki", exclude=["drafts/*"])
    write(wiki, one="Pumps are served in May.", two="Filters are served in June.", three="Valves are served in July.")
    (wiki / "drafts").mkdir()
    write(wiki / "drafts", idea="Nobody has decided this.")
    assert (await synced(platform))["added"] == 3
    assert list(await stored(platform, "wiki")) == ["wiki/one.md", "wiki/three.md", "wiki/two.md"]
    again = await synced(platform, "wiki")
    assert (again["unchanged"], again["added"], again["replaced"], again["removed"]) == (3, 0, 0, 0)
    write(wiki, one="Pumps are served in April.")
    (wiki / "two.md").rename(wiki / "renamed.md")
    (wiki / "three.md").unlink()
    found = await synced(platform, "--shrinking")
    assert (found["replaced"], found["removed"], found["unchanged"]) == (1, 2, 0)
    assert list(await stored(platform, "wiki")) == ["wiki/one.md", "wiki/renamed.md"]
    code, out, _ = await genaifactory(platform.state.folder, "documents", "show", "wiki/renamed.md", "--json")
    assert code == 0
    assert json.loads(out)["passages"] == 1  # a renamed file was a duplicate of itself for a moment
    code, out, _ = await genaifactory(platform.state.folder, "sources", "list")
    assert code == 0
    assert out.splitlines()[1].split() == ["wiki", "folder", str(wiki), "documents", "-", "2"]
    assert "first" in " ".join(await stored(platform, "")), "documents of others stay"


async def test_a_changed_access_list_replaces_what_is_stored(platform: Platform) -> None:
    secret = place(platform, "secret")
    write(secret, pay="The pay grades are A to F.")
    await synced(platform)
    place(platform, "secret", groups=["hr"])
    assert (await synced(platform))["replaced"] == 1
    assert await stored(platform, "secret") == {"secret/pay.md": ["hr"]}


async def test_a_key_neither_removes_nor_replaces_what_it_may_not_see_and_fails(platform: Platform) -> None:
    folder = place(platform, "staff", groups=["hr"])
    write(folder, kept="The bonus is a month.", gone="The old bonus was two months.")
    await synced(platform)
    (folder / "gone.md").unlink()
    write(folder, new="Part-time staff get a share.")
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync", "--key", OUTSIDER)
    assert code == 1
    assert "for the groups hr, and the API key has none of them" in err
    assert list(await stored(platform, "staff")) == ["staff/gone.md", "staff/kept.md", "staff/new.md"]
    place(platform, "staff")
    code, out, _ = await genaifactory(platform.state.folder, "sources", "sync", "--key", OUTSIDER)
    assert code == 1
    assert "refused staff/kept.md: A document of this id is stored that the caller may not see" in out
    assert set(map(tuple, (await stored(platform, "staff")).values())) == {("hr",)}
    place(platform, "staff", groups=["hr"])
    found = await synced(platform, "--key", HR)
    assert (found["removed"], found["unchanged"], found["complete"]) == (1, 2, True)


@pytest.mark.parametrize("damage", ["emptied", "others", "missing"])
async def test_a_damaged_place_changes_nothing(platform: Platform, damage: str) -> None:
    name = f"damaged-{damage}"
    folder = place(platform, name)
    write(folder, **{f"page{n}": f"Machine {name} {n} is in hall {n}." for n in range(4)})
    await synced(platform)
    before = await stored(platform, name)
    shutil.rmtree(folder)
    if damage != "missing":
        folder.mkdir()
    if damage == "others":  # as many documents as before, but of something else that is mounted there now
        write(folder, **{f"other{n}": f"This is another text about {n}." for n in range(4)})
    code, out, err = await genaifactory(platform.state.folder, "sources", "sync", name)
    assert (code, out) == (1, "")
    assert ("does not exist" if damage == "missing" else "4 of the 4 stored documents") in err
    assert await stored(platform, name) == before


async def test_a_run_of_several_sources_changes_nothing_when_one_is_damaged(platform: Platform) -> None:
    good, bad = place(platform, "good"), place(platform, "bad")
    sources: list[dict[str, object]] = [
        {"name": each.name.removesuffix("-folder"), "type": "folder", "path": str(each), "knowledge_base": "documents"}
        for each in (good, bad)
    ]
    configure(platform, sources)
    write(good, kept="The good source has this.", gone="The good source had this.")
    write(bad, kept="The bad source has this.")
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert code == 0, err
    (good / "gone.md").unlink()
    (bad / "kept.md").unlink()
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert code == 1
    assert "of the source 'bad' are gone" in err
    assert list(await stored(platform, "good")) == ["good/gone.md", "good/kept.md"]


async def test_ids_of_another_source_are_not_overwritten(platform: Platform) -> None:
    folder = place(platform, "first")
    write(folder, a="This would replace a document of the folder of the first start.")
    code, out, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert (code, out) == (1, "")
    assert "The document 'first/a.md' is from" in err
    code, out, _ = await genaifactory(platform.state.folder, "documents", "show", "first/a.md")
    assert "The first folder that was given." in out


@pytest.fixture
def bucket(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3.serving("company") as found:
        for name, value in {
            "AWS_ENDPOINT_URL": found.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": s3.KEY_ID,
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        source: dict[str, object] = {"name": "store", "type": "bucket", "url": "s3://company/texts"}
        configure(platform, [source | {"knowledge_base": "documents", "groups": ["sales"], "exclude": ["old/*"]}])
        yield found


async def test_a_bucket_is_read_over_the_network_by_its_prefix_and_patterns(platform: Platform, bucket: Bucket) -> None:
    bucket.objects |= {
        "elsewhere/x.md": b"# X\n\nThis one is outside of the prefix.\n",
        "texts/.git/config.md": b"hidden",
        "texts/big.bin": b"of a type that is not read",
        "texts/old/a.md": b"# Old\n\nThis one is excluded.\n",
        "texts/prices & terms.md": "# Giá\n\nGiá của máy bơm là 12 triệu đồng.\n".encode(),
        "texts/sub/deep.md": b"# Deep\n\nThe warranty of the valve lasts 36 months.\n",
    }
    found = await synced(platform)
    assert (found["added"], found["complete"]) == (2, True)
    skipped = {each["name"]: each["reason"] for each in found["skipped"]}
    assert skipped == {"store/.git/config.md": "hidden", "store/big.bin": "of a type that is not read"}
    assert await stored(platform, "store") == {"store/prices & terms.md": ["sales"], "store/sub/deep.md": ["sales"]}
    assert bucket.pages > 1
    bucket.objects["texts/sub/deep.md"] = b"# Deep\n\nThe warranty of the valve lasts 24 months.\n"
    del bucket.objects["texts/prices & terms.md"]
    found = await synced(platform)
    assert (found["replaced"], found["removed"], found["unchanged"]) == (1, 1, 0)
    bucket.objects["texts/empty.md"] = b""
    code, out, _ = await genaifactory(platform.state.folder, "sources", "sync")
    assert code == 1
    assert "refused store/empty.md: is empty" in out


async def test_a_bucket_that_refuses_or_is_gone_changes_nothing_and_leaks_nothing(
    platform: Platform, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.objects["texts/a.md"] = b"# A\n\nThis one is in the bucket of the refusals.\n"
    await synced(platform, "--shrinking")
    before = await stored(platform, "store")
    bucket.refuses = True
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert code == 1
    assert "The storage refuses access to s3://company/texts: check the credentials in the environment." in err
    bucket.refuses = False
    bucket.objects.clear()
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert code == 1
    assert "1 of the 1 stored documents" in err
    configure(platform, [{"name": "store", "type": "bucket", "url": "s3://other/x", "knowledge_base": "documents"}])
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert (code, "There is no s3://other/x." in err) == (1, True)
    assert "hunter2" not in err
    assert await stored(platform, "store") == before
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync")
    assert (code, err) == (1, "Buckets need genaifactory-pipelines[storage] installed here.\n")


async def test_web_pages_are_read_and_one_that_is_gone_is_removed(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "pump.html").write_text("<h1>Pump</h1><p>The pump of the web page weighs 31 kg.</p>")
    (tmp_path / "valve.html").write_text("<h1>Valve</h1><p>The valve of the web page weighs 4 kg.</p>")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            at = f"127.0.0.1:{server.server_port}"
            urls = [f"http://{at}/{name}.html" for name in ("pump", "valve")]
            site: dict[str, object] = {"name": "site", "type": "pages", "urls": urls, "knowledge_base": "documents"}
            configure(platform, [site | {"pause_seconds": 0}])
            code, out, _ = await genaifactory(platform.state.folder, "sources", "sync")
            assert code == 1
            assert out.count("is not public; private_addresses would allow it") == 2
            configure(platform, [site | {"pause_seconds": 0, "private_addresses": True}])
            assert (await synced(platform))["added"] == 2
            (tmp_path / "valve.html").unlink()
            found = await synced(platform)
            assert (found["removed"], found["unchanged"]) == (1, 1)
        finally:
            server.shutdown()
            thread.join()
    code, out, _ = await genaifactory(platform.state.folder, "sources", "sync")
    assert (code, "cannot be reached" in out) == (1, True)
    assert list(await stored(platform, "site")) == [f"site/{at}/pump.html"], "a site that is away loses nothing"
    code, out, _ = await genaifactory(platform.state.folder, "documents", "show", f"site/{at}/pump.html", "--json")
    assert json.loads(out)["uri"] == urls[0]


async def test_without_sources_the_commands_say_where_to_name_them(platform: Platform) -> None:
    configure(platform, [])
    for command in ("list", "sync"):
        code, out, _ = await genaifactory(platform.state.folder, "sources", command)
        assert code == 0
        assert "no sources in factory.yaml" in out
    code, _, err = await genaifactory(platform.state.folder, "sources", "sync", "wiki")
    assert code == 1
    assert "There is no source 'wiki' in factory.yaml; there are: none." in err
