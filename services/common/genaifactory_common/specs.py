"""The models of factory.yaml: the one document in which a person configures the platform.

Every service reads the part it needs. `load` refuses a bad document with the path of the bad field;
`Source` keeps the last good one in force while the file changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AnyHttpUrl,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from genaifactory_common import changes, engine_specs, files, in_force, strict_yaml
from genaifactory_common.engine_specs import AnyEngine, Extractive, MiniLM, ModelName, Spec
from genaifactory_common.errors import InvalidArgument

logger = logging.getLogger(__name__)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
"""Lower-case letters, digits, '.', '_' and '-', at most 63 characters."""

Origin = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|https?://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[1-9][0-9]{0,4})?)$"),
]
"""'*', or a scheme, a host in lower case and a port where it is not the scheme's own: what browsers send as Origin."""

Permission = Literal["chat", "embed", "models", "feedback", "usage", "ingest", "export", "operate"]


class ApiKey(Spec):
    """A key that a client shows. Only its hash is written down."""

    id: Name = Field(description="Names the key in records; not secret.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the key, hex. `genaifactory config hash-key` makes it.",
    )
    role: Name = Field(description="A role below.")
    groups: tuple[Name, ...] = Field(default=(), description="Groups for document access.")


class Limits(Spec):
    """What a tenant's keys may use together."""

    requests_per_minute: int = Field(default=600, ge=1)
    tokens_per_minute: int = Field(default=1_000_000, ge=1)


class Tenant(Spec):
    """A customer or department; data, cache and limits are its own."""

    name: Name
    keys: tuple[ApiKey, ...] = ()
    limits: Limits = Limits()


class Role(Spec):
    """What a key may do."""

    name: Name
    permissions: tuple[Permission, ...]
    routes: tuple[str, ...] = Field(default=("*",), description="Routes and embedding models it may name; '*' is all.")


class Price(Spec):
    """What a model costs."""

    input_per_million_tokens: float = Field(default=0.0, ge=0)
    output_per_million_tokens: float = Field(default=0.0, ge=0)
    cached_input_per_million_tokens: float | None = Field(default=None, ge=0, description="None: as input.")
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")


class ModelServerBackend(Spec):
    """A model of the platform's own model server."""

    type: Literal["modelserver"] = "modelserver"
    model: ModelName = Field(description="Name at the model server.")


class OpenAIBackend(Spec):
    """A model behind any OpenAI-compatible API."""

    type: Literal["openai"]
    base_url: AnyHttpUrl = Field(description="Up to and with /v1.")
    model: ModelName = Field(description="Name at that API.")
    api_key_env: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="Environment variable that holds its key."
    )
    dialect: Literal["compatible", "openai", "vllm"] = Field(
        default="compatible",
        description="What it understands beyond the common parameters: 'openai' (OpenAI's own API) names the output "
        "limit max_completion_tokens; 'vllm' continues unfinished answers exactly and takes regex, choice, grammar, "
        "top_k, min_p, repetition_penalty and chat_template_kwargs.",
    )


class Retry(Spec):
    """How a failing backend is tried again."""

    attempts: int = Field(default=3, ge=1, le=10, description="Tries of one backend, the first included.")
    initial_backoff_seconds: float = Field(default=0.2, gt=0, le=60)
    max_backoff_seconds: float = Field(default=5.0, gt=0, le=300)


class CircuitBreaker(Spec):
    """When a failing backend is left alone."""

    failures: int = Field(default=5, ge=1, description="Failures in a row that open the circuit.")
    open_seconds: float = Field(default=10.0, gt=0, description="How long it stays open before one trial.")


