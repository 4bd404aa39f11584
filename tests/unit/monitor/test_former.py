"""A database of the former version, with a column for every field: nothing is lost, and it can still write."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import database as common
from genaifactory_common import testing
from genaifactory_common.errors import Unavailable
from genaifactory_monitor import converters, former, indexed, migrations, release_stats, retention, schema, store
from genaifactory_monitor.database import FILE_NAME, Database, adding_up
from genaifactory_monitor.message_dicts import to_dict
from genaifactory_monitor.records import Filter, ReleaseFilter
from genaifactory_monitor.settings import Settings
from tests.unit.monitor.conftest import NOON, make_interaction, moment, opened, serving, with_every_field

MIGRATIONS = Path(migrations.__file__).parent
LISTS = ("attempts", "passages", "citations", "verdicts", "input")
INDEXED = (
    *(
        "tenant",
        "request_id",
        "start_time_us",
        "key_id",
        "route",
        "model",
        "prompt_version",
        "index_version",
        "outcome",
    ),
    *("cached", "refused", "prompt_tokens", "completion_tokens", "cached_prompt_tokens", "cost_micros", "currency"),
    *("time_to_first_token_us", "duration_us"),
)
LAST_FIELD = 30
"""Of the former version's Interaction."""
# As the former version made it.
TABLE = sa.Table(
    "interactions",
    sa.MetaData(),
    *(sa.Column(name, schema.interactions.c[name].type) for name in (*INDEXED, "size_bytes")),
    *(sa.Column(column.name, column.type) for column in schema.former_columns),
)


def kept(message: monitor_pb2.Interaction) -> monitor_pb2.Interaction:
    return converters.interaction(message, "interactions[0]", now_us=NOON * 10**6, max_bytes=10**7)


def full(count: int, name: str = "r") -> list[monitor_pb2.Interaction]:
    """With every field of the former version."""
    chance = random.Random(3)
    items = [kept(make_interaction(f"{name}{i:03}", at=i, **with_every_field(chance))) for i in range(count)]
    for item in items:
        for field, _ in item.ListFields():
            if field.number > LAST_FIELD:
                item.ClearField(field.name)  # type: ignore[arg-type]  # of those that it has
    return items


async def write_as_the_former_version(connection: AsyncConnection, items: Iterable[monitor_pb2.Interaction]) -> None:
    texts = ("principal", "task", "conversation_id", "trace_id", "error_reason", "error_message", "output")
    rows = [
        {name: value for name, value in indexed.values(item).items() if name in INDEXED}
        | {name: getattr(item, name) for name in texts}
        | {name: [to_dict(each) for each in getattr(item, name)] for name in LISTS}
        | {"end_user": item.user, "size_bytes": item.ByteSize()}
        for item in items
    ]
    await connection.execute(sa.insert(TABLE), rows)


async def make_former(settings: Settings, folder: Path, items: Iterable[monitor_pb2.Interaction]) -> None:
    """A database as the former version leaves it."""
    await asyncio.to_thread(copy_migrations, folder, "0001*")
    database = layout_of(settings, folder)
    await database.open()
    async with database.writing() as connection:
        await write_as_the_former_version(connection, items)
    await database.close()


def layout_of(settings: Settings, folder: Path) -> common.Database:
    """The monitor's database with other migrations."""
    layout = common.Layout("monitor", "The database", FILE_NAME, "all", folder, "alembic_version", 0x67656E61)
    return common.Database(layout, data_dir=settings.data_dir, url=settings.database_url, store=settings.store)


def copy_migrations(folder: Path, pattern: str) -> None:
    (folder / "versions").mkdir(parents=True, exist_ok=True)
    for script in (MIGRATIONS / "versions").glob(pattern):
        shutil.copy(script, folder / "versions")


@pytest.fixture
async def upgraded(settings: Settings, tmp_path: Path) -> AsyncIterator[Database]:
    """A database with 25 records of the former version, opened by this one."""
    await make_former(settings, tmp_path / "former", full(25))
    async with opened(settings) as database:
        yield database


async def sums(database: Database) -> list[tuple[Any, ...]]:
    async with database.reading() as connection:
        rows = await connection.execute(
            sa.select(schema.release_arm_sums).order_by(*schema.release_arm_sums.primary_key)
        )
        return [tuple(round(value, 3) if isinstance(value, float) else value for value in row) for row in rows]


