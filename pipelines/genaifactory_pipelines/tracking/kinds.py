"""What has versions in MLflow's registry: adapters as registered models, and prompts of factory.yaml as prompts.

The versions of a prompt have the numbers that they have in factory.yaml; those that MLflow counts are its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from genaifactory_pipelines.tracking.client import GONE, MADE, unless

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NUMBER = "genaifactory.version"
"""Tag of a prompt's version: its number in factory.yaml."""
RUN = "genaifactory.run_id"
"""Tag of a prompt's version: the run that evaluated it."""
REFUSAL = "genaifactory.refusal"
"""Tag of a prompt's version: its refusals by language, JSON."""
TEXT = "mlflow.prompt.text"
"""Tag by which MLflow keeps a prompt's text."""
_PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"
_PREFIX = "prompt."
_PAGE = 200
_NUMBERS = re.compile(r"[1-9][0-9]{0,8}")


class Kind(Protocol):
    """How MLflow keeps one of the two. Its methods block, and raise MlflowException."""

    @property
    def noun(self) -> Literal["model", "prompt"]:
        """In messages, and in the JSON of commands."""
        ...

    def stored(self, name: str) -> str:
        """The name in MLflow, where models and prompts share one space of names."""
        ...

    def names(self, client: MlflowClient) -> list[str]:
        """All that there are."""
        ...

    def make(self, client: MlflowClient, name: str) -> None:
        """Makes one, unless it is there."""
        ...

    def versions(self, client: MlflowClient, name: str, where: str = "") -> Sequence[ModelVersion]:
        """All versions, or those of a query of MLflow."""
        ...

    def number(self, found: ModelVersion) -> int:
        """Of a version, for people."""
        ...

    def run_id(self, found: ModelVersion) -> str:
        """Of a version; empty where it was made by hand."""
        ...

    def delete(self, client: MlflowClient, name: str, found: ModelVersion) -> None:
        """Deletes a version."""
        ...

    def tags(self, client: MlflowClient, name: str) -> Mapping[str, str] | None:
        """The tags of all versions together; None where there is none of this name."""
        ...

    def tag(self, client: MlflowClient, name: str, key: str, value: str) -> None:
        """Sets a tag of all versions together."""
        ...

    def point(self, client: MlflowClient, name: str, alias: str, number: int) -> None:
        """Sets an alias."""
        ...

    def unpoint(self, client: MlflowClient, name: str, alias: str) -> None:
        """Removes an alias, if there is one."""
        ...

    def uri(self, name: str, found: ModelVersion) -> str:
        """By which MLflow finds a version."""
        ...


class _Models:
    noun: Literal["model"] = "model"

    def stored(self, name: str) -> str:
        return name

    def names(self, client: MlflowClient) -> list[str]:
        return [each.name for each in _pages(client.search_registered_models, "")]

    def make(self, client: MlflowClient, name: str) -> None:
        with unless(MADE):
            client.create_registered_model(name)

    def versions(self, client: MlflowClient, name: str, where: str = "") -> Sequence[ModelVersion]:
        return _pages(client.search_model_versions, f"name = '{name}'{where and f' and {where}'}")

    def number(self, found: ModelVersion) -> int:
        return int(found.version)

    def run_id(self, found: ModelVersion) -> str:
        return found.run_id or ""

    def delete(self, client: MlflowClient, name: str, found: ModelVersion) -> None:
        client.delete_model_version(name, str(found.version))

    def tags(self, client: MlflowClient, name: str) -> Mapping[str, str] | None:
        found = _pages(client.search_registered_models, f"name = '{name}'")
        return found[0].tags if found else None

    def tag(self, client: MlflowClient, name: str, key: str, value: str) -> None:
        client.set_registered_model_tag(name, key, value)

    def point(self, client: MlflowClient, name: str, alias: str, number: int) -> None:
        client.set_registered_model_alias(name, alias, str(number))

    def unpoint(self, client: MlflowClient, name: str, alias: str) -> None:
        client.delete_registered_model_alias(name, alias)

    def uri(self, name: str, found: ModelVersion) -> str:
        return f"models:/{name}/{found.version}"


class _Prompts:
    noun: Literal["prompt"] = "prompt"

    def stored(self, name: str) -> str:
        return f"{_PREFIX}{name}"

    def names(self, client: MlflowClient) -> list[str]:
        found = _pages(client.search_prompts, None)
        return [each.name.removeprefix(_PREFIX) for each in found if each.name.startswith(_PREFIX)]

    def make(self, client: MlflowClient, name: str) -> None:
        with unless(MADE):
            client.create_prompt(self.stored(name))

    def versions(self, client: MlflowClient, name: str, where: str = "") -> Sequence[ModelVersion]:
        query = f"name = '{self.stored(name)}' and {_PROMPTS}{where and f' and {where}'}"
        return [
            each
            for each in _pages(client.search_model_versions, query)
            if _NUMBERS.fullmatch(each.tags.get(NUMBER, ""))
        ]

    def number(self, found: ModelVersion) -> int:
        return int(found.tags[NUMBER])

    def run_id(self, found: ModelVersion) -> str:
        return str(found.tags.get(RUN, ""))

    def delete(self, client: MlflowClient, name: str, found: ModelVersion) -> None:
        client.delete_prompt_version(self.stored(name), str(found.version))

    def tags(self, client: MlflowClient, name: str) -> Mapping[str, str] | None:
        # Not get_prompt: it returns None for a server that is away as well.
        found = _pages(client.search_prompts, f"name = '{self.stored(name)}'")
        return found[0].tags if found else None

    def tag(self, client: MlflowClient, name: str, key: str, value: str) -> None:
        client.set_prompt_tag(self.stored(name), key, value)

    def point(self, client: MlflowClient, name: str, alias: str, number: int) -> None:
        from mlflow.exceptions import MlflowException

        found = self.versions(client, name, f"tags.`{NUMBER}` = '{number}'")
        version = int(found[0].version) if found else 0
        try:
            client.set_prompt_alias(self.stored(name), alias, version)
        except MlflowException as error:
            if found and error.error_code == GONE:  # what its client says of a server that is away as well
                raise TimeoutError from None
            raise

    def unpoint(self, client: MlflowClient, name: str, alias: str) -> None:
        client.delete_prompt_alias(self.stored(name), alias)

    def uri(self, name: str, found: ModelVersion) -> str:
        return f"prompts:/{self.stored(name)}/{found.version}"


MODELS: Kind = _Models()
PROMPTS: Kind = _Prompts()
KINDS = {kind.noun: kind for kind in (MODELS, PROMPTS)}


def _pages(search: Any, query: str | None) -> Sequence[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(query, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
