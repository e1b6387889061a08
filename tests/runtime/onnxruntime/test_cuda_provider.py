"""The CUDA execution provider of a real onnxruntime-gpu, on a stub CUDA that computes nothing: no GPU is needed.

What can be seen so: that the provider has a kernel for each node, which copies nothing from or to the host; what our
ops are called with; and all calls of CUDA that a run makes, so that a CUDA graph can be captured of it.

The package is found at build/onnxruntime-gpu, where ./test puts it, or through PRECAST_ONNXRUNTIME_CUDA.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from precast.plugins.domain import DOMAIN
from precast.runtime.onnxruntime.cuda_libraries import CUDA_PROVIDER_LIBRARY, PATH_VARIABLE, find_onnxruntime_gpu
from tests.runtime.onnxruntime.stub_cuda import build as stub_cuda

REPOSITORY = Path(__file__).resolve().parents[3]
UNPACKED = REPOSITORY / "build" / "onnxruntime-gpu"
WARM_ROWS = [1, 3, 200]
COLD_ROWS = 20_000  # more than the arena has

MICROSOFT = "com.microsoft"
HALVES = ("float16", "bfloat16")
ROWS = "rows"
HIDDEN, VOCABULARY, NUM_TOP = 64, 512, 20

# ------------------------------------------------------------------------------------------------------------- graphs


@dataclass(frozen=True)
class Graph:
    """One that opens on its own.

    Attributes:
        inputs, outputs: (name, dtype, shape); each open dimension is the number of rows.
        constants: (name, dtype, shape, values, or None for zeros).
    """

    nodes: Sequence[onnx.NodeProto]
    inputs: Sequence[tuple[str, str, Sequence[int | str]]]
    outputs: Sequence[tuple[str, str, Sequence[int | str]]]
    constants: Sequence[tuple[str, str, Sequence[int], Sequence[int] | None]] = ()

    def save(self, path: Path) -> None:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, _element(dtype), shape) for name, dtype, shape in self.inputs],
            [helper.make_tensor_value_info(name, _element(dtype), shape) for name, dtype, shape in self.outputs],
            [_constant(*constant) for constant in self.constants],
        )
        opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in (DOMAIN, MICROSOFT))]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _element(dtype: str) -> int:
    return int(TensorProto.DataType.Value({"float32": "FLOAT"}.get(dtype, dtype.upper())))


def _constant(name: str, dtype: str, shape: Sequence[int], values: Sequence[int] | None) -> onnx.TensorProto:
    if values is not None:
        return helper.make_tensor(name, _element(dtype), shape, values)
    num_bytes = helper.tensor_dtype_to_np_dtype(_element(dtype)).itemsize
    for size in shape:
        num_bytes *= size
    return helper.make_tensor(name, _element(dtype), shape, bytes(num_bytes), raw=True)


def one_node(
    op: str,
    inputs: Sequence[tuple[str, Sequence[int | str]]],
    outputs: Sequence[tuple[str, Sequence[int | str]]],
    constants: Sequence[tuple[str, Sequence[int], Sequence[int] | None]] = (),
    domain: str = "",
    **attributes: Any,
) -> Graph:
    """Inputs come before constants, all without names: x0, x1, ... and y0, y1, ..."""
    names = [f"x{index}" for index in range(len(inputs) + len(constants))]
    return Graph(
        [helper.make_node(op, names, [f"y{i}" for i in range(len(outputs))], "the-node", domain=domain, **attributes)],
        [(name, *given) for name, given in zip(names, inputs, strict=False)],
        [(f"y{index}", *given) for index, given in enumerate(outputs)],
        [(name, *given) for name, given in zip(names[len(inputs) :], constants, strict=True)],
    )


def builtin_ops() -> dict[str, Graph]:
    """Those of ONNX Runtime that graphs of engines may have, one graph each."""
    graphs: dict[str, Graph] = {}
    for dtype in HALVES:
        graphs |= {f"{name}-{dtype}": graph for name, graph in _ops_of_floats(dtype).items()}
    for dtype in (*HALVES, "int32"):
        graphs |= {f"{name}-{dtype}": graph for name, graph in _ops_of_any(dtype).items()}
    return graphs | _ops_of_indices() | _ops_of_logits()


def _ops_of_floats(dtype: str) -> dict[str, Graph]:
    x, y = (dtype, (ROWS, HIDDEN)), (dtype, (ROWS, 32))
    graphs = {
        "Gemm": one_node("Gemm", [x], [y], [(dtype, (32, HIDDEN), None)], transB=1),
        "Gemm-bias": one_node("Gemm", [x], [y], [(dtype, (32, HIDDEN), None), (dtype, (32,), None)], transB=1),
        "MatMul": one_node("MatMul", [x], [y], [(dtype, (HIDDEN, 32), None)]),
        "Cast-to-float32": one_node("Cast", [x], [("float32", x[1])], to=TensorProto.FLOAT),
        "Cast-from-float32": one_node("Cast", [("float32", x[1])], [x], to=_element(dtype)),
        "Mul": one_node("Mul", [x, x], [x]),
    }
    for bits in (4, 8):
        for block_size in (32, 128):
            graphs[f"MatMulNBits-{bits}-{block_size}"] = _quantized(dtype, bits, block_size)
    return graphs


def _quantized(dtype: str, bits: int, block_size: int) -> Graph:
    num_inputs, num_outputs = 256, 64
    num_blocks = num_inputs // block_size
    packed = ("uint8", (num_outputs, num_blocks, block_size * bits // 8), None)
    scales = (dtype, (num_outputs, num_blocks), None)
    sizes = {"K": num_inputs, "N": num_outputs, "bits": bits, "block_size": block_size}
    x, y = (dtype, (ROWS, num_inputs)), (dtype, (ROWS, num_outputs))
    return one_node("MatMulNBits", [x], [y], [packed, scales], MICROSOFT, **sizes)


def _ops_of_any(dtype: str) -> dict[str, Graph]:
    x, half = (dtype, (ROWS, HIDDEN)), (dtype, (ROWS, HIDDEN // 2))
    start, end, axis = (("int64", (1,), [value]) for value in (0, HIDDEN // 2, 1))
    halves = ("int64", (2,), [HIDDEN // 2] * 2)
    parted = (dtype, (ROWS, 8, 8))
    return {
        "Gather": one_node("Gather", [x, ("int32", (ROWS,))], [x]),
        "Slice": one_node("Slice", [x], [half], [start, end, axis]),
        "Split": one_node("Split", [x], [half, half], [halves], axis=1),
        "Concat": one_node("Concat", [half, half], [x], axis=1),
        "Transpose": one_node("Transpose", [parted], [(dtype, (8, ROWS, 8))], perm=[1, 0, 2]),
        "Reshape": one_node("Reshape", [x], [parted], [("int64", (3,), [-1, 8, 8])]),
        "Unsqueeze": one_node("Unsqueeze", [x], [(dtype, (ROWS, 1, HIDDEN))], [axis]),
        "Squeeze": one_node("Squeeze", [(dtype, (ROWS, 1, HIDDEN))], [x], [axis]),
        "Where": one_node("Where", [("bool", x[1]), x, x], [x]),
        "Add": one_node("Add", [x, x], [x]),
        "Sub": one_node("Sub", [x, x], [x]),
        "Min": one_node("Min", [x, x], [x]),
        "Max": one_node("Max", [x, x], [x]),
    }


def _ops_of_indices() -> dict[str, Graph]:
    x, truth = ("int32", (ROWS,)), ("bool", (ROWS,))
    return {
        "Less-int32": one_node("Less", [x, x], [truth]),
        "Equal-int32": one_node("Equal", [x, x], [truth]),
        "And-bool": one_node("And", [truth, truth], [truth]),
        "Cast-int64-to-int32": one_node("Cast", [("int64", (ROWS,))], [x], to=TensorProto.INT32),
    }


def _ops_of_logits() -> dict[str, Graph]:
    graphs = {}
    for vocabulary in (VOCABULARY, 128_256):
        logits = ("float32", (ROWS, vocabulary))
        for num_top in (1, NUM_TOP, 256):
            outputs = [("float32", (ROWS, num_top)), ("int64", (ROWS, num_top))]
            top = ("int64", (1,), [num_top])
            graphs[f"TopK-{num_top}-of-{vocabulary}"] = one_node("TopK", [logits], outputs, [top])
    return graphs


def refused_ops() -> dict[str, Graph]:
    """Those without a kernel for CUDA; the last one has none for the CPU either."""
    x, truth = ("int32", (ROWS,)), ("bool", (ROWS, HIDDEN))
    halves = ("bfloat16", (ROWS, HIDDEN))
    return {
        "BitwiseAnd-int32": one_node("BitwiseAnd", [x, x], [x]),
        "Det-float32": one_node("Det", [("float32", (3, 3))], [("float32", ())]),
        "Less-bfloat16": one_node("Less", [halves, halves], [truth]),
    }


def record(label: str, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    return helper.make_node("Record", inputs, outputs, label, domain=DOMAIN, label=label)


def step_graph(dtype: str) -> Graph:
    """As a step goes: token ids to rows, our ops between matrices, then the logits' best tokens."""
    node = helper.make_node
    return Graph(
        [
            node("Less", ["token_ids", "zero"], ["is_pending"]),
            node("Max", ["token_ids", "zero"], ["not_negative"]),
            node("Min", ["not_negative", "last_token"], ["within"]),
            node("Where", ["is_pending", "zero", "within"], ["tokens"]),
            node("Gather", ["table", "tokens"], ["embedded"]),
            record("first", ["embedded", "scale"], ["normed"]),
            node("Gemm", ["normed", "up", "bias"], ["wide"], transB=1),
            node("Gemm", ["wide", "down"], ["narrow"], transB=1),
            record("second", ["narrow", "scale", "embedded"], ["hidden", "residual"]),
            node("Add", ["hidden", "residual"], ["sum"]),
            node("Gemm", ["sum", "head"], ["half_logits"], transB=1),
            node("Cast", ["half_logits"], ["logits"], to=TensorProto.FLOAT),
            node("TopK", ["logits", "num_top"], ["top", "top_tokens"]),
        ],
        [("token_ids", "int32", (ROWS,)), ("scale", dtype, (HIDDEN,))],
        [
            ("hidden", dtype, (ROWS, HIDDEN)),
            ("logits", "float32", (ROWS, VOCABULARY)),
            ("top", "float32", (ROWS, NUM_TOP)),
            ("top_tokens", "int64", (ROWS, NUM_TOP)),
        ],
        [
            ("zero", "int32", (), [0]),
            ("last_token", "int32", (), [VOCABULARY - 1]),
            ("table", dtype, (VOCABULARY, HIDDEN), None),
            ("up", dtype, (4 * HIDDEN, HIDDEN), None),
            ("bias", dtype, (4 * HIDDEN,), None),
            ("down", dtype, (HIDDEN, 4 * HIDDEN), None),
            ("head", dtype, (VOCABULARY, HIDDEN), None),
            ("num_top", "int64", (1,), [NUM_TOP]),
        ],
    )


