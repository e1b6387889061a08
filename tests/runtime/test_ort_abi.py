"""What ort_abi.h says of ONNX Runtime's C ABI, against the real library and, where there is one, the real header.

PRECAST_ONNXRUNTIME            another libonnxruntime.so than the installed package's, such as the oldest supported one
PRECAST_ONNXRUNTIME_HEADERS    a folder with onnxruntime_c_api.h of 1.17 or newer; no package of ONNX Runtime has it,
                               but the wheel of amd-quark 0.13 does
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from precast.runtime.library import onnxruntime_path

REPOSITORY = Path(__file__).resolve().parents[2]
ABI = (REPOSITORY / "runtime" / "native" / "src" / "ort_abi.h").read_text(encoding="utf-8")

API_VERSION = 17
FLOAT32 = 1
ARENA, DEFAULT_MEMORY, DISABLE_ALL, WARNING = 1, 0, 0, 2
LoggingFunction = ctypes.CFUNCTYPE(None, c_void_p, ctypes.c_int, c_char_p, c_char_p, c_char_p, c_char_p)


def declared_slots() -> dict[str, int]:
    return {name: int(slot) for name, slot in re.findall(r"CHECK\((\w+), (\d+)\)", ABI)}


class Api:
    """The function table, its slots as ort_abi.h numbers them."""

    def __init__(self, path: Path) -> None:
        get_api_base = ctypes.CDLL(str(path)).OrtGetApiBase
        get_api_base.restype = POINTER(c_void_p)
        get_api, get_version_string = get_api_base()[0], get_api_base()[1]
        self.version = ctypes.CFUNCTYPE(c_char_p)(get_version_string)().decode()
        self.table = ctypes.CFUNCTYPE(POINTER(c_void_p), ctypes.c_uint32)(get_api)(API_VERSION)

    def function(self, name: str, result: Any = c_void_p) -> Callable[..., Any]:
        """Pass pointers and sizes as ctypes objects: a plain int would be cut to 32 bits."""
        return ctypes.cast(self.table[declared_slots()[name]], ctypes.CFUNCTYPE(result))

    def check(self, name: str, *arguments: Any) -> None:
        """Calls a function that returns a status, which must be null."""
        status = self.function(name)(*arguments)
        if status is not None:
            pytest.fail(f"{name}: {self.function('GetErrorMessage', c_char_p)(c_void_p(status)).decode()}")

    def make(self, name: str, *arguments: Any) -> c_void_p:
        """The object that a Create function gives through its last argument."""
        out = c_void_p()
        self.check(name, *arguments, byref(out))
        assert out.value is not None
        return out


@pytest.fixture(scope="module")
def library() -> Path:
    chosen = os.environ.get("PRECAST_ONNXRUNTIME")
    path = Path(chosen) if chosen else onnxruntime_path()
    assert path is not None
    return path


@pytest.fixture(scope="module")
def api(library: Path) -> Api:
    return Api(library)


def test_slots_signatures_and_values_are_those_of_the_header() -> None:
    headers = os.environ.get("PRECAST_ONNXRUNTIME_HEADERS")
    if not headers:
        pytest.skip("PRECAST_ONNXRUNTIME_HEADERS names no folder with onnxruntime_c_api.h")
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler is not None
    check = Path(__file__).with_name("ort_abi_check.cpp")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-w", f"-I{REPOSITORY}", f"-I{headers}", str(check)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_supported(api: Api) -> None:
    major, minor = api.version.split(".")[:2]
    assert (int(major), int(minor)) >= (1, 23)
    assert api.table


def test_every_function_of_the_table_has_its_slot_checked() -> None:
    (table,) = re.findall(r"^struct Api \{\n(.*?)^\};", ABI, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"^  [^(]*\(\*(\w+)\)\(", table, flags=re.MULTILINE)) == set(declared_slots())


def test_every_declared_slot_holds_a_function_of_the_library(api: Api, library: Path) -> None:
    mapped = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if library.resolve().name in line and "x" in line.split()[1]
    ]
    for name, slot in declared_slots().items():
        address = api.table[slot]
        assert any(start <= address < end for start, end in mapped), name


def test_a_status_keeps_its_text(api: Api) -> None:
    status = api.function("CreateStatus")(1, c_char_p(b"a text"))
    assert api.function("GetErrorMessage", c_char_p)(c_void_p(status)) == b"a text"
    api.function("ReleaseStatus", None)(c_void_p(status))


def make_tensor(api: Api, array: Any) -> c_void_p:
    info = api.make("CreateCpuMemoryInfo", ARENA, DEFAULT_MEMORY)
    shape = (c_int64 * array.ndim)(*array.shape)
    data, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
    value = api.make("CreateTensorWithDataAsOrtValue", info, data, size, shape, c_size_t(array.ndim), FLOAT32)
    api.function("ReleaseMemoryInfo", None)(info)
    return value


def test_a_tensor_lies_over_our_memory_and_tells_its_shape(api: Api) -> None:
    array = np.zeros((3, 5), np.float32)
    value = make_tensor(api, array)
    address = c_void_p()
    api.check("GetTensorMutableData", value, byref(address))
    assert address.value == array.ctypes.data
    info = api.make("GetTensorTypeAndShape", value)
    rank = c_size_t()
    api.check("GetDimensionsCount", info, byref(rank))
    assert rank.value == 2
    shape = (c_int64 * 2)()
    api.check("GetDimensions", info, shape, rank)
    assert list(shape) == [3, 5]
    api.function("ReleaseTensorTypeAndShapeInfo", None)(info)
    api.function("ReleaseValue", None)(value)


def sum_model() -> bytes:
    """output = input + weight, all float32 [n, 2]; the model's own weight is ones."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("input", "output")]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2], [1.0, 1.0])
    node = helper.make_node("Add", ["input", "weight"], ["output"])
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def test_a_session_runs_on_bound_memory_with_a_weight_of_ours(api: Api) -> None:
    """Everything that a session needs but custom ops: tests/native/test_ort_session.cpp calls those."""
    log = LoggingFunction(lambda *_: None)
    env = api.make("CreateEnvWithCustomLogger", log, None, WARNING, c_char_p(b"test"))
    info = api.make("CreateCpuMemoryInfo", ARENA, DEFAULT_MEMORY)
    keys, values = (c_char_p * 1)(b"arena_extend_strategy"), (c_size_t * 1)(1)
    arena = api.make("CreateArenaCfgV2", keys, values, c_size_t(1))
    api.check("CreateAndRegisterAllocator", env, info, arena)

    options = api.make("CreateSessionOptions")
    api.check("SetSessionGraphOptimizationLevel", options, DISABLE_ALL)
    api.check("SetIntraOpNumThreads", options, 1)
    api.check("DisableMemPattern", options)
    api.check("AddSessionConfigEntry", options, c_char_p(b"session.use_env_allocators"), c_char_p(b"1"))
    weight_array = np.array([10, 20], np.float32)
    weight = make_tensor(api, weight_array)
    api.check("AddInitializer", options, c_char_p(b"weight"), weight)
    domain = api.make("CreateCustomOpDomain", c_char_p(b"test"))
    api.check("AddCustomOpDomain", options, domain)
    model = sum_model()
    session = api.make("CreateSessionFromArray", env, c_char_p(model), c_size_t(len(model)), options)

    binding = api.make("CreateIoBinding", session)
    arrays = np.array([[1, 2], [3, 4]], np.float32), np.zeros((2, 2), np.float32)
    tensors = [make_tensor(api, array) for array in arrays]
    api.check("BindInput", binding, c_char_p(b"input"), tensors[0])
    api.check("BindOutput", binding, c_char_p(b"output"), tensors[1])
    api.check("RunWithBinding", session, None, binding)
    np.testing.assert_array_equal(arrays[1], [[11, 22], [13, 24]])

    for name, handle in [
        ("ReleaseIoBinding", binding),
        ("ReleaseSession", session),
        ("ReleaseSessionOptions", options),
        ("ReleaseCustomOpDomain", domain),
        *(("ReleaseValue", value) for value in (weight, *tensors)),
        ("ReleaseArenaCfg", arena),
        ("ReleaseMemoryInfo", info),
        ("ReleaseEnv", env),
    ]:
        api.function(name, None)(handle)
