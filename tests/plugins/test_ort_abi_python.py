"""What ort_abi.py says of ONNX Runtime's C ABI, against ort_abi.h, the real library and, where there is one, the real
header: tests/runtime/test_ort_abi.py says how to have others than the installed ones.
"""

import ctypes
import os
import re
import shutil
import subprocess
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import pytest

from precast.plugins.onnxruntime import ort_abi
from precast.plugins.onnxruntime.ort_abi import API_VERSION, FUNCTIONS, ElementType, OrtApi, OrtCustomOp, OrtError
from tests.plugins.ort_world import library, open_api

REPOSITORY = Path(__file__).resolve().parents[2]
CPP = (REPOSITORY / "runtime" / "native" / "src" / "ort_abi.h").read_text(encoding="utf-8")

VALUES = {
    "ORT_FAIL": ort_abi.ERROR_FAIL,
    "OrtDeviceAllocator": ort_abi.DEVICE_ALLOCATOR,
    "OrtMemTypeDefault": ort_abi.DEFAULT_MEMORY,
    "ORT_DISABLE_ALL": ort_abi.DISABLE_ALL_OPTIMIZATIONS,
    "ORT_LOGGING_LEVEL_ERROR": ort_abi.LOGGING_LEVEL_ERROR,
    "INPUT_OUTPUT_REQUIRED": ort_abi.INPUT_OUTPUT_REQUIRED,
    "INPUT_OUTPUT_OPTIONAL": ort_abi.INPUT_OUTPUT_OPTIONAL,
} | {f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{member.name.replace('FLOAT32', 'FLOAT')}": member.value for member in ElementType}

CHECK = """
#include <onnxruntime_c_api.h>
#include <cstddef>
#include <string_view>
#include <type_traits>

// A type as a letter: v nothing, p a pointer, z a size_t, i an int or an enumeration.
template <typename T>
constexpr char letter() {
  if constexpr (std::is_void_v<T>) return 'v';
  else if constexpr (std::is_pointer_v<T>) return 'p';
  else if constexpr (std::is_same_v<T, std::size_t>) return 'z';
  else if constexpr ((std::is_enum_v<T> || std::is_integral_v<T>) && sizeof(T) == 4) return 'i';
  else return '?';
}
template <typename F> struct Signature;
template <typename R, typename... A, bool is_noexcept>
struct Signature<R (*)(A...) noexcept(is_noexcept)> {
  static constexpr char value[] = {letter<R>(), letter<A>()..., 0};
};
#define SIGNATURE(member) std::string_view(Signature<decltype(member)>::value)
"""


def declared_in_cpp() -> dict[str, int]:
    return {name: int(slot) for name, slot in re.findall(r"CHECK\((\w+), (\d+)\)", CPP)}


def letters(result: Any, arguments: Any) -> str:
    known = {None: "v", c_size_t: "z", c_int: "i"}
    return "".join(known.get(kind, "p") for kind in (result, *arguments))


def function_fields() -> dict[str, Any]:
    return {name: kind for name, kind in dict(OrtCustomOp._fields_).items() if kind not in (c_uint32, c_void_p)}


def test_names_that_python_and_cpp_have_are_the_same_slots() -> None:
    theirs = declared_in_cpp()
    both = {name: function.slot for name, function in FUNCTIONS.items() if name in theirs}
    assert len(both) > 25
    assert both == {name: theirs[name] for name in both}


def test_no_two_functions_have_one_slot() -> None:
    assert len({function.slot for function in FUNCTIONS.values()}) == len(FUNCTIONS)


def test_the_struct_of_an_op_is_that_of_cpp() -> None:
    (struct,) = re.findall(r"^struct CustomOp \{\n(.*?)^\};", CPP, flags=re.MULTILINE | re.DOTALL)
    assert [name for name, *_ in OrtCustomOp._fields_] == ["version", *re.findall(r"\(\*(\w+)\)\(", struct)]
    assert ctypes.sizeof(OrtCustomOp) == 176


def test_slots_signatures_and_values_are_those_of_the_header(tmp_path: Path) -> None:
    headers = os.environ.get("PRECAST_ONNXRUNTIME_HEADERS")
    if not headers:
        pytest.skip("PRECAST_ONNXRUNTIME_HEADERS names no folder with onnxruntime_c_api.h")
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler is not None
    asserts = [f"{API_VERSION} <= ORT_API_VERSION"]
    asserts += [f"{name} == {value}" for name, value in VALUES.items()]
    for name, function in FUNCTIONS.items():
        asserts.append(f"offsetof(OrtApi, {name}) == {function.slot} * sizeof(void*)")
        asserts.append(f'SIGNATURE(OrtApi::{name}) == "{letters(function.result, function.arguments)}"')
    asserts += [
        f"offsetof(OrtCustomOp, {name}) == {getattr(OrtCustomOp, name).offset}" for name, *_ in OrtCustomOp._fields_
    ]
    for name, kind in function_fields().items():
        asserts.append(f'SIGNATURE(OrtCustomOp::{name}) == "{letters(kind._restype_, kind._argtypes_)}"')
    source = tmp_path / "check.cpp"
    source.write_text(CHECK + "".join(f"static_assert({condition});\n" for condition in asserts), encoding="utf-8")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-w", f"-I{headers}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_supported() -> None:
    major, minor = open_api().version.split(".")[:2]
    assert (int(major), int(minor)) >= (1, 23)


def test_every_slot_holds_a_function_of_the_library() -> None:
    api = open_api()
    mapped = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if library().resolve().name in line and "x" in line.split()[1]
    ]
    for name in FUNCTIONS:
        function: Any = api.function(name)
        address = ctypes.cast(function, c_void_p).value
        assert address is not None
        assert any(start <= address < end for start, end in mapped), name