def copying_graph() -> Graph:
    """A shape that is computed on the device and used on the host."""
    return Graph(
        [
            helper.make_node("Abs", ["wanted"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        [("x", "float16", (ROWS, HIDDEN)), ("wanted", "int64", (2,))],
        [("y", "float16", (ROWS, HIDDEN))],
    )


BUILTIN_OPS = builtin_ops()
REFUSED_OPS = refused_ops()
STEPS = {f"step-{dtype}": step_graph(dtype) for dtype in HALVES}
COPYING = {"copying": copying_graph()}

# -------------------------------------------------------------------------------------------------- lives of sessions


@dataclass(frozen=True)
class Run:
    """Three runs with the same tensors, the third in a capture; or that one alone.

    Attributes:
        bound: Where each input and output lies.
        first, steady, captured: The calls of CUDA that each makes, in order, with those of Record among them.
        error: ONNX Runtime's, of the captured run.
        capture_error: CUDA's, of the capture.
        record_calls: What the nodes Record were called with in the second run.
    """

    bound: dict[str, int]
    first: list[str]
    steady: list[str]
    captured: list[str]
    error: str
    capture_error: int
    record_calls: list[dict[str, Any]]


@dataclass(frozen=True)
class Life:
    """Of a session. `error`: why it did not open. `runs` are with WARM_ROWS, `cold` is the captured run with COLD_ROWS,
    where it was asked for, and `after_cold` has the errors of runs behind it: sessions.py says which."""

    error: str
    stream: int = 0
    workspace: int = 0
    runs: list[Run] = field(default_factory=list)
    cold: Run | None = None
    after_cold: list[str] = field(default_factory=list)


Lives = Callable[[str], Life]


@pytest.fixture(scope="module")
def onnxruntime_gpu() -> Path:
    """The library of ONNX Runtime, with CUDA's provider beside it."""
    if os.environ.get(PATH_VARIABLE):
        found = find_onnxruntime_gpu()
    else:
        found = next(iter(sorted(UNPACKED.glob("onnxruntime/capi/libonnxruntime.so.*"))), None)
    if found is None:
        pytest.fail(f"there is no onnxruntime-gpu in {UNPACKED}: ./test unpacks it there")
    return found


@pytest.fixture(scope="module")
def lives(onnxruntime_gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """All graphs of this file, opened and run by one process."""
    folder = tmp_path_factory.mktemp("sessions")
    stubs = tmp_path_factory.mktemp("stub-cuda")
    stub_cuda.build_stub_libraries(onnxruntime_gpu.with_name(CUDA_PROVIDER_LIBRARY), stubs)
    requests = []
    for name, graph in {**BUILTIN_OPS, **REFUSED_OPS, **STEPS, **COPYING}.items():
        graph.save(folder / f"{name}.onnx")
        warm_rows = [2] if name in COPYING else WARM_ROWS
        cold_rows = COLD_ROWS if name in STEPS else None
        requests.append({"name": name, "graph": f"{name}.onnx", "warm_rows": warm_rows, "cold_rows": cold_rows})
    (folder / "requests.json").write_text(json.dumps(requests))
    done = subprocess.run(
        [sys.executable, str(Path(stub_cuda.__file__).with_name("sessions.py")), str(onnxruntime_gpu), str(folder)],
        env=os.environ | {"LD_LIBRARY_PATH": str(stubs), "STUB_CUDA_LOG": str(folder / "cuda.log")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    found = {answer.pop("name"): _life(answer) for answer in answers}

    def life(name: str) -> Life:
        if name not in found:
            last = next(reversed(found), "none")
            pytest.fail(f"{name} did not run; the process ended with {done.returncode} after {last}:\n{done.stderr}")
        return found[name]

    return life


def _life(answer: dict[str, Any]) -> Life:
    runs = [Run(**run) for run in answer.pop("runs", [])]
    cold = answer.pop("cold", None)
    return Life(**answer, runs=runs, cold=Run(**cold) if cold else None)


_UNWANTED = re.compile(r"FORBIDDEN|Synchronize|Query|Malloc|Alloc|Free|Memcpy |Memset |HostFunc|pinned|pageable")
"""In the log: waiting, allocating, and what reads or writes the host's memory when the stream comes to it."""


def unwanted(calls: list[str], stream: int) -> list[str]:
    """Those that a run must not make once it has run with the same shapes."""
    return [
        call
        for call in calls
        if _UNWANTED.search(call) or ("stream=" in call and not call.endswith(f"stream={stream:#x}"))
    ]


_COMPUTES = re.compile(r"Record \w+|OP_[A-Za-z]+(?=I)|GatherKernel|TenaryElementWise|cublas\w*Gemm|TopK")


def what_computes(calls: list[str]) -> list[str]:
    """Kernels, by the part of their names that tells them apart; cuBLAS; our ops."""
    return [found[0] for call in calls if (found := _COMPUTES.search(call))]


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", BUILTIN_OPS)
def test_a_builtin_op_has_a_kernel_that_can_be_captured(name: str, lives: Lives) -> None:
    life = lives(name)
    assert not life.error
    for run in life.runs:
        assert run.steady
        assert unwanted(run.steady, life.stream) == []
        assert_captured(run, life.stream)


@pytest.mark.parametrize("name", REFUSED_OPS)
def test_an_op_without_a_kernel_is_refused(name: str, lives: Lives) -> None:
    assert lives(name).error


def test_a_node_for_the_cpu_is_refused_as_such(lives: Lives) -> None:
    assert "fallback to CPU EP has been explicitly disabled" in lives("BitwiseAnd-int32").error


def test_a_shape_from_the_device_is_seen_to_be_copied(lives: Lives) -> None:
    """ONNX Runtime does not refuse it: its own copy node runs on the device."""
    life = lives("copying")
    assert not life.error
    (run,) = life.runs
    assert any(re.match("cudaMemcpyAsync .*<-device", call) for call in unwanted(run.steady, life.stream))
    assert any("Synchronize" in call for call in unwanted(run.steady, life.stream))
    assert "not permitted when stream is capturing" in run.error
    assert run.capture_error


@pytest.mark.parametrize("name", STEPS)
def test_our_ops_run_in_order_between_the_kernels(name: str, lives: Lives) -> None:
    for run in lives(name).runs:
        computed = what_computes(run.steady)
        # Which of the independent first nodes comes first is ONNX Runtime's choice.
        assert sorted(computed[:3]) == ["OP_Less", "OP_Max", "OP_Min"]
        assert computed[3:] == [
            "TenaryElementWise",
            "GatherKernel",
            "Record first",
            "cublasGemm",
            "cublasGemm",
            "Record second",
            "OP_Add",
            "cublasGemm",
            "OP_Cast",
            "TopK",
        ]


@pytest.mark.parametrize("name", STEPS)
def test_our_ops_get_the_stream_and_what_is_bound(name: str, lives: Lives) -> None:
    life = lives(name)
    for run, num_rows in zip(life.runs, WARM_ROWS, strict=True):
        first, second = run.record_calls
        rows = [num_rows, HIDDEN]
        assert (first["label"], first["shapes"]) == ("first", [rows, [HIDDEN], []])
        assert (second["label"], second["shapes"]) == ("second", [rows, [HIDDEN], rows])
        assert {call["stream"] for call in run.record_calls} == {life.stream}
        assert {call["workspace"] for call in run.record_calls} == {life.workspace}
        assert first["inputs"][1] == second["inputs"][1] == run.bound["scale"]
        assert first["inputs"][2] == first["outputs"][1] == 0  # left out
        assert second["inputs"][2] == first["inputs"][0]  # the same tensor
        assert second["outputs"][0] == run.bound["hidden"]
        assert 0 not in second["outputs"]


@pytest.mark.parametrize("name", STEPS)
def test_a_steady_run_only_enqueues(name: str, lives: Lives) -> None:
    life = lives(name)
    for run in life.runs:
        assert unwanted(run.steady, life.stream) == []
        assert_captured(run, life.stream)


@pytest.mark.parametrize("name", STEPS)
def test_a_capture_before_the_first_run_of_larger_shapes_fails(name: str, lives: Lives) -> None:
    """ONNX Runtime's arena grows in it. Whoever captures runs the same shapes before."""
    cold = lives(name).cold
    assert cold is not None
    assert "Failed to allocate memory" in cold.error
    assert any(re.match("cudaMalloc .*FORBIDDEN", call) for call in cold.captured)
    assert cold.capture_error


@pytest.mark.parametrize("name", STEPS)
def test_the_error_of_a_capture_is_one_of_the_next_run_until_it_is_forgotten(name: str, lives: Lives) -> None:
    """ONNX Runtime asks CUDA for the last error after each op."""
    first, second, after_forgetting = lives(name).after_cold
    assert "operation not permitted when stream is capturing" in first
    assert (second, after_forgetting) == ("", "")


def assert_captured(run: Run, stream: int) -> None:
    """All that the run before did is in the graph, and nothing went wrong."""
    assert (run.error, run.capture_error) == ("", 0)
    begin, *captured, end = run.captured
    assert begin.startswith("cudaStreamBeginCapture")
    assert end.startswith("cudaStreamEndCapture")
    assert captured == run.steady
    assert unwanted(captured, stream) == []
