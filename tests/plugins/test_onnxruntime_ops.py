"""Custom ops in Python, run by the real ONNX Runtime on the CPU: what reaches an op, and what comes back from it."""

import gc
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.custom_op import CUDA_PROVIDER, CustomOps, OpSchema
from precast.plugins.onnxruntime.op_node import MAX_RANK, DeviceOp
from precast.plugins.onnxruntime.ort_abi import ElementType, OrtError
from tests.plugins.ort_world import (
    DTYPES,
    FLOAT32,
    NEGATE,
    STREAM,
    Array,
    NumpyOp,
    make_ops,
    negate,
    node,
    open_session,
    run,
    view,
    write_graph,
    write_negate,
)

Attributes = Mapping[str, Any]
ANY = (FLOAT32, ["rows"])
"""A tensor of one open dimension."""


@pytest.fixture
def ops() -> CustomOps:
    return make_ops()


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def never(attributes: Attributes) -> DeviceOp:
    raise AssertionError("no node is made")


# ------------------------------------------------------------------------------------------------------ inputs, outputs


def test_an_op_computes_on_the_addresses_that_are_bound(ops: CustomOps, tmp_path: Path) -> None:
    op = NumpyOp(negate)
    ops.add(NEGATE, lambda attributes: op)
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros((3, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        run(session, {"x": x}, {"y": y})
    np.testing.assert_array_equal(y, -x)
    assert op.calls == [OpCall(((3, 2),), [x.ctypes.data], [y.ctypes.data], 0, STREAM)]


@pytest.mark.parametrize(
    ("names", "present"),
    [
        (["x", "a", "b"], [True, True, True]),
        (["x", "a"], [True, True, False]),
        (["x"], [True, False, False]),
        (["x", "", "b"], [True, False, True]),
        (["x", "", ""], [True, False, False]),
    ],
)
def test_inputs_that_a_node_leaves_out(ops: CustomOps, tmp_path: Path, names: list[str], present: list[bool]) -> None:
    op = NumpyOp(lambda call: None)
    ops.add(OpSchema("Some", (FLOAT32,) * 3, (FLOAT32,), num_optional_inputs=2), lambda attributes: op)
    inputs = {name: floats(*range(size)) for size, name in enumerate(names, 1) if name}
    graph = write_graph(tmp_path / "g.onnx", [node("Some", names, ["y"])], dict.fromkeys(inputs, ANY), {"y": ANY})
    with open_session(graph, ops) as session:
        run(session, inputs, {"y": floats(0)})
    (call,) = op.calls
    expected = [inputs[name] if there else None for there, name in zip(present, ["x", "a", "b"], strict=True)]
    assert call.inputs == [0 if array is None else array.ctypes.data for array in expected]
    assert call.shapes == tuple(() if array is None else array.shape for array in expected)


@pytest.mark.parametrize("names", [["y", "a", "b"], ["y", "a"], ["y"], ["y", "", "b"]])
def test_outputs_that_a_node_leaves_out(ops: CustomOps, tmp_path: Path, names: list[str]) -> None:
    op = NumpyOp(lambda call: None, lambda shapes: [shapes[0], (2,), (3,)])
    ops.add(OpSchema("Some", (FLOAT32,), (FLOAT32,) * 3, num_optional_outputs=2), lambda attributes: op)
    outputs = {name: np.zeros({"y": 1, "a": 2, "b": 3}[name], np.float32) for name in names if name}
    graph = write_graph(tmp_path / "g.onnx", [node("Some", ["x"], names)], {"x": ANY}, dict.fromkeys(outputs, ANY))
    with open_session(graph, ops) as session:
        run(session, {"x": floats(1)}, outputs)
    (call,) = op.calls
    assert call.outputs == [outputs[name].ctypes.data if name in outputs else 0 for name in ("y", "a", "b")]


@pytest.mark.parametrize("element_type", list(ElementType))
def test_every_element_type(ops: CustomOps, tmp_path: Path, element_type: ElementType) -> None:
    dtype = DTYPES[element_type]

    def copy(call: OpCall) -> None:
        view(call.outputs[0], call.shapes[0], dtype)[...] = view(call.inputs[0], call.shapes[0], dtype)

    ops.add(OpSchema("Copy", (element_type,), (element_type,)), lambda attributes: NumpyOp(copy))
    tensor = (element_type, ["rows"])
    graph = write_graph(tmp_path / "g.onnx", [node("Copy", ["x"], ["y"])], {"x": tensor}, {"y": tensor})
    x, y = np.array([0, 1, 1, 0, 1]).astype(dtype), np.zeros(5, dtype)
    with open_session(graph, ops) as session:
        assert session.inputs[0].element_type == element_type
        run(session, {"x": x}, {"y": y})
    np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


def test_one_name_with_two_element_types(ops: CustomOps, tmp_path: Path) -> None:
    seen: list[ElementType] = []
    for element_type in (ElementType.FLOAT16, ElementType.BFLOAT16):

        def make(attributes: Attributes, element_type: ElementType = element_type) -> DeviceOp:
            return NumpyOp(lambda call: seen.append(element_type))

        ops.add(OpSchema("Any", (element_type,), (element_type,)), make)
    for element_type in (ElementType.BFLOAT16, ElementType.FLOAT16):
        tensor = (element_type, ["rows"])
        graph = write_graph(tmp_path / "g.onnx", [node("Any", ["x"], ["y"])], {"x": tensor}, {"y": tensor})
        x, y = np.zeros((2, 1), DTYPES[element_type])
        with open_session(graph, ops) as session:
            run(session, {"x": x}, {"y": y})
    assert seen == [ElementType.BFLOAT16, ElementType.FLOAT16]


def test_shapes_that_change_and_empty_ones(ops: CustomOps, tmp_path: Path) -> None:
    asked: list[Any] = []

    def shapes(given: Any) -> Any:
        asked.append(given)
        return [(given[0][0] * 2, 2)]

    def stack(call: OpCall) -> None:
        x = view(call.inputs[0], call.shapes[0])
        view(call.outputs[0], (2 * len(x), 2))[...] = np.concatenate([x, -x])

    ops.add(NEGATE, lambda attributes: NumpyOp(stack, shapes))
    x, y = np.arange(10, dtype=np.float32).reshape(5, 2), np.zeros((10, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        for rows in (5, 2, 2, 0, 5):
            y[...] = 0
            run(session, {"x": x[:rows]}, {"y": y[: 2 * rows]})
            np.testing.assert_array_equal(y[: 2 * rows], np.concatenate([x[:rows], -x[:rows]]))
    assert asked == [((5, 2),), ((2, 2),), ((0, 2),), ((5, 2),)]  # again only where they change


def test_scalars_and_the_highest_rank(ops: CustomOps, tmp_path: Path) -> None:
    op = NumpyOp(lambda call: None, lambda shapes: [(1,)])
    ops.add(OpSchema("Rank", (FLOAT32, FLOAT32), (FLOAT32,)), lambda attributes: op)

    def run_ranks(rank: int) -> None:
        tensors = {"x": (FLOAT32, [1] * rank), "s": (FLOAT32, [])}
        graph = write_graph(tmp_path / "g.onnx", [node("Rank", ["x", "s"], ["y"])], tensors, {"y": (FLOAT32, [1])})
        with open_session(graph, ops) as session:
            run(session, {"x": np.zeros([1] * rank, np.float32), "s": np.zeros((), np.float32)}, {"y": floats(0)})

    run_ranks(MAX_RANK)
    assert op.calls[0].shapes == ((1,) * MAX_RANK, ())
    with pytest.raises(OrtError, match=r"the node: input 0 has 17 dimensions; at most 16 are read"):
        run_ranks(MAX_RANK + 1)


def test_nodes_one_after_the_other(ops: CustomOps, tmp_path: Path) -> None:
    """Tensors between them are ONNX Runtime's."""
    op = NumpyOp(negate)
    ops.add(NEGATE, lambda attributes: op)
    nodes = [node("Negate", [before], [after], after) for before, after in ("xa", "ab", "by")]
    graph = write_graph(tmp_path / "g.onnx", nodes, {"x": ANY}, {"y": ANY})
    x, y = floats(1, 2, 3), floats(0, 0, 0)
    with open_session(graph, ops) as session:
        run(session, {"x": x}, {"y": y})
    np.testing.assert_array_equal(y, -x)
    assert [call.inputs for call in op.calls[1:]] == [call.outputs for call in op.calls[:-1]]


def test_a_pool_is_written_where_it_is_bound(ops: CustomOps, tmp_path: Path) -> None:
    """As the pools of keys and values: an input that the op writes, at the bound address in each run."""

    def store(call: OpCall) -> None:
        row, pool = (view(address, shape) for address, shape in zip(call.inputs, call.shapes, strict=True))
        pool[int(row[0])] += row
        view(call.outputs[0], call.shapes[0])[...] = pool.sum(axis=0)

    op = NumpyOp(store)
    ops.add(OpSchema("Store", (FLOAT32, FLOAT32), (FLOAT32,)), lambda attributes: op)
    tensors = {"x": ANY, "pool": (FLOAT32, ["blocks", "rows"])}
    graph = write_graph(tmp_path / "g.onnx", [node("Store", ["x", "pool"], ["y"])], tensors, {"y": ANY})
    pool, x, y = np.zeros((4, 2), np.float32), floats(0, 0), floats(0, 0)
    with open_session(graph, ops) as session:
        binding = session.new_binding()
        binding.bind_input("pool", pool.ctypes.data, pool.shape)
        binding.bind_input("x", x.ctypes.data, x.shape)
        binding.bind_output("y", y.ctypes.data, y.shape)
        for step in range(4):
            x[:] = step, 10
            session.run(binding)
    np.testing.assert_array_equal(pool, [[0, 10], [1, 10], [2, 10], [3, 10]])
    np.testing.assert_array_equal(y, [6, 40])
    assert {call.inputs[1] for call in op.calls} == {pool.ctypes.data}


# ----------------------------------------------------------------------------------------------------------- attributes

EVERY_KIND = {"i": -(2**40), "f": 0.25, "s": "ümläut", "b": bytes(range(256)) * 3 + b"\0"}


def write_attributes(folder: Path, attributes: Attributes) -> Path:
    return write_graph(folder / "g.onnx", [node("Set", ["x"], ["y"], **attributes)], {"x": ANY}, {"y": ANY})


def read_attributes(ops: CustomOps, folder: Path, schema: OpSchema, attributes: Attributes) -> Attributes:
    made: list[Attributes] = []

    def make(attributes: Attributes) -> DeviceOp:
        made.append(attributes)
        return NumpyOp(negate)

    ops.add(schema, make)
    with open_session(write_attributes(folder, attributes), ops):
        return made[0]


def test_attributes_of_every_kind(ops: CustomOps, tmp_path: Path) -> None:
    kinds: Any = {name: type(value) for name, value in EVERY_KIND.items()}
    schema = OpSchema("Set", (FLOAT32,), (FLOAT32,), attributes=kinds, optional_attributes={"more": bytes, "n": int})
    assert read_attributes(ops, tmp_path, schema, EVERY_KIND) == EVERY_KIND


def test_attributes_that_a_node_may_have(ops: CustomOps, tmp_path: Path) -> None:
    schema = OpSchema(
        "Set", (FLOAT32,), (FLOAT32,), optional_attributes={"b": bytes, "s": str, "i": int, "empty": bytes}
    )
    given = {"b": b"\0a\0", "empty": b""}
    assert read_attributes(ops, tmp_path, schema, given) == given


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"attributes": {"n": int}}, "the attribute n (int) is missing"),
        ({"attributes": {"n": bytes}}, "the attribute n (bytes) is missing"),
        ({"attributes": {"f": int}}, "the attribute f is of type float, not int"),
        ({"attributes": {"i": float}}, "the attribute i is of type int, not float"),
        ({"optional_attributes": {"i": str}}, "the attribute i is of type int, not str"),
        ({"optional_attributes": {"s": int}}, "the attribute s is of type bytes, not int"),
        ({"attributes": {"b": str}}, "'utf-8' codec can't decode"),
    ],
)
def test_attributes_that_make_no_node(ops: CustomOps, tmp_path: Path, schema: Attributes, message: str) -> None:
    ops.add(OpSchema("Set", (FLOAT32,), (FLOAT32,), **schema), never)
    with pytest.raises(OrtError) as caught:
        open_session(write_attributes(tmp_path, EVERY_KIND), ops)
    assert f"the node: {message}" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


