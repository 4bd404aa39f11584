"""`genaifactory run`: the platform in this process with documents ingested, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import uvloop
from rich.console import Console
from rich.markup import escape

from genaifactory_common import channels, known, settings, space, specs
from genaifactory_common.errors import Conflict, FactoryError, Internal, InvalidArgument
from genaifactory_common.tokens import Signer
from genaifactory_local import configuration, finding, inventory, invocation, local_model, logs, state
from genaifactory_local.folder_sync import DEFAULT_PATHS, FolderSync
from genaifactory_local.state import Endpoints, State
from genaifactory_pipelines.sources import folder

logger = logging.getLogger(__name__)

# What a first start writes before it answers: the embedding model's graph (57 MiB), an empty index (28 MiB), the sample
# and logs; and room to work in. A later start needs room to open its stores.
_FIRST_BYTES, _AGAIN_BYTES = 160 << 20, 16 << 20
_LINES_OF_A_CHANGE = 20
_OWN_QUESTION = "Your question about the documents"


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    paths: tuple[Path, ...] = ()
    """Folders and files to ingest; none: the sample and the project's own documents."""
    state_folder: Path = state.DEFAULT_FOLDER
    config: Path | None = None
    knowledge_base: str | None = None
    """None: the first of factory.yaml."""
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    model: str | None = None
    """A folder, an https:// folder or a hub's ORG/NAME to answer with; None: the models of factory.yaml alone."""
    verbose: bool = False
    """Name every file that is skipped."""


@dataclass(frozen=True)
class _Plan:
    """What is read and checked before the start."""

    options: Options
    state: State
    key: str
    signer: Signer
    source: configuration.Source
    found: folder.FoundFiles
    knowledge_base: str | None


def run(options: Options, console: Console) -> None:
    """Runs until SIGINT or SIGTERM; a second one ends the process at once.

    Raises FactoryError for what is wrong with the paths, the configuration, the ports or the state folder.
    """
    found = _find_documents(options)
    telemetry = settings.load(settings.Common).telemetry
    model = local_model.engine(options.model, local_model.python()) if options.model else None
    with state.owner_only(), state.held(options.state_folder) as held:
        space.require_free(held.folder, _AGAIN_BYTES if held.data("retriever").exists() else _FIRST_BYTES)
        key = state.development_key(held)
        source = configuration.Source(configuration.choose(held, options.config), key, model)
        plan = _Plan(options, held, key, state.signer(held), source, found, _knowledge_base(options, source.current))
        _require_ports(options)
        with logs.to_file(held.log_file, console, telemetry.log_level), state.socket_folder(held) as sockets:
            try:
                console.print("Starting six services ...", highlight=False)
                from genaifactory_local import platform  # imports every service: only once the options are right

                addresses = platform.Options(
                    host=options.host, http_port=options.http_port, grpc_port=options.grpc_port, telemetry=telemetry
                )
                start = partial(platform.running, held, sockets, source, plan.signer, addresses)
                uvloop.run(_serve(plan, start, sockets, console))
            except Exception as error:
                raise _reported(error, options, held.log_file) from error


