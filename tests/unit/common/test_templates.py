"""Faults of a prompt's template are found when factory.yaml is read, without evaluating the template."""

from __future__ import annotations

import tracemalloc

import pytest

from genaifactory_common import templates


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ question ", "line 1: "),
        ("a\n{% if %}", "line 2: Expected an expression"),
        ("{% endif %}", "line 1: Encountered unknown tag 'endif'"),
        ("a\n\n{{ question | shout }}", "line 3: No filter named 'shout'"),
        ("{{ question is loud }}", "line 1: No test named 'loud'"),
        ("{{ secrets }}", "unknown variable 'secrets'; known: passages, question, refusal, tenant, today"),
        ("{% for p in passages %}{{ p }}{% endfor %}{{ p }}", "unknown variable 'p'"),
        ("{% include 'x' %}", "line 1: include, import, extends and autoescape are not possible"),
        ("a\n{% extends question %}", "line 2: include"),
        ("{% autoescape 'x' * 10 ** 12 %}{% endautoescape %}", "autoescape"),
        ("{{ " + "(" * 3000, "nested too deeply"),
        ("{% for p in passages %}" * 25 + "{% endfor %}" * 25, "nested too deeply"),
    ],
)
def test_the_error_of_a_wrong_template_names_the_line(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        templates.compiled(text)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "text", ["{{ 'x' * 10 ** 8 }}", "{{ 'x' | center(10 ** 8) }}", "{% set a = 'x' * 10 ** 8 %}{{ a | length }}"]
)
def test_a_template_is_compiled_without_evaluating_its_expressions(text: str) -> None:
    tracemalloc.start()
    try:
        templates.compiled(text)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_variables_of_a_template_are_returned() -> None:
    text = "{% set a = today %}{% for p in passages %}{{ loop.index }}{{ p }}{% endfor %} {{ a }} {{ range(2) | list }}"
    template, names = templates.compiled(text)
    assert names == {"today", "passages"}
    assert template.render(today="now", passages=["a"]) == "1a now [0, 1]"
