"""The numerics contract for ONNX Runtime's own operators: a row's bits do not depend on the other rows of the step.

Every operator that an engine may hold, the builder's BUILTIN_OPS, needs a case here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime  # noqa: TID251  its kernels are what is tested
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from precast.builder.passes.check_supported import BUILTIN_OPS

Float32 = NDArray[np.float32]
Run = Callable[[Float32, NDArray[np.int32]], Float32]
"""(hidden states [T, H], wanted rows [R]) -> [R, H]"""

FEATURES = 48


def gather(num_threads: int) -> Run:
    node = helper.make_node("Gather", ["x", "rows"], ["y"], axis=0)
    rows = helper.make_tensor_value_info("rows", TensorProto.INT32, ["R"])
    session = _session(node, rows, num_threads)

    def run(x: Float32, rows: NDArray[np.int32]) -> Float32:
        (y,) = session.run(None, {"x": x, "rows": rows})
        return np.asarray(y)

    return run


def add(num_threads: int) -> Run:
    """Of the wanted rows to themselves in the opposite order of columns."""
    node = helper.make_node("Add", ["x", "other"], ["y"])
    session = _session(node, helper.make_tensor_value_info("other", TensorProto.FLOAT, ["T", FEATURES]), num_threads)

    def run(x: Float32, rows: NDArray[np.int32]) -> Float32:
        (y,) = session.run(None, {"x": x[rows], "other": x[rows, ::-1]})
        y[np.isnan(y)] = np.nan  # which of two NaNs comes out is nobody's business
        return np.asarray(y)

    return run


def _session(node: NodeProto, second_input: ValueInfoProto, num_threads: int) -> onnxruntime.InferenceSession:
    """A graph of one node with the input x [T, FEATURES] and another."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", FEATURES])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["R", FEATURES])
    graph = helper.make_graph([node], "graph", [x, second_input], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


CASES = {"Add": add, "Gather": gather}


def test_every_operator_that_an_engine_may_hold_has_a_case() -> None:
    assert set(CASES) == set(BUILTIN_OPS)


@pytest.fixture(scope="module", params=CASES)
def runs(request: pytest.FixtureRequest) -> tuple[Run, ...]:
    """The operator with one and with several threads."""
    return tuple(CASES[request.param](num_threads) for num_threads in (1, 3))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), num_rows=st.integers(1, 300))
def test_a_row_alone_has_the_bits_it_has_among_others(runs: tuple[Run, ...], data: Any, num_rows: int) -> None:
    # All bit patterns: infinities, subnormal numbers and NaNs with their payloads too.
    seed = data.draw(st.integers(0, 2**32 - 1))
    bits = np.random.default_rng(seed).integers(0, 2**32, (num_rows, FEATURES), dtype=np.uint32)
    wanted = data.draw(st.lists(st.integers(0, num_rows - 1), max_size=num_rows, unique=True))
    rows = np.array(wanted, np.int32)
    x = bits.view(np.float32)
    for run in runs:
        together = run(x, rows).view(np.uint32)
        assert together.shape == (len(rows), FEATURES)
        for i, row in enumerate(rows):
            alone = run(x[row : row + 1], np.zeros(1, np.int32)).view(np.uint32)
            np.testing.assert_array_equal(together[i], alone[0])
