"""Templates of prompts: Jinja in a sandbox, compiled by the check of factory.yaml and for rendering."""

from __future__ import annotations

from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator

VARIABLES = frozenset({"question", "passages", "tenant", "today", "refusal"})
"""The variables of a template, besides Jinja's own functions."""


class _Unfolded(CodeGenerator):
    """Folds no constants while it compiles: 'x' * 10**12 in a template would end every service that checks it."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Tracking(_Unfolded, jinja2.meta.TrackingCodeGenerator):
    """Collects the variables, as jinja2.meta.find_undeclared_variables, without folding constants."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.optimizer = None


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Unfolded


_ENVIRONMENT = _Environment(
    autoescape=False,  # a prompt is no HTML
    optimized=False,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=False,
)
_NOT_POSSIBLE = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.EvalContextModifier)


def compiled(text: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The template, and the variables that it uses. Raises ValueError that names the fault and its line."""
    try:
        tree = _ENVIRONMENT.parse(text)
        if (other := next(tree.find_all(_NOT_POSSIBLE), None)) is not None:
            raise ValueError(
                f"line {other.lineno}: include, import, extends and autoescape are not possible in a prompt"
            )
        tracking = _Tracking(_ENVIRONMENT)
        tracking.visit(tree)
        template = _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None
    except (RecursionError, SyntaxError):  # from Jinja's parser; from Python's, which compiles Jinja's output
        raise ValueError("expressions or blocks are nested too deeply") from None
    names = tracking.undeclared_identifiers
    if unknown := sorted(names - VARIABLES - _ENVIRONMENT.globals.keys()):
        raise ValueError(f"unknown variable '{unknown[0]}'; known: {', '.join(sorted(VARIABLES))}")
    return template, frozenset(names)