async def count_all(database: Database) -> int:
    """Counts until nothing is left, or another replica counts; returns how many records were added up."""
    counted = 0
    while count := await former.count_batch(database):
        counted += count
        assert counted < 1000, "records are counted again and again"
    return counted


async def test_records_of_the_former_version_come_back_as_they_were(upgraded: Database) -> None:
    await store.record(upgraded, full(5, "new"))
    for _ in range(2):  # the second time when they are counted
        page = await store.page(upgraded, Filter("acme"), limit=50, max_bytes=10**9, newest_first=False)
        assert {item.request_id: item for item in page.interactions} == {
            item.request_id: item for item in (*full(25), *full(5, "new"))
        }
        await count_all(upgraded)


async def test_export_and_filters_find_records_of_the_former_version(settings: Settings, tmp_path: Path) -> None:
    testing.act_as()
    blocked = types_pb2.Verdict(action=types_pb2.ACTION_BLOCK)
    items = [kept(make_interaction("a")), kept(make_interaction("b", at=1, verdicts=[blocked]))]
    await make_former(settings, tmp_path / "former", items)
    async with serving(settings) as monitor:
        # Also before they are counted, which a monitor does beside its requests.
        found = await monitor.query(filter=monitor_pb2.InteractionFilter(guardrail_action=types_pb2.ACTION_MASK))
        assert [item.request_id for item in found.interactions] == ["b"]
        assert [json.loads(line)["request_id"] for line in await monitor.export(start_time=moment(0))] == ["a", "b"]


async def test_a_record_that_the_former_version_stored_is_known_when_it_arrives_again(upgraded: Database) -> None:
    assert await store.record(upgraded, full(25)) == []
    await count_all(upgraded)
    assert await store.record(upgraded, full(25)) == []
    assert sum(row[schema.release_arm_sums.c.keys().index("requests")] for row in await sums(upgraded)) == 25


async def test_counting_gives_the_sums_that_recording_gives(
    settings: Settings, sqlite_settings: Settings, tmp_path: Path
) -> None:
    items = full(450)  # three batches
    await make_former(settings, tmp_path / "former", items)
    async with opened(settings) as database:
        assert await former.count_batch(database) == 200
    async with opened(settings) as database, opened(settings) as replica:  # as after a restart, and beside another
        beside = await asyncio.gather(count_all(database), count_all(replica))
        assert sum(beside) + await count_all(database) == 250
        assert await count_all(replica) == 0
        counted = await sums(database)
    elsewhere = sqlite_settings.model_copy(update={"data_dir": tmp_path / "elsewhere", "database_url": None})
    async with opened(elsewhere) as database:
        await store.record(database, items)
        assert await sums(database) == counted != []


async def test_the_former_version_works_on_the_migrated_database(upgraded: Database) -> None:
    """During an update, and after a rollback."""
    (own, late) = full(2, "late")
    await store.record(upgraded, [own])
    async with upgraded.writing() as connection:
        await write_as_the_former_version(connection, [late])
        rows = (await connection.execute(sa.select(TABLE).where(TABLE.c.request_id == own.request_id))).mappings()
        (shown,) = rows
    assert [shown[name] for name in LISTS] == [[]] * len(LISTS)
    assert (shown["output"], shown["model"]) == ("", own.model)
    page = await store.page(upgraded, Filter("acme"), limit=50, max_bytes=10**9, newest_first=False)
    assert late in page.interactions
    assert await count_all(upgraded) == 26


async def test_the_version_that_counted_evaluations_works_on_the_migrated_database(
    settings: Settings, tmp_path: Path
) -> None:
    """What it stores before the migration, and after a rollback, is read, billed, deleted, and keeps its sums."""
    later = ("evaluation", "adapter", "split", "arm", "arm_chosen")
    table = schema.release_hours
    early, late = [kept(make_interaction(name, evaluation="e-1", adapter="support-2")) for name in ("early", "late")]
    await make_with(settings, tmp_path / "before", "000[12]*", table, later, early)
    async with opened(settings) as database:
        await store.record(database, [kept(make_interaction("own"))])
        await write_and_count(database, late, table, later)
        page = await store.page(database, Filter("acme"), limit=50, max_bytes=10**9, newest_first=False)
        assert [item.request_id for item in page.interactions] == ["early", "late", "own"]
        assert page.interactions[0] == early
        assert [row[schema.release_arm_sums.c.keys().index("requests")] for row in await sums(database)] == [1]
        async with database.reading() as connection:
            assert await connection.scalar(sa.select(table.c.requests)) == 2
        assert await count_all(database) == 0
        await retention.sweep(database, (NOON + 7200) * 10**6, batch=10)
        assert await sums(database) == []
        async with database.reading() as connection:
            assert (await connection.execute(sa.select(table))).all() == []


