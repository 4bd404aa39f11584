"""YAML in which a duplicate key is an error, with every error as one line with its place."""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str) -> object:
    """The value of `text`. Raises ValueError: "PLACE: not YAML: why"."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "document"
        raise ValueError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ValueError("document: not YAML: nested too deeply") from None
    except ValueError as error:  # an invalid date, a tag that does not match its value
        raise ValueError(f"document: not YAML: {error}") from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<: *base" is resolved by the base class
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' appears twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)
