"""Migrations that a database may have are never edited: it would lack what was added to them."""

from __future__ import annotations

import hashlib
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services"
SHA256 = {
    "monitor/genaifactory_monitor/migrations/versions/0001_interactions_feedback_usage.py": (
        "7edeb6b8febac9f8d1e57502cb76e1b95f9335b4065710c0c3511c3441efe196"
    ),
    "monitor/genaifactory_monitor/migrations/versions/0002_records_releases.py": (
        "beee3413aebfdbb97bfc6317531f7f7b218ff6ca4de133c898cc5245bb868edf"
    ),
    "monitor/genaifactory_monitor/migrations/versions/0003_releases_with_adapters.py": (
        "68eab1530294cff0c7c754e23cb4f6729594a54b286d1182d4c1adc700bfb57b"
    ),
    "monitor/genaifactory_monitor/migrations/versions/0004_batches.py": (
        "85edbf53b36dd83f454bc61a910f7de401bff7bfdd4c45c35d99215295d39dd8"
    ),
    "monitor/genaifactory_monitor/migrations/versions/0005_drift_reports.py": (
        "a3a483a1bde7c13f7749dda0e49680a1e24fdba5e5f26af536e2323bd8eb260e"
    ),
    "monitor/genaifactory_monitor/migrations/versions/0006_splits.py": (
        "ac29e437df8bea0c8683770691ea16100a25a1720d21c2ed256ad7d648ea68a8"
    ),
    "orchestrator/genaifactory_orchestrator/stores/migrations/versions/0001_conversations.py": (
        "33c2997492e91b150cbacbd6881c0a846a3b761105f353876c2e7bda6cbe2c07"
    ),
}


def test_no_committed_migration_is_changed() -> None:
    found = {
        str(script.relative_to(SERVICES)): hashlib.sha256(script.read_bytes()).hexdigest()
        for script in SERVICES.glob("*/genaifactory_*/**/migrations/versions/*.py")
    }
    changed = sorted(name for name in SHA256 if found.get(name) != SHA256[name])
    assert not changed, f"{changed}: databases were migrated by these files; restore them, and add a new migration"
    new = {name: digest for name, digest in found.items() if name not in SHA256}
    assert not new, f"add the new migrations to SHA256 in {Path(__file__).name}: {new}"
