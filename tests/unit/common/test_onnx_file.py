"""ONNX files that the platform writes, read by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from genaifactory_common import onnx_file
from genaifactory_common.onnx_file import FLOAT, INT64


def test_onnxruntime_runs_a_graph_with_constants_attributes_and_a_dimension_of_any_size() -> None:
    table = np.arange(2000, dtype=np.float32).reshape(500, 4)  # more than one byte's worth of sizes
    written = onnx_file.model(
        "lookup",
        nodes=[
            onnx_file.node("Gather", ["table", "ids"], ["rows"]),
            onnx_file.node("LeakyRelu", ["rows"], ["y"], attributes={"alpha": 0.25}),
            onnx_file.node("Softmax", ["y"], ["z"], attributes={"axis": -1}),
        ],
        constants=[onnx_file.tensor("table", table.T.copy().T - 900)],
        inputs=[onnx_file.variable("ids", INT64, [1, "tokens"])],
        outputs=[onnx_file.variable("y", FLOAT, [1, "tokens", 4]), onnx_file.variable("z", FLOAT, [1, "tokens", 4])],
        opsets={"": 20},
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    for ids in ([[499, 0, 7]], [[300]]):
        y, z = session.run(None, {"ids": np.array(ids, np.int64)})
        rows = table[np.array(ids)] - 900
        assert np.array_equal(y, np.where(rows < 0, 0.25 * rows, rows).astype(np.float32))
        assert np.allclose(z.sum(axis=-1), 1)


def test_an_unsupported_dtype_is_an_error() -> None:
    with pytest.raises(KeyError, match="float64"):
        onnx_file.tensor("wide", np.zeros(1, np.float64))
