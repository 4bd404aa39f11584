"""The report of a re-index."""

from __future__ import annotations

from genaifactory_pipelines.indexes.findings import Findings, Version
from genaifactory_pipelines.reports import Report


def html(knowledge_base: str, found: Findings, outcome: str) -> str:
    """outcome: what became of the new version, as a sentence."""
    report = Report(f"Index of {knowledge_base}: {found.version} {'passed' if found.passed else 'did not pass'}")
    report.text(outcome)
    report.heading("Checks")
    report.table(
        ("verdict", "check", "evidence"),
        [
            ("passed" if check.passed else "not passed", check.name, check.evidence)
            for check in sorted(found.checks, key=lambda each: each.passed)
        ],
    )
    report.heading("Versions")
    report.table(
        ("version", "tokens of a passage", "of these shared", "embedding model", "documents", "passages"),
        [_row(each) for each in found.versions],
    )
    report.heading("Search on the golden set")
    if not found.metrics:
        report.text("Not compared: no golden set was given.")
    else:
        report.table(
            ("metric", "items", found.version, found.before, "difference", "95 % interval"),
            [(name, f"{metric.items:,}", *metric.shown()) for name, metric in found.metrics.items()],
        )
    report.heading("Sources that were read before")
    report.table(
        ("source", "new", "changed", "removed", "unchanged", "refused"),
        [
            (each.source, *map(str, (each.added, each.replaced, each.removed, each.unchanged, each.refused)))
            for each in found.sources
        ],
    )
    return report.html()


def _row(version: Version) -> tuple[str, ...]:
    return (
        version.name,
        str(version.chunk_tokens),
        str(version.chunk_overlap_tokens),
        version.embedding_model,
        f"{version.documents:,}",
        f"{version.passages:,}",
    )