# --------------------------------------------------------------------------------------------------------------- errors


def test_an_exception_while_a_node_is_made(tmp_path: Path) -> None:
    errors: list[str] = []
    ops = make_ops(errors=errors)
    refused = KeyError("no such thing")

    def make(attributes: Attributes) -> DeviceOp:
        raise refused

    ops.add(NEGATE, make)
    graph = write_negate(tmp_path)
    for _ in range(2):
        with pytest.raises(OrtError, match=r"negate\.onnx: .*the node: 'no such thing'") as caught:
            open_session(graph, ops)
        assert caught.value.__cause__ is refused
    assert errors == ["the node: 'no such thing'"] * 2
    assert ops.num_nodes == 0


def test_an_exception_in_a_run_and_then_a_good_run(ops: CustomOps, tmp_path: Path) -> None:
    class TooLargeError(Exception):
        pass

    def refuse_large(call: OpCall) -> None:
        if call.shapes[0][0] > 2:
            raise TooLargeError("too läge")
        negate(call)

    ops.add(NEGATE, lambda attributes: NumpyOp(refuse_large))
    x, y = np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        for number in range(1, 4):
            with pytest.raises(OrtError, match="the node: too läge") as caught:
                run(session, {"x": x}, {"y": y})
            assert isinstance(caught.value.__cause__, TooLargeError)
            assert ops.errors == ["the node: too läge"] * number
            assert ops.take_exception() is None
            run(session, {"x": x[:2]}, {"y": y[:2]})
            np.testing.assert_array_equal(y[:2], -x[:2])