def test_a_status_is_raised_in_its_own_words() -> None:
    api = open_api()
    error = api.take_error(api.make_status("words, and ümlauts"))
    assert isinstance(error, OrtError)
    assert str(error) == "words, and ümlauts"
    with pytest.raises(OrtError, match=r"\w"):
        api.make("CreateMemoryInfo", b"no such memory", 0, 0, 0)


def test_nothing_is_released_where_nothing_is() -> None:
    open_api().release("Session", 0)


def test_a_quick_function_does_the_same() -> None:
    api = open_api()
    allocator = c_void_p()
    assert not api.quick_function("GetAllocatorWithDefaultOptions")(ctypes.byref(allocator))
    assert allocator.value == api.make("GetAllocatorWithDefaultOptions")
    status = api.make_status("quick")
    assert api.quick_function("GetErrorMessage")(c_void_p(status)) == b"quick"
    api.release("Status", status)


def test_a_file_that_is_no_onnx_runtime(tmp_path: Path) -> None:
    missing = tmp_path / "libonnxruntime.so"
    with pytest.raises(OSError, match=re.escape(str(missing))):
        OrtApi(missing)
    (other,) = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so.6" in line}
    with pytest.raises(OSError, match=r"^/.* is not ONNX Runtime: it has no function OrtGetApiBase$"):
        OrtApi(Path(other))


def test_an_onnx_runtime_of_another_api(tmp_path: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc")
    assert compiler is not None
    source = tmp_path / "old.c"
    source.write_text(
        "static const void* get_api(unsigned version) { return 0; }\n"
        'static const char* get_version(void) { return "1.9.0"; }\n'
        "struct Base { const void* (*get_api)(unsigned); const char* (*get_version)(void); };\n"
        "static const struct Base base = {get_api, get_version};\n"
        "const struct Base* OrtGetApiBase(void) { return &base; }\n"
    )
    old = tmp_path / "libold.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(old), str(source)], check=True)
    with pytest.raises(OSError, match=r"libold\.so is ONNX Runtime 1\.9\.0, which lacks version 17 of its C API$"):
        OrtApi(old)


def test_element_sizes() -> None:
    assert {member.name: member.size_bytes for member in ElementType} == {
        "FLOAT32": 4, "UINT8": 1, "INT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1, "FLOAT16": 2, "BFLOAT16": 2,
    }  # fmt: skip


def test_texts_of_callbacks_are_addresses() -> None:
    """ctypes would free the bytes that a callback of c_char_p returns."""
    assert c_char_p not in {kind._restype_ for kind in function_fields().values()}
