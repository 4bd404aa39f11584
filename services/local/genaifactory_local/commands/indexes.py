"""`genaifactory reindex` and `genaifactory indexes`: index versions of a knowledge base."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common.errors import NotFound
from genaifactory_local import endpoints, runs, state
from genaifactory_local.commands.options import (
    NOT_PASSED,
    JsonOption,
    KeyOption,
    KnowledgeBaseOption,
    StateOption,
    print_json,
    table,
)
from genaifactory_pipelines.evaluation import leaks
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.indexes import findings
from genaifactory_pipelines.steps import gate as gating
from genaifactory_pipelines.steps import reindex as step

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List and choose the index versions of a running platform.",
)

Result = TypeVar("Result")


def reindex(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run. Given again with the same options, it goes on.")
    ],
    knowledge_base: KnowledgeBaseOption = "documents",
    golden: Annotated[
        Path | None, typer.Option(help="Questions with the documents that answer them; see docs/evaluation.md.")
    ] = None,
    route: Annotated[
        str, typer.Option(help="The route that is asked. Without it: the first one that searches the knowledge base.")
    ] = "",
    gate: Annotated[
        str, typer.Option(help="A gate of factory.yaml. Without it: recall and nDCG not worse by more than 0.02.")
    ] = "",
    source: Annotated[
        list[str] | None, typer.Option(help="Read this source of factory.yaml before. May be given again.")
    ] = None,
    shrinking: Annotated[
        bool, typer.Option("--shrinking", help="Remove what is gone, even if it is more than least_share allows.")
    ] = False,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Keep a version that did not pass beside the active one.")
    ] = False,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Build the index again as the knowledge base is in factory.yaml now, check it, and let it serve.

    The version that serves until then is kept: `genaifactory indexes rollback` returns to it. Exit status 3: a check
    was not passed, and the version before goes on serving.

    Example: `genaifactory reindex -o shorter --golden golden.jsonl`
    """
    platform = endpoints.find(state_folder)
    factory = platform.factory()
    asked = step.route(factory, route, knowledge_base, field="--route") if golden is not None else ""
    wanted = step.Parameters(
        knowledge_base=knowledge_base,
        chunking=step.chunking(factory, knowledge_base),
        embedder=step.embedder(factory, knowledge_base),
        golden=golden,
        route=asked,
        gate=gating.named(factory, gate, compared=True) if gate else step.AS_GOOD,
        hidden=leaks.templates(factory, asked),
        sources=step.sources(factory, source or [], knowledge_base, field="--source"),
        shrinking=shrinking,
        keep_failed=keep_failed,
    )

    async def run() -> step.Outputs:
        async with runs.context(platform, key, output) as context:
            return await step.reindex.run(wanted, context)

    found = asyncio.run(run())
    report = output / step.reindex.name / step.REPORT
    if as_json:
        print_json({**found.model_dump(), "report": str(report)})
    else:
        for failed in found.failed:
            print(f"Not passed: {failed}")
        for name, value in found.metrics.items():
            print(f"{name} {value:.4g}")
        print(
            f"{found.version} serves, with {found.documents:,} documents in {found.passages:,} passages. "
            f"Back to {found.before}: genaifactory indexes rollback --knowledge-base {knowledge_base}"
            if found.passed
            else f"{found.before} serves as before."
        )
        print(f"Report: {report}")
    if not found.passed:
        raise typer.Exit(NOT_PASSED)


@app.command("list")
def list_indexes(
    knowledge_base: KnowledgeBaseOption = "documents",
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """List the index versions of a knowledge base, newest first.

    Example: `genaifactory indexes list`
    """
    found = _asked(lambda gateway: gateway.indexes(knowledge_base), key, state_folder)
    if as_json:
        print_json([_facts(each) for each in found])
        return
    shown = table("Version", "State", "Tokens of a passage", "Shared", "Embedding", "Documents", "Passages", "Made")
    for each in found:
        facts = {**_facts(each), "created": f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M}"}
        shown.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in facts.values()))
    Console().print(shown)


@app.command("rollback")
def rollback(
    knowledge_base: KnowledgeBaseOption = "documents",
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Let the version serve that served before; a second time, let the newer one serve again.

    Both hold the same documents, since everything is written into both.

    Example: `genaifactory indexes rollback`
    """

    async def swap(gateway: Gateway) -> gateway_pb2.SwapIndexResponse:
        indexes = await gateway.indexes(knowledge_base)
        before = findings.previous(indexes, knowledge_base, field="--knowledge-base")
        return await gateway.swap_index(knowledge_base, before.version)

    done = _asked(swap, key, state_folder)
    print(f"{done.active_version} serves; {done.previous_version} is kept.")


@app.command("drop")
def drop(
    version: Annotated[str, typer.Argument(help="A version that does not serve; `indexes list` shows them.")],
    knowledge_base: KnowledgeBaseOption = "documents",
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Remove a version that does not serve: writes become cheaper, and there is no way back to it.

    Example: `genaifactory indexes drop v2`
    """

    async def remove(gateway: Gateway) -> None:
        if version not in {each.version for each in await gateway.indexes(knowledge_base)}:
            raise NotFound(f"'{knowledge_base}' has no index version '{version}'.", field="VERSION")
        await gateway.drop_index(knowledge_base, version)

    _asked(remove, key, state_folder)
    print(f"{version} is removed.")


def _asked(work: Callable[[Gateway], Awaitable[Result]], key: str | None, state_folder: Path) -> Result:
    platform = endpoints.find(state_folder)

    async def run() -> Result:
        async with platform.connected(key) as channel:
            return await work(Gateway(channel, patience_seconds=0))

    return asyncio.run(run())


def _facts(index: gateway_pb2.Index) -> dict[str, str | int]:
    return {
        "version": index.version,
        "state": gateway_pb2.IndexState.Name(index.state).removeprefix("INDEX_STATE_").lower(),
        "chunk_tokens": index.chunk_tokens,
        "chunk_overlap_tokens": index.chunk_overlap_tokens,
        "embedding_model": index.embedding_model,
        "documents": index.documents,
        "passages": index.passages,
        "created": index.create_time.ToJsonString(),
    }
