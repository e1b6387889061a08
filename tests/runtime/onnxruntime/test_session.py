"""Sessions of the real ONNX Runtime on the CPU: what they tell of a graph, what is bound to it, and how they end."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from precast.plugins.onnxruntime.custom_op import CUDA_PROVIDER, CustomOps
from precast.plugins.onnxruntime.ort_abi import ElementType, OrtApi, OrtError
from precast.runtime.onnxruntime import session as session_module
from precast.runtime.onnxruntime.ort_log import take_messages
from precast.runtime.onnxruntime.session import CPU_PROVIDER, OrtSession, Provider, TensorInfo
from tests.plugins.ort_world import (
    CPU,
    FLOAT32,
    NEGATE,
    NumpyOp,
    Tensor,
    Tensors,
    bind,
    library,
    make_ops,
    negate,
    node,
    open_api,
    open_session,
    run,
    view,
    write_graph,
    write_negate,
)

X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def ops() -> CustomOps:
    ops = make_ops()
    ops.add(NEGATE, lambda attributes: NumpyOp(negate))
    return ops


# ----------------------------------------------------------------------------------------------------- what a graph has


def test_inputs_and_outputs_in_the_graphs_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["b"], ["d"], to=TensorProto.BFLOAT16),
        helper.make_node("Identity", ["a"], ["c"]),
    ]
    inputs: Tensors = {"b": (ElementType.FLOAT16, ["rows", 3]), "a": (ElementType.INT64, [])}
    outputs: Tensors = {"d": (ElementType.BFLOAT16, ["rows", 3]), "c": (ElementType.INT64, [])}
    with open_session(write_graph(tmp_path / "g.onnx", nodes, inputs, outputs), make_ops()) as session:
        assert session.inputs == (
            TensorInfo("b", ElementType.FLOAT16, (-1, 3), ("rows", "")),
            TensorInfo("a", ElementType.INT64, ()),
        )
        assert session.outputs == (
            TensorInfo("d", ElementType.BFLOAT16, (-1, 3), ("rows", "")),
            TensorInfo("c", ElementType.INT64, ()),
        )


def test_built_in_ops_and_ours_run_in_one_graph(ops: CustomOps, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"]), node("Negate", ["twice"], ["y"])]
    tensor: Tensor = (FLOAT32, ["rows", 2])
    y = np.zeros_like(X)
    with open_session(write_graph(tmp_path / "g.onnx", nodes, {"x": tensor}, {"y": tensor}), ops) as session:
        run(session, {"x": X}, {"y": y})
    np.testing.assert_array_equal(y, -2 * X)


@pytest.mark.parametrize(
    ("element_type", "message"),
    [
        (TensorProto.DOUBLE, "input x is of ONNX's element type 11, which is not supported"),
        (None, "input x is no tensor"),
    ],
)
def test_a_graph_of_what_is_not_supported(tmp_path: Path, element_type: int | None, message: str) -> None:
    kind = (
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"]))
        if element_type is None
        else helper.make_tensor_type_proto(element_type, ["n"])
    )
    x, y = (helper.make_value_info(name, kind) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "g.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OrtError, match=f"g.onnx: {re.escape(message)}"):
        open_session(path, make_ops())


# ------------------------------------------------------------------------------------------------------------- bindings


def test_binding_again_replaces(ops: CustomOps, tmp_path: Path) -> None:
    first, second = np.zeros_like(X), np.zeros_like(X)
    with open_session(write_negate(tmp_path), ops) as session:
        binding = session.new_binding()
        bind(binding, {"x": X}, {"y": first})
        session.run(binding)
        bind(binding, {"x": X[1:]}, {"y": second[:2]})
        first[...] = 0
        session.run(binding)
        bind(binding, {"x": X[1:]}, {"y": second[:2]})  # the same
        session.run(binding)
    assert not first.any()
    np.testing.assert_array_equal(second, [[-2, -3], [-4, -5], [0, 0]])


def test_bindings_are_apart(ops: CustomOps, tmp_path: Path) -> None:
    """As those of two steps in flight."""
    outputs = np.zeros_like(X), np.zeros_like(X)
    with open_session(write_negate(tmp_path), ops) as session:
        bindings = session.new_binding(), session.new_binding()
        for scale, (binding, y) in enumerate(zip(bindings, outputs, strict=True), 1):
            bind(binding, {"x": scale * X}, {"y": y})
        kept = [scale * X for scale in (1, 2)]
        for binding, x, y in zip(bindings, kept, outputs, strict=True):
            bind(binding, {"x": x}, {"y": y})
        for number in (0, 1, 0):
            session.run(bindings[number])
        bindings[0].close()
        session.run(bindings[1])
    for x, y in zip(kept, outputs, strict=True):
        np.testing.assert_array_equal(y, -x)


def test_tensors_without_elements_may_lie_nowhere(ops: CustomOps, tmp_path: Path) -> None:
    with open_session(write_negate(tmp_path), ops) as session:
        binding = session.new_binding()
        binding.bind_input("x", 0, (0, 2))
        binding.bind_output("y", 0, [0, 2])
        session.run(binding)


@pytest.mark.parametrize(
    ("name", "address", "shape", "message"),
    [
        ("z", 64, (3, 2), "negate.onnx has no input 'z'; it has x"),
        ("y", 64, (3, 2), "negate.onnx has no input 'y'; it has x"),
        ("x", 64, (3, 3), "input x: shape (3, 3) does not fit (any, 2)"),
        ("x", 64, (2,), "input x: shape (2,) does not fit (any, 2)"),
        ("x", 64, (-1, 2), "input x: shape (-1, 2) does not fit (any, 2)"),
        ("x", 0, (3, 2), "input x: the address is 0, for 24 bytes"),
    ],
)
def test_what_cannot_be_bound(
    ops: CustomOps, tmp_path: Path, name: str, address: int, shape: tuple[int, ...], message: str
) -> None:
    y = np.zeros_like(X)
    with open_session(write_negate(tmp_path), ops) as session:
        binding = session.new_binding()
        bind(binding, {"x": X}, {"y": y})
        with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
            binding.bind_input(name, address, shape)
        session.run(binding)  # with what was bound before
        with pytest.raises(ValueError, match=r"^output y: shape \(3,\) does not fit \(any, 2\)$"):
            binding.bind_output("y", 64, (3,))
    np.testing.assert_array_equal(y, -X)


def test_a_run_without_all_tensors(ops: CustomOps, tmp_path: Path) -> None:
    with open_session(write_negate(tmp_path), ops) as session:
        binding = session.new_binding()
        with pytest.raises(ValueError, match=r"negate\.onnx: not bound: input x, output y$"):
            session.run(binding)
        binding.bind_input("x", X.ctypes.data, X.shape)
        with pytest.raises(ValueError, match=r"negate\.onnx: not bound: output y$"):
            session.run(binding)


def test_shapes_that_disagree_are_onnx_runtimes_to_refuse(ops: CustomOps, tmp_path: Path) -> None:
    y = np.zeros_like(X)
    with open_session(write_negate(tmp_path), ops) as session:
        with pytest.raises(OrtError, match="shape"):
            run(session, {"x": X}, {"y": y[:2]})
        run(session, {"x": X}, {"y": y})
    np.testing.assert_array_equal(y, -X)


# ------------------------------------------------------------------------------------------------ what cannot be opened


def test_a_graph_that_is_not_there(ops: CustomOps, tmp_path: Path) -> None:
    with pytest.raises(OrtError, match=r"none\.onnx.* (doesn't|does not) exist"):
        open_session(tmp_path / "none.onnx", ops)


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x0a"])
def test_a_file_that_is_no_graph(ops: CustomOps, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(OrtError, match=r"broken\.onnx") as caught:
        open_session(path, ops)
    assert str(caught.value).count(str(path)) <= 2


def test_an_op_that_nobody_has(ops: CustomOps, tmp_path: Path) -> None:
    tensor = (FLOAT32, ["n"])
    graph = write_graph(tmp_path / "g.onnx", [node("Unknown", ["x"], ["y"])], {"x": tensor}, {"y": tensor})
    with pytest.raises(OrtError, match="Unknown"):
        open_session(graph, ops)


def test_an_input_of_another_type_than_the_ops(ops: CustomOps, tmp_path: Path) -> None:
    tensor = (ElementType.INT32, ["n"])
    graph = write_graph(tmp_path / "g.onnx", [node("Negate", ["x"], ["y"])], {"x": tensor}, {"y": tensor})
    with pytest.raises(OrtError, match=r"tensor\(int32\)"):
        open_session(graph, ops)


def test_settings_reach_onnx_runtime(ops: CustomOps, tmp_path: Path) -> None:
    graph = write_negate(tmp_path)
    open_session(graph, ops, config={"session.load_model_format": "ONNX"}).close()
    with pytest.raises(OrtError, match=r"negate\.onnx: .*key"):
        open_session(graph, ops, config={"": "1"})


def test_cuda_where_onnx_runtime_has_none(ops: CustomOps, tmp_path: Path) -> None:
    """The package onnxruntime is built without."""
    with pytest.raises(OrtError, match=r"negate\.onnx: .*(CUDA.*not enabled|Failed to load .*cuda)"):
        open_session(write_negate(tmp_path), ops, provider=Provider(CUDA_PROVIDER, "Cuda"))


def test_the_settings_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA is asked for, without one."""
    calls: list[Any] = []

    class Api:
        def make(self, name: str) -> int:
            calls.append(name)
            return 5

        def call(self, name: str, *arguments: Any) -> None:
            calls.append((name, *(list(value) if hasattr(value, "__len__") else value for value in arguments)))

        def release(self, kind: str, handle: int) -> None:
            calls.append(("release", kind, handle))

    options = {"user_compute_stream": "77", "use_tf32": "0"}
    session_module._append_cuda(Api(), 9, Provider(CUDA_PROVIDER, "Cuda", 1, options))  # type: ignore[arg-type]
    keys = [b"device_id", b"user_compute_stream", b"use_tf32"]
    assert calls == [
        "CreateCUDAProviderOptions",
        ("UpdateCUDAProviderOptions", 5, keys, [b"1", b"77", b"0"], 3),
        ("UpdateCUDAProviderOptionsWithValue", 5, list(b"user_compute_stream"), 77),
        ("SessionOptionsAppendExecutionProvider_CUDA_V2", 9, 5),
        ("release", "CUDAProviderOptions", 5),
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("RocmExecutionProvider", {}, "the execution provider RocmExecutionProvider is not one of"),
        (CPU_PROVIDER, {"device_id": "0"}, "CPUExecutionProvider has no options; got device_id"),
    ],
)
def test_providers_that_there_are_not(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Provider(name, "Cpu", 0, options)


# ------------------------------------------------------------------------------------------------------------------ end


def test_closing_twice_and_in_any_order(ops: CustomOps, tmp_path: Path) -> None:
    session = open_session(write_negate(tmp_path), ops)
    first, second = session.new_binding(), session.new_binding()
    bind(second, {"x": X}, {"y": np.zeros_like(X)})
    first.close()
    first.close()
    ops.close()
    session.close()
    session.close()
    second.close()
    for binding in (first, second):
        with pytest.raises(ValueError, match=r"the binding of .*negate\.onnx is closed$"):
            session.run(binding)
        with pytest.raises(ValueError, match=r"the binding of .*negate\.onnx is closed$"):
            binding.bind_input("x", X.ctypes.data, X.shape)
    with pytest.raises(ValueError, match=r"the session of .*negate\.onnx is closed$"):
        session.new_binding()


def test_bindings_that_nobody_closes_are_closed_with_the_session(
    ops: CustomOps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    api, release = open_api(), OrtApi.release

    def release_and_tell(kind: str, handle: int) -> None:
        released.append(kind)
        release(api, kind, handle)

    monkeypatch.setattr(api, "release", release_and_tell)
    with open_session(write_negate(tmp_path), ops) as session:
        for _ in range(3):
            bind(session.new_binding(), {"x": X}, {"y": X})
        session.new_binding().close()
        released.clear()
    assert released == ["IoBinding", "Value", "Value"] * 3 + ["Session", "RunOptions", "MemoryInfo", "Env"]


def test_a_session_that_cannot_be_opened_leaves_no_nodes(ops: CustomOps, tmp_path: Path) -> None:
    nodes = [node("Negate", ["x"], ["z"], "a"), node("Unknown", ["z"], ["y"], "b")]
    tensor = (FLOAT32, ["n"])
    graph = write_graph(tmp_path / "g.onnx", nodes, {"x": tensor}, {"y": tensor})
    for _ in range(3):
        with pytest.raises(OrtError):
            open_session(graph, ops)
    assert ops.num_nodes == 0


def test_errors_are_on_stderr_and_kept(ops: CustomOps, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(call: Any) -> None:
        raise ValueError("words")

    refusing = make_ops()
    refusing.add(NEGATE, lambda attributes: NumpyOp(refuse))
    take_messages()
    with open_session(write_negate(tmp_path), refusing) as session, pytest.raises(OrtError, match=r"words$"):
        run(session, {"x": X}, {"y": np.zeros_like(X)})
    assert re.search(r"^ONNX Runtime: .*the node: words$", capfd.readouterr().err, flags=re.MULTILINE)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from precast.plugins.onnxruntime.custom_op import CustomOps, OpSchema
from precast.plugins.onnxruntime.ort_abi import ElementType, OrtApi
from precast.runtime.onnxruntime.session import OrtSession, Provider

class Op:
    def output_shapes(self, shapes): return [shapes[0]]
    def workspace_bytes(self, shapes): return 0
    def run(self, call): raise ValueError("no")

api = OrtApi(Path(sys.argv[1]))
ops = CustomOps(api, "test", "CPUExecutionProvider", lambda size: 1, lambda: 0)
ops.add(OpSchema("Negate", (ElementType.FLOAT32,), (ElementType.FLOAT32,)), lambda attributes: Op())
session = OrtSession(api, Path(sys.argv[2]), ops, Provider("CPUExecutionProvider", "Cpu"))
binding = session.new_binding()
binding.bind_input("x", 64, (0, 2))
binding.bind_output("y", 64, (0, 2))
assert not [name for name in sys.modules if name == "onnxruntime" or name.startswith("onnxruntime.")]
print("at the end")
"""


def test_a_process_may_end_with_sessions_open(tmp_path: Path) -> None:
    site = str(Path(sys.modules["precast"].__path__[0]).parent)
    command = [sys.executable, "-c", PROGRAM, str(library()), str(write_negate(tmp_path)), site]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "at the end\n", "")


def test_memory_of_the_op_is_that_of_the_binding(tmp_path: Path) -> None:
    """Nothing is copied between the caller's tensors and the op."""
    op = NumpyOp(lambda call: view(call.outputs[0], call.shapes[0]).fill(view(call.inputs[0], call.shapes[0])[0, 0]))
    ops = make_ops()
    ops.add(NEGATE, lambda attributes: op)
    memory = np.zeros((4, 2), np.float32)
    with open_session(write_negate(tmp_path), ops) as session:
        for row in range(3):
            memory[row] = row + 1
            run(session, {"x": memory[row : row + 1]}, {"y": memory[row + 1 : row + 2]})
            assert op.calls[-1].inputs == [memory[row:].ctypes.data]
            assert op.calls[-1].outputs == [memory[row + 1 :].ctypes.data]
    np.testing.assert_array_equal(memory[3], [3, 3])


def test_two_libraries_of_one_file_are_one_environment(ops: CustomOps, tmp_path: Path) -> None:
    graph, y = write_negate(tmp_path), np.zeros_like(X)
    other_api = OrtApi(library())
    other_ops = CustomOps(other_api, "test", CPU_PROVIDER, lambda size: 1, lambda: 0)
    other_ops.add(NEGATE, lambda attributes: NumpyOp(negate))
    with OrtSession(other_api, graph, other_ops, CPU):
        first = OrtSession(open_api(), graph, ops, CPU)
    run(first, {"x": X}, {"y": y})
    first.close()
    np.testing.assert_array_equal(y, -X)