class Model(Spec):
    """A model that routes can name, and where it runs."""

    name: ModelName
    kind: Literal["chat", "embedding"] = "chat"
    description: str = ""
    vision: bool = Field(
        default=False,
        description="Whether it sees images in messages. Requests with images go to those models of a route that do.",
    )
    backend: Annotated[ModelServerBackend | OpenAIBackend, Field(discriminator="type")]
    price: Price = Price()
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600, description="For one try, from start to end.")
    first_token_timeout_seconds: float = Field(
        default=20.0, gt=0, le=3600, description="Until the first token of one try."
    )
    idle_timeout_seconds: float = Field(default=15.0, gt=0, le=3600, description="Between two pieces of a stream.")
    retry: Retry = Retry()
    circuit_breaker: CircuitBreaker = CircuitBreaker()

    @model_validator(mode="after")
    def _can_see(self) -> Self:
        if self.vision and self.kind != "chat":
            raise ValueError("vision: an embedding model gets texts alone; leave it out")
        if self.vision and self.backend.type == "modelserver":
            raise ValueError(
                "vision: the model server's engines take no images; name an OpenAI-compatible API of a model that sees "
                "(vLLM's own server is one, with dialect: vllm)"
            )
        return self


class Cache(Spec):
    """Whether a route answers the same question from memory."""

    enabled: bool = True
    max_age_seconds: float = Field(default=3600.0, gt=0)


class Route(Spec):
    """What a client names as `model`: a task with everything it needs."""

    name: ModelName
    task: Literal["chat", "rag"]
    description: str = ""
    models: tuple[ModelName, ...] = Field(min_length=1, description="The model and its fallbacks, in order.")
    prompt: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]*(@[0-9]+)?$",
        description="NAME or NAME@VERSION; no version: the newest.",
    )
    knowledge_base: Name | None = Field(default=None, description="Where a rag route looks.")
    passages: int = Field(default=5, ge=1, le=50, description="Passages given to the model.")
    min_term_coverage: float = Field(
        default=0.55,
        ge=0,
        le=1,
        description="Below this share of the question's terms found, a rag route refuses.",
    )
    policy: Name = Field(default="default", description="Guardrail policy of input and output.")
    cache: Cache = Cache()
    history_messages: int = Field(default=20, ge=0, le=1000, description="Messages kept of a stored conversation.")
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600, description="For the whole answer.")
    max_output_tokens: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="When the client sets no max_tokens; also what admission reserves.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.task == "rag" and self.knowledge_base is None:
            raise ValueError("a rag route needs knowledge_base")
        if self.task == "rag" and self.prompt is None:
            raise ValueError("a rag route needs prompt")
        return self


class Prompt(Spec):
    """One version of a prompt template (Jinja, sandboxed). Variables: question, passages, tenant, today, refusal."""

    name: Name
    version: int = Field(ge=1)
    system: str = Field(min_length=1, max_length=100_000)
    refusal: dict[str, str] = Field(
        default_factory=dict, description="What to say when the passages do not hold the answer, by language."
    )


class KnowledgeBase(Spec):
    """A set of documents with its own index versions."""

    name: Name
    description: str = ""
    tenants: tuple[str, ...] = Field(
        default=("*",), description="Tenants that may use it; '*' is all. Each sees its own documents."
    )
    chunk_tokens: int = Field(default=200, ge=32, le=2000, description="Longest passage, in embedding tokens.")
    chunk_overlap_tokens: int = Field(default=30, ge=0, le=500)
    embedding_model: Literal["minilm"] = "minilm"

    @model_validator(mode="after")
    def _overlap(self) -> Self:
        if self.chunk_overlap_tokens >= self.chunk_tokens:
            raise ValueError("chunk_overlap_tokens must be smaller than chunk_tokens")
        return self


class Rule(Spec):
    """What to do about one kind of finding."""

    entities: tuple[str, ...] = Field(
        min_length=1, description="Entity types ('EMAIL_ADDRESS') or groups ('PII', 'SECRET')."
    )
    input: Literal["allow", "mask", "block"] = "mask"
    output: Literal["allow", "mask", "block"] = "mask"
    min_score: float = Field(default=0.5, ge=0, le=1)


class Policy(Spec):
    """A guardrail policy. The first rule that names an entity decides; entities that no rule names pass."""

    name: Name
    rules: tuple[Rule, ...] = ()
    max_input_characters: int = Field(default=100_000, ge=1)
    languages: tuple[Literal["vi", "en"], ...] = Field(default=("vi", "en"), min_length=1)
    banned_terms: tuple[str, ...] = Field(default=(), description="Texts that block, whatever their case.")
    images: Literal["block", "allow"] = Field(
        default="block", description="Images in messages, which no scanner looks into; allow: they pass unscanned."
    )