def test_the_first_of_several_exceptions_is_kept(ops: CustomOps) -> None:
    first, second = ValueError("1"), ValueError("2")
    for exception in (first, second):
        ops.api.take_error(ops.fail("a node", exception))
    assert ops.take_exception() is first
    assert ops.take_exception() is None
    assert ops.errors == ["a node: 1", "a node: 2"]


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(("error", "text"), [(ValueError(), "ValueError"), (WordlessError(), "WordlessError")])
def test_an_exception_without_words_is_called_by_its_type(ops: CustomOps, error: Exception, text: str) -> None:
    assert str(ops.api.take_error(ops.fail("a node", error))) == f"a node: {text}"


def test_an_interrupt_in_a_run_is_raised_as_it_is(ops: CustomOps, tmp_path: Path) -> None:
    def interrupt(call: OpCall) -> None:
        raise KeyboardInterrupt

    ops.add(NEGATE, lambda attributes: NumpyOp(interrupt))
    x = np.ones((1, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session, pytest.raises(KeyboardInterrupt):
        run(session, {"x": x}, {"y": x.copy()})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 2), (1, 2)], "the node: the op gives 2 output shapes; its schema has 1"),
        ([(2, 2)], "shape"),  # ONNX Runtime's words: y is bound with [1, 2]
    ],
)
def test_output_shapes_that_do_not_fit(ops: CustomOps, tmp_path: Path, shapes: Any, message: str) -> None:
    op = NumpyOp(negate, lambda given: shapes)
    ops.add(NEGATE, lambda attributes: op)
    x = np.ones((1, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        for _ in range(2):  # nothing of the first is remembered
            with pytest.raises(OrtError, match=message):
                run(session, {"x": x}, {"y": x.copy()})
    assert op.calls == []


def test_a_node_without_a_name_is_called_by_its_op(ops: CustomOps, tmp_path: Path) -> None:
    def refuse(attributes: Attributes) -> DeviceOp:
        raise ValueError("no")

    ops.add(NEGATE, refuse)
    graph = write_graph(tmp_path / "g.onnx", [node("Negate", ["x"], ["y"], name="")], {"x": ANY}, {"y": ANY})
    with pytest.raises(OrtError, match="Negate: no"):
        open_session(graph, ops)


@pytest.mark.parametrize(
    "schema",
    [
        {"inputs": (FLOAT32,), "num_optional_inputs": 2},
        {"inputs": (FLOAT32,), "num_optional_inputs": -1},
        {"inputs": (FLOAT32,), "num_optional_outputs": 1},
    ],
)
def test_schemas_that_make_no_sense(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"^Odd: -?\d of \d (in|out)puts are optional$"):
        OpSchema("Odd", outputs=(), **schema)


# ------------------------------------------------------------------------------------------------- workspace and stream


def test_the_workspace_is_asked_for_in_each_run(tmp_path: Path) -> None:
    asked: list[int] = []

    def workspace(size_bytes: int) -> int:
        asked.append(size_bytes)
        return 0x1000 * len(asked)

    ops = make_ops(workspace=workspace)
    op = NumpyOp(negate, workspace_bytes=100)
    ops.add(NEGATE, lambda attributes: op)
    x = np.ones((1, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        for _ in range(2):
            run(session, {"x": x}, {"y": x.copy()})
    assert asked == [100, 100]
    assert [call.workspace_address for call in op.calls] == [0x1000, 0x2000]


def test_a_workspace_that_there_is_not(tmp_path: Path) -> None:
    def workspace(size_bytes: int) -> int:
        raise MemoryError(f"no room for {size_bytes} bytes")

    ops = make_ops(workspace=workspace)
    ops.add(NEGATE, lambda attributes: NumpyOp(negate, workspace_bytes=5))
    x = np.ones((1, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        with pytest.raises(OrtError, match="the node: no room for 5 bytes") as caught:
            run(session, {"x": x}, {"y": x.copy()})
        assert isinstance(caught.value.__cause__, MemoryError)


def test_only_cuda_sessions_check_the_stream() -> None:
    assert not make_ops().check_stream
    assert make_ops(provider=CUDA_PROVIDER).check_stream


def test_another_stream_than_onnx_runtimes(tmp_path: Path) -> None:
    """On the CPU, ONNX Runtime's is 0."""
    streams = [STREAM, 0, STREAM]
    ops = make_ops(check_stream=True, stream=lambda: streams.pop(0))
    op = NumpyOp(negate)
    ops.add(NEGATE, lambda attributes: op)
    x = np.ones((1, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        with pytest.raises(OrtError, match=r"the node: .* on the CUDA stream 0x0, not on 0x4d: .*user_compute_stream"):
            run(session, {"x": x}, {"y": x.copy()})
        for _ in range(2):
            run(session, {"x": x}, {"y": x.copy()})
    assert [call.stream for call in op.calls] == [0, STREAM]  # looked at until it is right once


# ------------------------------------------------------------------------------------------------------------ lifetimes


def test_two_sessions_with_the_same_ops(ops: CustomOps, tmp_path: Path) -> None:
    made: list[weakref.ref[NumpyOp]] = []

    def make(attributes: Attributes) -> DeviceOp:
        op = NumpyOp(negate)
        made.append(weakref.ref(op))
        return op

    ops.add(NEGATE, make)
    graph = write_negate(tmp_path)
    x, y = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    first, second = open_session(graph, ops), open_session(graph, ops)
    ops.close()
    ops.close()
    assert ops.num_nodes == 2
    for session in (first, second, first):
        run(session, {"x": x}, {"y": y})
    np.testing.assert_array_equal(y, -x)
    first.close()
    assert ops.num_nodes == 1
    run(second, {"x": x}, {"y": y})
    second.close()
    assert ops.num_nodes == 0
    gc.collect()
    assert [op() for op in made] == [None, None]
    with pytest.raises(ValueError, match=r"^the ops of the domain test are closed$"):
        open_session(graph, ops)
    with pytest.raises(ValueError, match=r"^the ops of the domain test are closed$"):
        ops.add(NEGATE, make)


def test_a_session_keeps_its_ops(tmp_path: Path) -> None:
    ops = make_ops()
    ops.add(NEGATE, lambda attributes: NumpyOp(negate))
    session = open_session(write_negate(tmp_path), ops)
    del ops
    gc.collect()
    x, y = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    run(session, {"x": x}, {"y": y})
    np.testing.assert_array_equal(y, -x)
    session.close()


def test_an_op_may_run_another_session(ops: CustomOps, tmp_path: Path) -> None:
    inner_ops = make_ops()
    inner_ops.add(NEGATE, lambda attributes: NumpyOp(negate))
    graph = write_negate(tmp_path)
    with open_session(graph, inner_ops) as inner:

        def delegate(call: OpCall) -> None:
            x = view(call.inputs[0], call.shapes[0])
            run(inner, {"x": x}, {"y": view(call.outputs[0], call.shapes[0])})

        ops.add(NEGATE, lambda attributes: NumpyOp(delegate))
        x, y = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
        with open_session(graph, ops) as session:
            run(session, {"x": x}, {"y": y})
    np.testing.assert_array_equal(y, -x)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class ForgetfulOp(NumpyOp):
    def __init__(self) -> None:
        super().__init__(negate, workspace_bytes=8)

    def run(self, call: OpCall) -> None:
        self._run(call)


def test_runs_leave_nothing_behind(ops: CustomOps, tmp_path: Path) -> None:
    ops.add(NEGATE, lambda attributes: ForgetfulOp())
    x, y = np.ones((64, 2), np.float32), np.zeros((64, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:

        def many() -> None:
            for rows in range(1, 101):
                run(session, {"x": x[: rows % 50 + 1]}, {"y": y[: rows % 50 + 1]})
            gc.collect()

        many()
        before = resident_bytes()
        many()
        many()
        assert resident_bytes() - before < 1 << 20


def test_failed_runs_leave_nothing_behind(tmp_path: Path) -> None:
    class RefusalError(Exception):
        pass

    def refuse(call: OpCall) -> None:
        raise RefusalError("no")

    ops = make_ops()
    ops.add(NEGATE, lambda attributes: NumpyOp(refuse))
    x = np.ones((1, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        for _ in range(50):
            with pytest.raises(OrtError):
                run(session, {"x": x}, {"y": x.copy()})
    gc.collect()
    assert [thing for thing in gc.get_objects() if type(thing) is RefusalError] == []
