"""What was found out about a new index version before it may serve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common.errors import NotFound
from genaifactory_pipelines.evaluation.gate import Verdict
from genaifactory_pipelines.evaluation.scoring import Metric
from genaifactory_pipelines.sources.sync import Synced
from genaifactory_pipelines.values import Values


class Check(Values):
    """A condition, and whether the version fulfils it."""

    name: str
    passed: bool
    evidence: str


class Version(Values):
    """An index version, as its tenant sees it."""

    name: str
    chunk_tokens: int
    chunk_overlap_tokens: int
    embedding_model: str
    documents: int
    """With passages of their own, which duplicates do not have."""
    passages: int


class Reread(Values):
    """What reading a source has changed."""

    source: str
    added: int
    replaced: int
    removed: int
    unchanged: int
    refused: int


class Findings(Values):
    """About a new version, and the active one that it was compared with."""

    version: str
    before: str
    versions: tuple[Version, ...]
    """Both, where the new one was built."""
    checks: tuple[Check, ...]
    metrics: dict[str, Metric]
    """Of the search; empty without a golden set."""
    sources: tuple[Reread, ...]

    @property
    def passed(self) -> bool:
        """Whether the version may serve."""
        return all(check.passed for check in self.checks)


def version(index: gateway_pb2.Index) -> Version:
    """Of the gateway's message."""
    return Version(
        name=index.version,
        chunk_tokens=index.chunk_tokens,
        chunk_overlap_tokens=index.chunk_overlap_tokens,
        embedding_model=index.embedding_model,
        documents=index.documents,
        passages=index.passages,
    )


def in_state(indexes: Iterable[gateway_pb2.Index], state: gateway_pb2.IndexState.ValueType) -> gateway_pb2.Index | None:
    """The first of the versions in a state."""
    return next((each for each in indexes if each.state == state), None)


def active(indexes: Iterable[gateway_pb2.Index]) -> gateway_pb2.Index:
    """The one that serves, which every knowledge base has."""
    found = in_state(indexes, gateway_pb2.INDEX_STATE_ACTIVE)
    assert found is not None
    return found


def previous(indexes: Iterable[gateway_pb2.Index], knowledge_base: str, *, field: str) -> gateway_pb2.Index:
    """The one that served before. Raises NotFound; field: names the knowledge base."""
    found = in_state(indexes, gateway_pb2.INDEX_STATE_PREVIOUS)
    if found is None:
        raise NotFound(f"'{knowledge_base}' has no version that served before.", field=field)
    return found


def reread(done: Synced) -> Reread:
    """Of the outcome of a synchronisation."""
    summary = done.summary
    return Reread(
        source=done.source,
        added=summary.added,
        replaced=summary.replaced,
        removed=summary.removed,
        unchanged=summary.unchanged + summary.duplicates,
        refused=len(summary.failures),
    )


def of_build(problem: str) -> Check:
    """problem: the retriever's; empty: it found none."""
    return Check(
        name="every document, with its access list",
        passed=not problem,
        evidence=problem or "the retriever compared each stored document with the new version",
    )


def of_counts(new: Version, active: Version) -> Check:
    """The number of documents is the same, and each has a passage at least."""
    return Check(
        name="as many documents as the active version",
        passed=new.documents == active.documents and new.passages >= new.documents,
        evidence=f"{new.documents:,} documents in {new.passages:,} passages; the active version has "
        f"{active.documents:,} in {active.passages:,}",
    )


def of_gate(verdict: Verdict) -> Sequence[Check]:
    """One for each rule and slice."""
    return [Check(name=each.what, passed=each.passed, evidence=each.evidence) for each in verdict.findings]