class Cors(Spec):
    """Which web pages of other origins may call the HTTP API from a browser, each with an API key of its own."""

    allowed_origins: tuple[Origin, ...] = Field(
        default=(), description="Like 'https://app.example.com', without a path; '*' is any. Empty: none."
    )
    max_age_seconds: int = Field(
        default=600, ge=0, le=86_400, description="How long a browser may remember what it was allowed."
    )


class Retired(Spec):
    """Names that are used no more. What is stored under them stays, and that nobody reaches it is accepted."""

    tenants: tuple[Name, ...] = ()
    knowledge_bases: tuple[Name, ...] = ()


class Factory(Spec):
    """The whole document."""

    version: Literal[1] = 1
    tenants: tuple[Tenant, ...] = Field(min_length=1)
    roles: tuple[Role, ...] = Field(min_length=1)
    models: tuple[Model, ...] = Field(min_length=1)
    routes: tuple[Route, ...] = Field(min_length=1)
    prompts: tuple[Prompt, ...] = ()
    knowledge_bases: tuple[KnowledgeBase, ...] = ()
    policies: tuple[Policy, ...] = Field(min_length=1)
    cors: Cors = Cors()
    retired: Retired = Retired()
    engines: tuple[AnyEngine, ...] = Field(
        default=(Extractive(), MiniLM()),
        min_length=1,
        description="What the model server holds. A change needs its restart, but for adapters.serve.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique("tenants", [t.name for t in self.tenants])
        _unique("roles", [r.name for r in self.roles])
        _unique("models", [m.name for m in self.models])
        _unique("routes", [r.name for r in self.routes])
        _unique("prompts", [f"{p.name}@{p.version}" for p in self.prompts])
        _unique("knowledge_bases", [k.name for k in self.knowledge_bases])
        _unique("policies", [p.name for p in self.policies])
        _unique("engines", [name for engine in self.engines for name in engine.names()])
        keys = [key for tenant in self.tenants for key in tenant.keys]
        _unique("tenants[].keys[].id", [k.id for k in keys])
        _unique("tenants[].keys[].sha256", [k.sha256 for k in keys])
        roles = {r.name for r in self.roles}
        for i, tenant in enumerate(self.tenants):
            for j, key in enumerate(tenant.keys):
                _known(f"tenants[{i}].keys[{j}].role", key.role, roles)
        embedding = {m.name for m in self.models if m.kind == "embedding"}
        names = {r.name for r in self.routes} | embedding
        for i, role in enumerate(self.roles):
            for j, route in enumerate(role.routes):
                if route != "*":
                    _known(f"roles[{i}].routes[{j}]", route, names)
        for name in sorted({r.name for r in self.routes} & embedding):
            raise ValueError(f"routes: '{name}' is also an embedding model; clients could not tell them apart")
        for i, route_spec in enumerate(self.routes):
            self._check_route(f"routes[{i}]", route_spec)
        tenants = {t.name for t in self.tenants}
        _retired("tenants", self.retired.tenants, tenants)
        _retired("knowledge_bases", self.retired.knowledge_bases, {k.name for k in self.knowledge_bases})
        for i, base in enumerate(self.knowledge_bases):
            for j, name in enumerate(base.tenants):
                if name != "*":
                    _known(f"knowledge_bases[{i}].tenants[{j}]", name, tenants)
        return self

    def _check_route(self, path: str, route: Route) -> None:
        chat_models = {m.name for m in self.models if m.kind == "chat"}
        for j, model in enumerate(route.models):
            _known(f"{path}.models[{j}]", model, chat_models, "chat model")
        currencies = {m.price.currency for m in self.models if m.name in route.models}
        if len(currencies) > 1:  # an answer may cost tokens of several of them, and is one sum
            raise ValueError(f"{path}.models: prices in several currencies: {', '.join(sorted(currencies))}")
        _known(f"{path}.policy", route.policy, {p.name for p in self.policies})
        if route.knowledge_base is not None:
            _known(f"{path}.knowledge_base", route.knowledge_base, {k.name for k in self.knowledge_bases})
        if route.prompt is not None:
            _known(
                f"{path}.prompt",
                route.prompt,
                {p.name for p in self.prompts} | {f"{p.name}@{p.version}" for p in self.prompts},
            )

    def route(self, name: str) -> Route | None:
        """The route of this name."""
        return next((r for r in self.routes if r.name == name), None)

    def model(self, name: str) -> Model | None:
        """The model of this name."""
        return next((m for m in self.models if m.name == name), None)

    def seeing(self, route: Route) -> tuple[str, ...]:
        """The models of the route that see images, in its order."""
        found = map(self.model, route.models)
        return tuple(model.name for model in found if model is not None and model.vision)

    def prompt(self, reference: str) -> Prompt | None:
        """The prompt for NAME (newest version) or NAME@VERSION."""
        name, _, version = reference.partition("@")
        found = [p for p in self.prompts if p.name == name and version in ("", str(p.version))]
        return max(found, key=lambda p: p.version, default=None)

    def knowledge_base(self, name: str, tenant: str) -> KnowledgeBase | None:
        """The knowledge base of this name, if the tenant may use it."""
        found = next((k for k in self.knowledge_bases if k.name == name), None)
        return found if found and ("*" in found.tenants or tenant in found.tenants) else None

    def policy(self, name: str) -> Policy | None:
        """The guardrail policy of this name."""
        return next((p for p in self.policies if p.name == name), None)


def _unique(path: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{path}: '{name}' stands twice")
        seen.add(name)


def _retired(path: str, names: Sequence[str], used: Iterable[str]) -> None:
    for i, name in enumerate(names):
        if name in used:
            raise ValueError(f"retired.{path}[{i}]: '{name}' is in {path}; take it out of one of them")


def _known(path: str, name: str, known: Iterable[str], what: str = "name") -> None:
    if name not in known:
        raise ValueError(f"{path}: unknown {what} '{name}'; known: {', '.join(sorted(known)) or 'none'}")


class InvalidConfiguration(InvalidArgument):
    """A document that does not fit; each problem is 'path: what is wrong'."""

    def __init__(self, problems: list[str], source: str) -> None:
        self.problems = problems
        super().__init__(f"{source}: " + "; ".join(problems), field=problems[0].partition(":")[0])


def parse(text: str, *, source: str = "factory.yaml") -> Factory:
    """The document in `text`. Raises InvalidConfiguration with the path of every bad field."""
    try:
        document = strict_yaml.load(text)
    except ValueError as error:
        raise InvalidConfiguration([str(error)], source) from None
    if not isinstance(document, dict):
        raise InvalidConfiguration(
            ["document: must be a mapping with tenants, roles, models, routes and policies"], source
        )
    try:
        return Factory.model_validate(document)
    except ValidationError as error:
        raise InvalidConfiguration(_problems(error), source) from None


def _problems(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_input=False)
    # A list whose items are all wrong also counts as too short; that is no problem of its own.
    inside = {e["loc"][:n] for e in found for n in range(1, len(e["loc"]))}
    return [_problem(e) for e in found if e["type"] != "too_short" or e["loc"] not in inside]


# pydantic names the branch of a union; it is no field of the document.
_BRANCHES = ("modelserver", "openai", *engine_specs.TYPES)


def _problem(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _BRANCHES:
            path += f".{part}" if path else str(part)
    if error["type"] == "extra_forbidden":
        message = "unknown field"
    elif error["type"] == "missing":
        message = "is missing"
    elif error["type"] == "too_short":
        message = f"must have at least {error['ctx']['min_length']}"
    elif error["type"] == "tuple_type":
        message = "must be a list"
    elif error["type"] in ("model_type", "dict_type"):
        message = "must be a mapping"
    # A consistency check names its own path, since the model's location is the document.
    return f"{path}: {message}" if path else message


def read(path: Path) -> str:
    """The text of a file, as its bytes are. Raises InvalidConfiguration."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise InvalidConfiguration([f"document: cannot be read: {error.strerror}"], str(path)) from None
    except UnicodeDecodeError:
        raise InvalidConfiguration(["document: must be UTF-8 text"], str(path)) from None


def load(path: Path) -> Factory:
    """The document in a file. Raises InvalidConfiguration."""
    return parse(read(path), source=str(path))


def digest(text: str) -> str:
    """SHA-256 of a document's text, hex: what `sha256sum factory.yaml` prints."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_key(key: str) -> str:
    """The `sha256` of an API key for factory.yaml. Keys are random and long, so a fast hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Change:
    """One document after another."""

    before: Factory
    after: Factory
    digest: str
    """Of the text that is in force now; empty when it came from no file."""
    lines: tuple[str, ...]
    """What changed, as `changes.between` writes it; empty when nothing did that is configured."""


class Source:
    """The document in force: `current`, replaced by `watch` when the file changes and is good."""

    def __init__(self, current: Factory, path: Path | None = None, *, digest: str = "") -> None:
        """digest: of the text that `current` came from."""
        self.current = current
        self.path = path
        self.digest = digest
        # Taken now, so that a change between the start and `watch` is seen.
        self._seen = files.fingerprint(path) if path is not None else None
        self._listeners: list[Callable[[Factory], None]] = []
        self._followers: list[Callable[[Change], None]] = []
        self._reviewers: list[Callable[[Factory, Factory], Awaitable[None]]] = []

    @classmethod
    def from_file(cls, path: Path) -> Source:
        """Reads the file. Raises InvalidConfiguration."""
        text = read(path)
        return cls(parse(text, source=str(path)), path, digest=digest(text))

    def subscribe(self, listener: Callable[[Factory], None]) -> None:
        """Calls `listener` with each new document. It must not raise; what it derives it derives at once."""
        self._listeners.append(listener)

    def follow(self, follower: Callable[[Change], None]) -> None:
        """Calls `follower` with what changed, once it is in force. It must not raise."""
        self._followers.append(follower)

    def review(self, reviewer: Callable[[Factory, Factory], Awaitable[None]]) -> None:
        """Awaits `reviewer` with the document in force and a changed file's, which it refuses by InvalidArgument."""
        self._reviewers.append(reviewer)

    def completed(self, factory: Factory) -> Factory:
        """The document with what a source of its own kind adds. Raises InvalidArgument when it cannot be in force."""
        return factory

    def replace(self, factory: Factory) -> None:
        """Puts a document in force, unless it cannot be: then that is logged."""
        try:
            self._put(self.completed(factory), "")
        except InvalidArgument as error:
            _refuse(error)

    async def watch(self, *, interval_seconds: float = 2.0) -> None:
        """Reloads the file when its content changes, forever. A bad document is logged; the last good one stays."""
        if self.path is None:
            return
        in_force.report(self.digest)
        logger.info("factory.yaml is in force", extra={"genai_configuration": self.digest})
        while True:
            await asyncio.sleep(interval_seconds)
            now = await asyncio.to_thread(files.fingerprint, self.path)
            if now == self._seen:
                continue
            self._seen = now
            try:
                await self._reload(self.path)
            except InvalidArgument as error:
                _refuse(error)

    async def _reload(self, path: Path) -> None:
        text = await asyncio.to_thread(read, path)
        factory = self.completed(await asyncio.to_thread(parse, text, source=str(path)))
        for reviewer in self._reviewers:
            await reviewer(self.current, factory)
        self._put(factory, digest(text))

    def _put(self, factory: Factory, digest: str) -> None:
        change = Change(self.current, factory, digest, tuple(changes.between(self.current, factory)))
        self.current, self.digest = factory, digest
        for listener in self._listeners:
            listener(factory)
        in_force.report(digest)
        logger.info(
            "factory.yaml is reloaded and in force: %s",
            "; ".join(change.lines) or "nothing that is configured changed",
            extra={"genai_configuration": digest, "genai_changes": change.lines},
        )
        for follower in self._followers:
            follower(change)


def _refuse(error: InvalidArgument) -> None:
    in_force.refused()
    logger.error("factory.yaml is refused, the last good one stays in force: %s", error.message)