def _reported(error: Exception, options: Options, log: Path) -> FactoryError:
    """The error to report for one that ended the platform."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FactoryError):
        return error
    if isinstance(error, OSError):
        try:
            _require_ports(options)  # one was taken while the services started
        except FactoryError as taken:
            return taken
        return state.explained(error, options.state_folder)
    logger.error("the platform ended", exc_info=error)
    return Internal(f"The platform ended because of an internal error ({type(error).__name__}); {log} has the details.")


async def _serve(
    plan: _Plan, start: Callable[..., AbstractAsyncContextManager[Endpoints]], sockets: Path, console: Console
) -> None:
    """start: `platform.running`, with all arguments but its callbacks."""
    stop = asyncio.Event()
    begun = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        begun.set()
        console.print("Stopping; Ctrl-C again ends it at once.")

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    wanted = _reading(plan, console)
    readings: list[asyncio.Task[bool]] = []

    async with asyncio.TaskGroup() as tasks:

        async def begin_reading() -> None:
            """Before the ports are open, so that the first answer reports that reading goes on."""
            if wanted is not None:
                readings.append(
                    tasks.create_task(wanted.read(state.service_address(sockets, "gateway"), begun), name="read")
                )
                await begun.wait()

        async def welcome(endpoints: Endpoints) -> None:
            own = bool(plan.options.paths)
            if not all(task.done() for task in readings):
                _print_answering(plan, endpoints, console, _questions(own))
                await asyncio.wait(readings)
            own = own or any(task.result() for task in readings)
            _print_ready(plan, endpoints, console, await asyncio.to_thread(_age_seconds), _questions(own))

        async with start(
            before_gateway=begin_reading,
            report=lambda message: console.print(escape(message), soft_wrap=True, highlight=False),
        ) as endpoints:
            with state.announced(plan.state, endpoints):
                _follow(plan, sockets, endpoints, console)
                background = (
                    *readings,
                    tasks.create_task(plan.source.watch(), name="watch-factory-yaml"),
                    tasks.create_task(welcome(endpoints), name="welcome"),
                )
                await stop.wait()
                for task in background:
                    task.cancel()
                await asyncio.wait(background)


def _follow(plan: _Plan, sockets: Path, endpoints: Endpoints, console: Console) -> None:
    """Reviews every change of factory.yaml before it is in force, and prints it afterwards."""

    async def look() -> inventory.Inventory:
        async with channels.connect(state.service_address(sockets, "gateway"), api_key=plan.key) as channel:
            return await inventory.take(channel)

    def follow(change: specs.Change) -> None:
        if change.after.tenants[0].name != change.before.tenants[0].name:
            state.announce(plan.state, replace(endpoints, tenant=change.after.tenants[0].name))
        _print_change(change, console, datetime.now().astimezone())

    plan.source.review(inventory.reviewer(look))
    plan.source.follow(follow)


def _print_change(change: specs.Change, console: Console, now: datetime) -> None:
    if not change.lines:
        message = "factory.yaml was saved; nothing that is configured changed."
    else:
        lines = [f"\n  {line}" for line in change.lines[:_LINES_OF_A_CHANGE]]
        more = len(change.lines) - len(lines)
        message = f"factory.yaml changed, in force since {now:%H:%M:%S}:{''.join(lines)}"
        message += f"\n  and {more} more, which are in the log" if more else ""
    console.print(escape(message), soft_wrap=True, highlight=False)


def _reading(plan: _Plan, console: Console) -> FolderSync | None:
    if plan.knowledge_base is None:
        return None
    return FolderSync(
        plan.key,
        plan.knowledge_base,
        plan.found,
        console,
        chosen=bool(plan.options.paths),
        verbose=plan.options.verbose,
    )


def _find_documents(options: Options) -> folder.FoundFiles:
    return finding.find([path.expanduser() for path in options.paths] or DEFAULT_PATHS)


def _knowledge_base(options: Options, factory: specs.Factory) -> str | None:
    tenant = factory.tenants[0].name
    if options.knowledge_base is not None:
        return known.knowledge_base(factory, tenant, options.knowledge_base, field="--knowledge-base").name
    usable = known.knowledge_bases(factory, tenant)
    if options.paths and not usable:
        raise InvalidArgument(
            "The documents cannot be stored: factory.yaml has no knowledge base. Add one.", field="DOCS"
        )
    return next(iter(usable), None)


def _require_ports(options: Options) -> None:
    """Raises InvalidArgument or Conflict that names the option, when the platform cannot listen there."""
    for option, port in (("--port", options.http_port), ("--grpc-port", options.grpc_port)):
        if not 0 <= port <= 65535:
            raise InvalidArgument(
                f"{option} ({_variable(option)}) must be from 0 (any free one) to 65535; it is {port}.", field=option
            )
    if options.http_port == options.grpc_port != 0:
        raise InvalidArgument(
            f"--port (PORT) and --grpc-port (GRPC_PORT) are both {options.http_port}; give each a port of its own.",
            field="--grpc-port",
        )
    for option, port in (("--port", options.http_port), ("--grpc-port", options.grpc_port)):
        _require_free(options.host, port, option)


def _require_free(host: str, port: int, option: str) -> None:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InvalidArgument(f"'{host}' is not an address to listen on: {error.strerror}.", field="--host") from None
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise _unusable(error, host, port, option) from None


def _unusable(error: OSError, host: str, port: int, option: str) -> FactoryError:
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidArgument(f"--host {host} is not an address of this machine.", field="--host")
    if error.errno == errno.EADDRINUSE:
        reason, other = "is in use by another program", port + 10 if port <= 65525 else port - 10
    elif error.errno == errno.EACCES:
        reason, other = "is for the administrator (root) only", port + 8000
    else:
        return Conflict(f"Port {port} on {host} cannot be used: {error.strerror}.", field=option)
    return Conflict(
        f"Port {port} on {host} {reason}. Choose another: {option} {other}, or make run {_variable(option)}={other}.",
        field=option,
    )


def _variable(option: str) -> str:
    """Its name for `make run`."""
    return option.removeprefix("--").replace("-", "_").upper()


def _print_answering(plan: _Plan, endpoints: Endpoints, console: Console, questions: tuple[str, ...]) -> None:
    """One line: questions are answered before the reading has ended."""
    console.print(
        f"{endpoints.http_url} answers already, from what is read so far: {escape(_ask(plan, questions[0]))}",
        soft_wrap=True,
        highlight=False,
    )


def _questions(own: bool) -> tuple[str, ...]:
    """Questions to show, for the user's own documents or for the samples."""
    return (_OWN_QUESTION,) if own else finding.SAMPLE_QUESTIONS


