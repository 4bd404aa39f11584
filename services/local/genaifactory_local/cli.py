"""The `genaifactory` command line: run, ask, ingest, remove, usage, export, smoke, config."""

from __future__ import annotations

import asyncio
import getpass
import importlib.metadata
import json
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import grpc.aio
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genaifactory_common import channels, specs
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_local import asking, configuration, documents, ledger, progress, reach, smoke, state

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="GenAI Factory: answers from your documents, with citations, guardrails and a record of every answer.",
)
config_app = typer.Typer(no_args_is_help=True, help="Check and explain factory.yaml, the one configuration file.")
app.add_typer(config_app, name="config")

StateOption = Annotated[
    Path, typer.Option("--state", envvar="GENAIFACTORY_STATE", help="Folder that holds the platform's state.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="GENAIFACTORY_API_KEY", help="API key. Without it: the key of the platform on --state."),
]
TenantOption = Annotated[
    str | None, typer.Option(help="Whose they are. Without it: the only tenant, or on this machine the first.")
]
KnowledgeBaseOption = Annotated[str, typer.Option(help="Where they are or go: a knowledge base of factory.yaml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")]


def main() -> None:
    """Runs the command line; an error is one line on stderr and a non-zero exit code."""
    try:
        app()
    except FactoryError as error:
        _fail(error.message)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")


def _fail(message: str) -> None:
    print(f"genaifactory: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"genaifactory {importlib.metadata.version('genaifactory-local')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # typer calls it back
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[DOCS]...", help="Folders or files to read first.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the OpenAI API; 0: any free one.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC API; 0: any free one.")] = 8081,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    config: Annotated[
        Path | None, typer.Option(help="The factory.yaml to follow. Without it: ./factory.yaml, or a default.")
    ] = None,
    knowledge_base: Annotated[
        str | None, typer.Option(help="Where the documents go. Without it: the first of factory.yaml.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Answer with this model, on vLLM: a folder with its weights, ORG/NAME of a hub, or an https:// folder."
        ),
    ] = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Start the platform: all six services in this process, until Ctrl-C.

    Reads Markdown, text, HTML, PDF and Word files from DOCS; without DOCS a small sample handbook. Prints the key and
    how to ask.

    Example: `genaifactory run ~/handbook --port 9000`
    """
    from genaifactory_local import run as platform_run  # loads all six services: only this command needs them

    platform_run.run(
        platform_run.Options(
            paths=tuple(paths or ()),
            state_folder=state_folder,
            config=config,
            knowledge_base=knowledge_base,
            host=host,
            http_port=port,
            grpc_port=grpc_port,
            model=model,
        ),
        Console(),
    )


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in Vietnamese or English.")],
    route: Annotated[str, typer.Option(help="Which route of factory.yaml answers.")] = "rag",
    conversation: Annotated[
        str | None, typer.Option(help="Continue this conversation; choose any name to start one.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Where the platform answers. Without it: the platform on --state.")
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Ask a running platform; the answer is printed as it is written, with its sources.

    Example: `genaifactory ask "How many days of annual leave do I have?"`
    """
    if url is None:
        platform = reach.find(state_folder)
        url, key = platform.http_url, key or platform.key()
    elif key is None:
        raise InvalidArgument("--url needs --key, or the environment variable GENAIFACTORY_API_KEY.", field="--key")
    asked = asking.Question(question, url, key, route, conversation)
    with asking.asked(asked) as (answer, pieces):
        for piece in pieces:
            if not as_json:
                print(piece, end="", flush=True)
    if as_json:
        _print_json(
            {
                "request_id": answer.request_id,
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "citations": answer.citations,
                "usage": answer.usage,
            }
        )
        return
    print()
    sources = sorted(answer.sources().items())
    if sources:
        print("\nSources")
    for number, source in sources:
        print(f"  [{number}] {source['title']} ({source['url']})")


@app.command()
def ingest(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Folders or files to read.", show_default=False)
    ] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Read a small bilingual sample handbook.")] = False,
    knowledge_base: KnowledgeBaseOption = "documents",
    group: Annotated[
        list[str] | None, typer.Option(help="Only keys with this group see the documents. May be given again.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="To filter by. May be given again.")
    ] = None,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Read more documents into a running platform.

    What is known already with the same content costs nothing; what has changed is replaced.

    Example: `genaifactory ingest ~/contracts --group legal --metadata year=2026`
    """
    pairs = dict(_pair(text) for text in metadata or ())
    if not paths and not samples:
        raise InvalidArgument("Give a PATH to read, or --samples.", field="PATH")
    found = documents.find([path.expanduser() for path in paths or ()] + [documents.SAMPLE] * samples)
    platform = reach.find(state_folder)
    sign_in = platform.signing_in(platform.tenant(tenant))
    console = Console(stderr=as_json)
    with progress.bar(console, len(found.documents)) as report:

        async def send() -> documents.Summary:
            async with _connected(platform) as channel:
                return await documents.ingest(
                    channel,
                    sign_in,
                    knowledge_base,
                    found.documents,
                    groups=group or (),
                    metadata=pairs,
                    on_progress=report,
                )

        summary = asyncio.run(send())
    if as_json:
        _print_json(
            {
                "added": summary.added,
                "replaced": summary.replaced,
                "unchanged": summary.unchanged,
                "duplicates": summary.duplicates,
                "passages": summary.passages,
                "skipped": found.skipped,
                "refused": [{"document_id": f.document_id, "message": f.message} for f in summary.failures],
            }
        )
    else:
        progress.print_summary(console, summary, found.skipped)
    if summary.failures:
        raise typer.Exit(1)


@app.command()
def remove(
    document_ids: Annotated[
        list[str], typer.Argument(metavar="DOCUMENT_ID...", help="As answers cite them: FOLDER/PATH.")
    ],
    knowledge_base: KnowledgeBaseOption = "documents",
    tenant: TenantOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Remove documents from a running platform; from then on no answer cites them.

    A file that is still in the DOCS of the next `genaifactory run` is read again.

    Example: `genaifactory remove handbook/leave.md`
    """
    platform = reach.find(state_folder)
    sign_in = platform.signing_in(platform.tenant(tenant))
    wanted = list(dict.fromkeys(document_ids))

    async def send() -> int:
        async with _connected(platform) as channel:
            return await documents.remove(channel, sign_in, knowledge_base, wanted)

    print(f"{asyncio.run(send())} of {len(wanted)} documents existed and are removed")


@app.command()
def usage(
    since: Annotated[str, typer.Option(help="From when: an age like 24h or 7d, or a date like 2026-11-21.")] = "30d",
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show requests, tokens and cost by day, key and model.

    Example: `genaifactory usage --since 7d`
    """
    start = ledger.moment(since, datetime.now(UTC), "--since")
    platform = reach.find(state_folder)
    rows = asyncio.run(ledger.usage(platform.grpc_address, key or platform.key(), start, platform.tls))
    if as_json:
        _print_json(
            [
                {
                    "day": row.day,
                    "key": row.key_id,
                    "model": row.model,
                    "requests": row.requests,
                    "errors": row.errors,
                    "prompt_tokens": row.usage.prompt_tokens,
                    "completion_tokens": row.usage.completion_tokens,
                    "cached_prompt_tokens": row.usage.cached_prompt_tokens,
                    "cost_micros": row.cost_micros,
                    "currency": row.currency,
                }
                for row in rows
            ]
        )
        return
    if not rows:
        print("No requests in this time.")
        return
    table = Table("Day", "Key", "Model", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Requests", "Failed", "Tokens in", "Out", "Cost"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = (row.requests, row.errors, row.usage.prompt_tokens, row.usage.completion_tokens)
        cost = f"{row.cost_micros / 1e6:,.4f} {row.currency}"
        table.add_row(row.day, escape(row.key_id), escape(row.model or "-"), *(f"{n:,}" for n in counts), cost)
    Console().print(table)


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Without it: the terminal.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From when: an age like 24h, or a date like 2026-11-21.")] = None,
    until: Annotated[str | None, typer.Option(help="Until when, exclusive; like --since.")] = None,
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    tenant: TenantOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Write every recorded question and answer as JSON lines, oldest first.

    Example: `genaifactory export --since 7d --output week.jsonl`
    """
    now = datetime.now(UTC)
    start = ledger.moment(since, now, "--since") if since else None
    end = ledger.moment(until, now, "--until") if until else None
    platform = reach.find(state_folder)
    sign_in = platform.signing_in(platform.tenant(tenant))

    async def write(file: BinaryIO) -> int:
        sign_in()
        count = 0
        async for piece in ledger.export(platform.address("monitor"), start, end, route, platform.tls):
            file.write(piece.jsonl)
            count += piece.count
        file.flush()
        return count

    if output is None:
        asyncio.run(write(sys.stdout.buffer))
        return
    # Questions and answers are private: the file is its owner's alone, and whole or not there.
    partial = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            count = asyncio.run(write(file))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{count} interactions in {output}")


@app.command("smoke")
def smoke_test(
    route: Annotated[str, typer.Option(help="Which route of factory.yaml answers.")] = "rag",
    question: Annotated[str, typer.Option(help="What to ask.")] = documents.SAMPLE_QUESTIONS[0],
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds in which the whole answer must come.")
    ] = 60.0,
    citation: Annotated[
        bool, typer.Option("--citation/--no-citation", help="Whether the answer must cite a document.")
    ] = True,
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Ask one question as a client would; fail unless an answer comes that cites a document.

    Example: `genaifactory smoke --route chat --no-citation`
    """
    platform = reach.find(state_folder)
    asked = asking.Question(
        question, platform.http_url, key or platform.key(), route, idle_timeout_seconds=timeout_seconds
    )
    smoke.test(asked, print, timeout_seconds=timeout_seconds, needs_citation=citation)


@config_app.command("check")
def config_check(
    file: Annotated[Path, typer.Argument(envvar="GENAIFACTORY_FACTORY_FILE", help="The file to check.")] = Path(
        "factory.yaml"
    ),
) -> None:
    """Say whether a factory.yaml is right, and if not, the path of every bad field.

    Example: `genaifactory config check factory.yaml`
    """
    try:
        factory = configuration.load(file)
    except specs.InvalidConfiguration as error:
        for problem in error.problems:
            print(f"{file}: {problem}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{file} is right: routes {', '.join(route.name for route in factory.routes)}")


@config_app.command("hash-key")
def config_hash_key(
    key: Annotated[str | None, typer.Argument(help="The key, or - to type it. Without it a new key is made.")] = None,
) -> None:
    """Make an API key and the hash of it that factory.yaml wants (tenants[].keys[].sha256).

    Example: `genaifactory config hash-key`
    """
    if key == "-":
        key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    if key is None:
        key = f"gf-{secrets.token_urlsafe(32)}"
        print(f"key:    {key}   (shown only now)")
    if not key:
        raise InvalidArgument("The key is empty.", field="KEY")
    print(f"sha256: {specs.hash_key(key)}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of factory.yaml, for editors that complete and check as you type.

    Example: `genaifactory config schema > factory.schema.json`
    """
    _print_json(specs.Factory.model_json_schema())


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidArgument(f"'{text}' is no metadata; write NAME=VALUE.", field="--metadata")
    return name, value


def _connected(platform: reach.Platform) -> grpc.aio.Channel:
    return channels.connect(platform.address("retriever"), platform.tls, patience_seconds=reach.PATIENCE_SECONDS)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
