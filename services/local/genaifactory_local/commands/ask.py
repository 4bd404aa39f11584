"""`genaifactory ask` and `genaifactory smoke`: questions to a running platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from genaifactory_local import asking, endpoints, finding, smoke, state
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, UrlOption, key_for_url, print_json


def ask(
    question: Annotated[str, typer.Argument(help="The question, in Vietnamese or English.")],
    route: Annotated[str, typer.Option(help="Which route of factory.yaml answers.")] = "rag",
    conversation: Annotated[
        str | None, typer.Option(help="Continue this conversation; choose any name to start one.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not answer from the cache.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Ask a running platform; the answer is printed as it is written, with its sources.

    Example: `genaifactory ask "How many days of annual leave do I have?"`
    """
    if url is None:
        platform = endpoints.find(state_folder)
        url, key = platform.http_url, key or platform.key()
    asked = asking.ChatRequest(question, url, key_for_url(key), route, conversation, fresh)
    with asking.asked(asked) as (answer, pieces):
        for piece in pieces:
            if not as_json:
                print(piece, end="", flush=True)
    if as_json:
        print_json(
            {
                "request_id": answer.request_id,
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "citations": answer.citations,
                "usage": answer.usage,
                "cache": answer.cache,
                "masked": answer.masked,
            }
            | ({"reading": answer.reading} if answer.reading else {})
        )
        return
    print()
    if answer.masked:
        note = f"A guardrail masked in your question: {_counted(answer.masked)}. It was not sent to a model."
        typer.secho(note, dim=True, err=True)
    sources = sorted(answer.sources().items())
    if sources:
        print("\nSources")
    for number, source in sources:
        print(f"  [{number}] {source['title']} ({source['document_id']})")
    if answer.reading and sources:  # the text of a refusal contains this note
        done, total = answer.reading["documents_done"], answer.reading["documents_total"]
        print(f"\nThe documents are still being read ({done} of {total}); a later answer may be more complete.")


def _counted(masked: Mapping[str, int]) -> str:
    return ", ".join(entity if count == 1 else f"{count} of {entity}" for entity, count in masked.items())


def smoke_test(
    route: Annotated[str, typer.Option(help="Which route of factory.yaml answers.")] = "rag",
    question: Annotated[str, typer.Option(help="The question.")] = finding.SAMPLE_QUESTIONS[0],
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Deadline of the whole answer, in seconds.")
    ] = 60.0,
    citation: Annotated[
        bool, typer.Option("--citation/--no-citation", help="Whether the answer must cite a document.")
    ] = True,
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Ask one question as a client does; fail unless the answer cites a document.

    Example: `genaifactory smoke --route chat --no-citation`
    """
    platform = endpoints.find(state_folder)
    asked = asking.ChatRequest(
        question, platform.http_url, key or platform.key(), route, idle_timeout_seconds=timeout_seconds
    )
    smoke.test(asked, print, timeout_seconds=timeout_seconds, needs_citation=citation)
