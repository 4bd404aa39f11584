"""The form of a conversation for a model that brings no chat template: a base model, which continues texts."""

from __future__ import annotations

TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{ message.role | capitalize ~ ": " if message.role != "system" else "" }}{{ message.content or "" }}{{ "\n\n" }}
{%- endfor -%}
{%- if add_generation_prompt %}Assistant:{% endif -%}
"""
"""Jinja, as chat templates are: roles and texts, and whose turn it is."""

STOP = ("\n\nUser:", "\nUser:")
"""Where the answer ends: a base model goes on with the next question by itself."""


def note(path: str) -> str:
    """The warning about such a model for people. path: of the engine's entry in factory.yaml ("engines[0]")."""
    return (
        "its files hold no chat template, as those of a base model, so conversations are written in a plain form "
        '("User: ...", "Assistant:") and answers may be poor. Use the model\'s chat variant (often named -Instruct or '
        f"-it), or set chat_template of its engine ({path}.chat_template) to the form that it was trained with."
    )
