"""The sample handbook, and which files of folders given on the command line are documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genaifactory_common.specs.sources import SAMPLES
from genaifactory_pipelines.sources import folder
from genaifactory_pipelines.sources.folder import FoundFiles

SAMPLE = Path(__file__).parent / "sample"
"""A small bilingual handbook, to ask questions about."""
SAMPLE_QUESTIONS = (
    "How many days of annual leave do I have?",
    "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?",
    "What must I do when I lose my hardware key?",
    "Pin của cảm biến Lúa 3 dùng được bao lâu?",
)
"""Questions that it answers."""


def find(paths: Iterable[Path]) -> FoundFiles:
    """As folder.find; the sample handbook has its name wherever it is. Raises InvalidArgument."""
    return folder.find(paths, names={SAMPLE: SAMPLES})
