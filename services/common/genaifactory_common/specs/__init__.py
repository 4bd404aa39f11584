"""The models of factory.yaml, the document that configures the platform.

Every service reads the part it needs; use the names of this package: `specs.Route`. `load` refuses an invalid document
with the path of the bad field; `Source` keeps the last valid one in force while the file changes.
"""

from __future__ import annotations

from genaifactory_common.specs.documents import InvalidConfiguration, digest, hash_key, load, parse, read
from genaifactory_common.specs.embedders import (
    AnyEmbedder,
    E5Embedder,
    MiniLMEmbedder,
    OnnxEmbedder,
    OpenAIEmbedder,
)
from genaifactory_common.specs.factory import Cors, Factory, Origin, Retired
from genaifactory_common.specs.gates import Gate, GateRule
from genaifactory_common.specs.models import CircuitBreaker, Model, ModelServerBackend, OpenAIBackend, Price, Retry
from genaifactory_common.specs.names import Name
from genaifactory_common.specs.policies import Policy, Rule
from genaifactory_common.specs.routes import Cache, KnowledgeBase, Prompt, Route, TaskName
from genaifactory_common.specs.source import Change, Derived, Source
from genaifactory_common.specs.sources import AnySource, BucketSource, FolderSource, PagesSource
from genaifactory_common.specs.splits import STABLE, Arm, Split
from genaifactory_common.specs.tenants import ApiKey, Limits, Permission, Role, Tenant

__all__ = [
    "STABLE",
    "AnyEmbedder",
    "AnySource",
    "ApiKey",
    "Arm",
    "BucketSource",
    "Cache",
    "Change",
    "CircuitBreaker",
    "Cors",
    "Derived",
    "E5Embedder",
    "Factory",
    "FolderSource",
    "Gate",
    "GateRule",
    "InvalidConfiguration",
    "KnowledgeBase",
    "Limits",
    "MiniLMEmbedder",
    "Model",
    "ModelServerBackend",
    "Name",
    "OnnxEmbedder",
    "OpenAIBackend",
    "OpenAIEmbedder",
    "Origin",
    "PagesSource",
    "Permission",
    "Policy",
    "Price",
    "Prompt",
    "Retired",
    "Retry",
    "Role",
    "Route",
    "Rule",
    "Source",
    "Split",
    "TaskName",
    "Tenant",
    "digest",
    "hash_key",
    "load",
    "parse",
    "read",
]