async def test_the_version_without_splits_works_on_the_migrated_database(settings: Settings, tmp_path: Path) -> None:
    """What it adds up before the migration, and after a rollback, is part of what its releases did."""
    later = ("split", "arm", "arm_chosen")
    early, late = [kept(make_interaction(name, adapter="support-2")) for name in ("early", "late")]
    await make_with(settings, tmp_path / "before", "000[1-5]*", schema.release_sums, later, early)
    async with opened(settings) as database:
        own = make_interaction("own", adapter="support-2"), make_interaction("of-arm", split="trial", arm="eight")
        await store.record(database, [kept(item) for item in own])
        await write_and_count(database, late, schema.release_sums, later)
        period = release_stats.whole_hours(NOON * 10**6, (NOON + 60) * 10**6)
        found = await release_stats.between(database, ReleaseFilter("acme", "docs", "", *period))
        assert [(row.split, row.adapter, row.requests) for row in found] == [("", "support-2", 3), ("trial", "", 1)]
        assert await release_stats.between(database, ReleaseFilter("acme", "docs", "trial", *period)) == found[1:]
        assert await release_stats.between(database, ReleaseFilter("rival", "docs", "", *period)) == []
        page = await store.page(database, Filter("acme"), limit=50, max_bytes=10**9, newest_first=False)
        assert {item.request_id for item in page.interactions} == {"early", "late", "own", "of-arm"}


async def make_with(
    settings: Settings, folder: Path, pattern: str, table: sa.Table, later: Sequence[str], item: monitor_pb2.Interaction
) -> None:
    """A database with the migrations of a former version, in which it has stored a record."""
    await asyncio.to_thread(copy_migrations, folder, pattern)
    before = layout_of(settings, folder)
    await before.open()
    await write_and_count(before, item, table, later)
    await before.close()


async def write_and_count(
    database: common.Database, item: monitor_pb2.Interaction, sums: sa.Table, later: Sequence[str]
) -> None:
    """As a former version, without the columns `later`, stores a record and adds it to its sums."""
    columns = [c for c in schema.interactions.c if c.name not in later]
    table = sa.Table("interactions", sa.MetaData(), *(sa.Column(c.name, c.type) for c in columns))
    row = {**indexed.values(item), "size_bytes": item.ByteSize(), "guardrail": "", "record": item.SerializeToString()}
    row = {name: value for name, value in row.items() if name not in later}
    texts = {c.name: [] if isinstance(c.type, sa.JSON) else "" for c in schema.former_columns}
    values = {c.name: 0 for c in sums.c} | {"requests": 1, "hour_us": NOON * 10**6, "currency": "USD"}
    versions = ("route", "tenant", "model", "adapter", "prompt_version", "index_version")
    values |= {name: getattr(item, name) for name in versions if name in sums.c}
    async with database.writing() as connection:
        await connection.execute(sa.insert(table), [row | texts])
        await connection.execute(adding_up(sums, into_postgresql=database.postgresql), [values])


async def test_a_migration_that_fails_leaves_what_was_there(settings: Settings, tmp_path: Path) -> None:
    await make_former(settings, tmp_path / "former", full(3))
    broken = tmp_path / "broken"
    await asyncio.to_thread(copy_migrations, broken, "0*")
    last = max(script.name[:4] for script in await asyncio.to_thread(lambda: list((broken / "versions").iterdir())))
    names = f'revision = "broken"\ndown_revision = "{last}"\n\n\n'
    script = names + 'def upgrade(op):\n    op.execute("SELECT no_such_column")\n'
    await asyncio.to_thread((broken / "versions" / "broken.py").write_text, script)
    database = layout_of(settings, broken)
    with pytest.raises((Unavailable, sa.exc.ProgrammingError)):
        await database.open()
    async with opened(settings) as again:
        page = await store.page(again, Filter("acme"), limit=50, max_bytes=10**9, newest_first=False)
        assert list(page.interactions) == full(3)
