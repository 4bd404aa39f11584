"""ONNX graphs on disk: built once into a cache, told apart by their digest, and run on the CPU.

Needs the extra `minilm`. Every function blocks.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from genaifactory_common import files

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)


def session(graph: Path, *, threads: int, disabled_optimizers: Iterable[str] = ()) -> InferenceSession:
    """The graph, loaded. threads: processor threads of one run. Raises what onnxruntime raises for a bad file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A waiting thread must not occupy a core that other requests need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled_optimizers)
    )


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the files' contents, in hex. Raises OSError."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def ensure(graph: Path, build: Callable[[], bytes]) -> None:
    """Builds the graph unless it is there undamaged: with a damaged one a model fails, or computes wrong vectors."""
    checksum = graph.with_suffix(".crc32")
    try:
        if checksum.read_text(encoding="ascii", errors="replace") == _crc32(graph):
            return
        logger.warning("%s is damaged and is built again", graph)
    except FileNotFoundError:
        pass  # the first start, or the first after a version that wrote no checksum
    graph.parent.mkdir(parents=True, exist_ok=True)
    checksum.unlink(missing_ok=True)
    files.write(graph, build())
    files.write(checksum, _crc32(graph).encode())


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"
