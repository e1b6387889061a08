"""What TensorRT's own Python bindings make of a plugin that fails, asked as TensorRT's C++ asks: through the vtable."""

import ctypes
import sys
from typing import Any

import pytest
import tensorrt_rtx as trt

_ENQUEUE = 6
"""Of IPluginV3OneRuntime's virtual functions: getAPILanguage, getInterfaceInfo, two destructors, setTactic,
onShapeChange, enqueue."""


class Plugin(trt.IPluginV3OneRuntime):  # type: ignore[misc]
    def __init__(self, answer: int | Exception) -> None:
        trt.IPluginV3OneRuntime.__init__(self)
        self.answer = answer
        self.num_calls = 0

    def enqueue(self, *arguments: Any) -> int:
        self.num_calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def enqueue_from_cpp(plugin: Plugin) -> int:
    # pybind11 keeps the pointer to the C++ object behind the header of the Python object.
    cpp_object = ctypes.c_size_t.from_address(id(plugin) + object.__basicsize__).value
    vtable = ctypes.c_size_t.from_address(cpp_object).value
    function = ctypes.c_size_t.from_address(vtable + _ENQUEUE * ctypes.sizeof(ctypes.c_size_t)).value
    enqueue = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 7)(function)
    status: int = enqueue(cpp_object, None, None, None, None, None, None)
    return status


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="reads CPython's objects")
@pytest.mark.parametrize(("answer", "status"), [(0, 0), (1, 0), (ValueError("it fails"), -1)])
def test_only_an_exception_is_a_failure(answer: int | Exception, status: int) -> None:
    plugin = Plugin(answer)
    assert enqueue_from_cpp(plugin) == status
    assert plugin.num_calls == 1