def _ask(plan: _Plan, question: str) -> str:
    """The command that asks it."""
    folder = (
        "" if plan.options.state_folder == state.DEFAULT_FOLDER else f" --state {shlex.quote(str(plan.state.folder))}"
    )
    return f'{invocation.command()} ask{folder} "{question}"'


def _age_seconds() -> float:
    """Age of this process with its imports, which a clock started here would leave out (Linux, proc(5))."""
    started = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _print_ready(
    plan: _Plan, endpoints: Endpoints, console: Console, seconds: float, questions: tuple[str, ...]
) -> None:
    """Not wrapped, so that lines can be copied."""
    factory = plan.source.current
    route = next((r.name for r in factory.routes if r.task == "rag"), factory.routes[0].name)
    body = f'{{"model": "{route}", "stream": true, "messages": [{{"role": "user", "content": "{questions[0]}"}}]}}'
    asks = "\n".join(f"  {_ask(plan, question)}" for question in questions)
    console.print(
        f"""
[bold green]Ready[/bold green] after {seconds:.1f} s; six services answer.

  OpenAI API     {endpoints.http_url}/v1
  gRPC           {endpoints.grpc_address}
  Key            {plan.key}   (kept in {escape(str(plan.state.key_file))})
  Configuration  {escape(str(plan.source.path))}   (a change is in force within two seconds)
  Log            {escape(str(plan.state.log_file))}

[bold]Ask from another terminal[/bold]
{escape(asks)}

[bold]curl[/bold]
  curl -N {endpoints.http_url}/v1/chat/completions -H "Authorization: Bearer {plan.key}" \\
    -H "Content-Type: application/json" -d '{escape(body)}'

[bold]Python, with the openai package[/bold]
  from openai import OpenAI
  client = OpenAI(base_url="{endpoints.http_url}/v1", api_key="{plan.key}")
  question = {{"role": "user", "content": "{questions[-1]}"}}
  for chunk in client.chat.completions.create(model="{route}", messages=[escape_here], stream=True):
      print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="")

Ctrl-C stops it.""".replace("[escape_here]", escape("[question]")),
        soft_wrap=True,
        highlight=False,
    )
