"""The factory.yaml of a platform on this machine, and the development key and model that are added to it."""

from __future__ import annotations

import uuid
from importlib import resources
from pathlib import Path
from typing import get_args

from genaifactory_common import files, specs
from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.followed import Fixed
from genaifactory_common.identity import Caller, set_current
from genaifactory_common.passes import Issued
from genaifactory_common.tokens import Signer
from genaifactory_local import local_model
from genaifactory_local.state import State

DEVELOPMENT_KEY_ID = "local-dev"
"""Id of the development key and name of its role; they replace those of that name in factory.yaml."""

PERMISSIONS: tuple[specs.Permission, ...] = get_args(specs.Permission)
"""Those of the development key: all."""


class Source(specs.Source):
    """Follows a factory.yaml, and adds the development key, and the command line's model, to every version of it."""

    def __init__(self, path: Path, key: str, model: Vllm | None = None) -> None:
        """model: added to every version too. Raises InvalidConfiguration, InvalidArgument."""
        self._sha256 = specs.hash_key(key)
        self._model = model
        text = specs.read(path)
        super().__init__(self._added(specs.parse(text, source=str(path))), path, digest=specs.digest(text))

    def completed(self, factory: specs.Factory) -> specs.Factory:
        """The document with the key."""
        return self._added(factory)

    def _added(self, factory: specs.Factory) -> specs.Factory:
        with_key = with_development_key(factory, self._sha256)
        return local_model.added(with_key, self._model) if self._model is not None else with_key


def with_development_key(factory: specs.Factory, sha256: str) -> specs.Factory:
    """The document with the development key of this hash, in its first tenant, and the key's role."""
    key = specs.ApiKey(id=DEVELOPMENT_KEY_ID, sha256=sha256, role=DEVELOPMENT_KEY_ID)
    role = specs.Role(name=DEVELOPMENT_KEY_ID, permissions=PERMISSIONS)
    first, *others = (
        tenant.model_copy(
            update={"keys": tuple(k for k in tenant.keys if k.id != DEVELOPMENT_KEY_ID and k.sha256 != sha256)}
        )
        for tenant in factory.tenants
    )
    return factory.model_copy(
        update={
            "tenants": (first.model_copy(update={"keys": (*first.keys, key)}), *others),
            "roles": (*(r for r in factory.roles if r.name != DEVELOPMENT_KEY_ID), role),
        }
    )


def choose(state: State, given: Path | None) -> Path:
    """The file to follow: the one given, or ./factory.yaml, or the state folder's, which starts as a commented default.

    Raises InvalidArgument when the one given does not exist.
    """
    if given is not None:
        if not given.is_file():
            raise InvalidArgument(f"{given} does not exist.", field="--config")
        return given.absolute()
    file = without_choice(state)
    if not file.exists():
        files.write(file, (resources.files("genaifactory_local") / "factory.yaml").read_bytes())
    return file


def without_choice(state: State) -> Path:
    """The file that is followed when none is given: ./factory.yaml where there is one, else the state folder's."""
    own = Path("factory.yaml")
    return own.absolute() if own.exists() else state.factory_file


def sign_in(signer: Signer, tenant: str) -> None:
    """Signs the running task's calls as the development key's.

    Only for calls of inner services by this process, before the gateway serves.
    """
    caller = Caller(
        tenant=tenant,
        principal=DEVELOPMENT_KEY_ID,
        key_id=DEVELOPMENT_KEY_ID,
        role=DEVELOPMENT_KEY_ID,
        permissions=PERMISSIONS,
    )
    set_current(caller, Issued(Fixed(signer)).of(caller), f"{DEVELOPMENT_KEY_ID}-{uuid.uuid4().hex}")
