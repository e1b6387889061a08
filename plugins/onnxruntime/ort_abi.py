"""The part of ONNX Runtime's stable C ABI that Python uses, declared here because no package ships the header.

A function keeps the name it has in onnxruntime_c_api.h; the same name there explains it. The table of functions only
ever grows: version 17 of it is a prefix of every later one. A function lies at a fixed slot, counted in pointers from
the start, and a wrong slot is a crash: never guess one. tests/plugins/test_ort_abi_python.py compares all of this with
runtime/native/src/ort_abi.h, with the real library and, where there is one, with a real header.
"""

import ctypes
import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, PYFUNCTYPE, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

API_VERSION = 17

# Enumerations have the size of a C int. Only what is used is listed.
ERROR_FAIL = 1
DEVICE_ALLOCATOR = 0
DEFAULT_MEMORY = 0
DISABLE_ALL_OPTIMIZATIONS = 0
LOGGING_LEVEL_ERROR = 3
INPUT_OUTPUT_REQUIRED = 0
INPUT_OUTPUT_OPTIONAL = 1


class ElementType(IntEnum):
    """Of tensors: ONNX's own numbers."""

    FLOAT32 = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    BOOL = 9
    FLOAT16 = 10
    BFLOAT16 = 16

    @property
    def size_bytes(self) -> int:
        return _SIZES_BYTES[self]


_SIZES_BYTES = {
    ElementType.FLOAT32: 4,
    ElementType.UINT8: 1,
    ElementType.INT8: 1,
    ElementType.INT32: 4,
    ElementType.INT64: 8,
    ElementType.BOOL: 1,
    ElementType.FLOAT16: 2,
    ElementType.BFLOAT16: 2,
}


class OrtError(RuntimeError):
    """What ONNX Runtime says went wrong, in its own words."""


LoggingFunction = CFUNCTYPE(None, c_void_p, c_int, c_char_p, c_char_p, c_char_p, c_char_p)
"""(param, severity, category, log id, code location, message)"""


@dataclass(frozen=True)
class Function:
    """An entry of the table.

    Attributes:
        slot: Where it lies.
        arguments: Their types.
        result: c_void_p: an OrtStatus *, null for success, which the caller releases. c_char_p: text. None: nothing.
    """

    slot: int
    arguments: tuple[Any, ...]
    result: Any = c_void_p


_OUT = POINTER(c_void_p)
_SIZE_OUT = POINTER(c_size_t)
_RELEASE: dict[str, Any] = {"arguments": (c_void_p,), "result": None}

FUNCTIONS: dict[str, Function] = {
    # errors and the environment
    "CreateStatus": Function(0, (c_int, c_char_p)),
    "GetErrorMessage": Function(2, (c_void_p,), c_char_p),
    "ReleaseStatus": Function(93, **_RELEASE),
    "CreateEnvWithCustomLogger": Function(4, (LoggingFunction, c_void_p, c_int, c_char_p, _OUT)),
    "ReleaseEnv": Function(92, **_RELEASE),
    # session options
    "CreateSessionOptions": Function(10, (_OUT,)),
    "DisableMemPattern": Function(17, (c_void_p,)),
    "SetSessionGraphOptimizationLevel": Function(23, (c_void_p, c_int)),
    "SetIntraOpNumThreads": Function(24, (c_void_p, c_int)),
    "AddCustomOpDomain": Function(28, (c_void_p, c_void_p)),
    "AddSessionConfigEntry": Function(130, (c_void_p, c_char_p, c_char_p)),
    "SessionOptionsAppendExecutionProvider_CUDA_V2": Function(204, (c_void_p, c_void_p)),
    "ReleaseSessionOptions": Function(100, **_RELEASE),
    "CreateCUDAProviderOptions": Function(205, (_OUT,)),
    "UpdateCUDAProviderOptions": Function(206, (c_void_p, POINTER(c_char_p), POINTER(c_char_p), c_size_t)),
    "UpdateCUDAProviderOptionsWithValue": Function(263, (c_void_p, c_char_p, c_void_p)),
    "ReleaseCUDAProviderOptions": Function(208, **_RELEASE),
    # sessions
    "CreateSession": Function(7, (c_void_p, c_char_p, c_void_p, _OUT)),
    "SessionGetInputCount": Function(30, (c_void_p, _SIZE_OUT)),
    "SessionGetOutputCount": Function(31, (c_void_p, _SIZE_OUT)),
    "SessionGetInputTypeInfo": Function(33, (c_void_p, c_size_t, _OUT)),
    "SessionGetOutputTypeInfo": Function(34, (c_void_p, c_size_t, _OUT)),
    "SessionGetInputName": Function(36, (c_void_p, c_size_t, c_void_p, _OUT)),
    "SessionGetOutputName": Function(37, (c_void_p, c_size_t, c_void_p, _OUT)),
    "CastTypeInfoToTensorInfo": Function(55, (c_void_p, _OUT)),
    "ReleaseTypeInfo": Function(98, **_RELEASE),
    "GetAllocatorWithDefaultOptions": Function(78, (_OUT,)),
    "AllocatorFree": Function(76, (c_void_p, c_void_p)),
    "ReleaseSession": Function(95, **_RELEASE),
    # runs
    "CreateRunOptions": Function(39, (_OUT,)),
    "AddRunConfigEntry": Function(165, (c_void_p, c_char_p, c_char_p)),
    "ReleaseRunOptions": Function(97, **_RELEASE),
    "CreateIoBinding": Function(134, (c_void_p, _OUT)),
    "BindInput": Function(136, (c_void_p, c_char_p, c_void_p)),
    "BindOutput": Function(137, (c_void_p, c_char_p, c_void_p)),
    "RunWithBinding": Function(133, (c_void_p, c_void_p, c_void_p)),
    "ReleaseIoBinding": Function(135, **_RELEASE),
    # tensors
    "CreateMemoryInfo": Function(68, (c_char_p, c_int, c_int, c_int, _OUT)),
    "ReleaseMemoryInfo": Function(94, **_RELEASE),
    "CreateTensorWithDataAsOrtValue": Function(
        49, (c_void_p, c_void_p, c_size_t, POINTER(c_int64), c_size_t, c_int, _OUT)
    ),
    "GetTensorMutableData": Function(51, (c_void_p, _OUT)),
    "GetTensorTypeAndShape": Function(65, (c_void_p, _OUT)),
    "GetTensorElementType": Function(60, (c_void_p, POINTER(c_int))),
    "GetDimensionsCount": Function(61, (c_void_p, _SIZE_OUT)),
    "GetDimensions": Function(62, (c_void_p, POINTER(c_int64), c_size_t)),
    "GetSymbolicDimensions": Function(63, (c_void_p, POINTER(c_char_p), c_size_t)),
    "ReleaseTensorTypeAndShapeInfo": Function(99, **_RELEASE),
    "ReleaseValue": Function(96, **_RELEASE),
    # custom ops
    "CreateCustomOpDomain": Function(26, (c_char_p, _OUT)),
    "CustomOpDomain_Add": Function(27, (c_void_p, c_void_p)),
    "ReleaseCustomOpDomain": Function(101, **_RELEASE),
    "KernelInfoGetAttribute_float": Function(85, (c_void_p, c_char_p, POINTER(c_float))),
    "KernelInfoGetAttribute_int64": Function(86, (c_void_p, c_char_p, POINTER(c_int64))),
    "KernelInfoGetAttribute_string": Function(87, (c_void_p, c_char_p, c_void_p, _SIZE_OUT)),
    "KernelInfo_GetInputCount": Function(230, (c_void_p, _SIZE_OUT)),
    "KernelInfo_GetOutputCount": Function(231, (c_void_p, _SIZE_OUT)),
    "KernelInfo_GetNodeName": Function(244, (c_void_p, c_void_p, _SIZE_OUT)),
    "KernelContext_GetInput": Function(90, (c_void_p, c_size_t, _OUT)),
    "KernelContext_GetOutput": Function(91, (c_void_p, c_size_t, POINTER(c_int64), c_size_t, _OUT)),
    "KernelContext_GetGPUComputeStream": Function(193, (c_void_p, _OUT)),
}

_OP = c_void_p  # the op itself comes first
_GetCount = CFUNCTYPE(c_size_t, _OP)
_GetInt = CFUNCTYPE(c_int, _OP)
_GetIntAt = CFUNCTYPE(c_int, _OP, c_size_t)
_GetText = CFUNCTYPE(c_void_p, _OP)  # an address: ctypes would not keep the bytes of a c_char_p


class OrtCustomOp(ctypes.Structure):
    """What a custom op is to ONNX Runtime, in the form of API_VERSION. CreateKernel and KernelCompute are never called
    where their second forms, which return a status, are given.
    """

    _fields_ = (
        ("version", c_uint32),
        ("CreateKernel", c_void_p),
        ("GetName", _GetText),
        ("GetExecutionProviderType", _GetText),
        ("GetInputType", _GetIntAt),
        ("GetInputTypeCount", _GetCount),
        ("GetOutputType", _GetIntAt),
        ("GetOutputTypeCount", _GetCount),
        ("KernelCompute", c_void_p),
        ("KernelDestroy", CFUNCTYPE(None, c_void_p)),
        ("GetInputCharacteristic", _GetIntAt),
        ("GetOutputCharacteristic", _GetIntAt),
        ("GetInputMemoryType", _GetIntAt),
        ("GetVariadicInputMinArity", _GetInt),
        ("GetVariadicInputHomogeneity", _GetInt),
        ("GetVariadicOutputMinArity", _GetInt),
        ("GetVariadicOutputHomogeneity", _GetInt),
        ("CreateKernelV2", CFUNCTYPE(c_void_p, _OP, c_void_p, c_void_p, _OUT)),
        ("KernelComputeV2", CFUNCTYPE(c_void_p, c_void_p, c_void_p)),
        ("InferOutputShapeFn", c_void_p),
        ("GetStartVersion", _GetInt),
        ("GetEndVersion", _GetInt),
    )


class OrtApi:
    """ONNX Runtime's library, opened. It stays open for as long as the process lives."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the library cannot be opened, or is none of ONNX Runtime 1.17 or later."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        self.path = path
        library = ctypes.CDLL(str(path))  # RTLD_LOCAL: another ONNX Runtime in the process is not disturbed
        try:
            get_api_base = library.OrtGetApiBase
        except AttributeError:
            raise OSError(f"{path} is not ONNX Runtime: it has no function OrtGetApiBase") from None
        get_api_base.restype = _OUT
        base = get_api_base()
        self.version: str = CFUNCTYPE(c_char_p)(base[1])().decode("ascii", "replace")
        table = CFUNCTYPE(_OUT, c_uint32)(base[0])(API_VERSION)
        if not table:
            raise OSError(f"{path} is ONNX Runtime {self.version}, which lacks version {API_VERSION} of its C API")
        self._addresses = {name: table[function.slot] for name, function in FUNCTIONS.items()}
        self._functions: dict[str, Any] = {
            name: CFUNCTYPE(function.result, *function.arguments)(self._addresses[name])
            for name, function in FUNCTIONS.items()
        }

    def call(self, name: str, *arguments: Any) -> None:
        """Raises OrtError."""
        if status := self._functions[name](*arguments):
            raise self.take_error(status)

    def make(self, name: str, *arguments: Any) -> int:
        """What a function gives through its last argument, a pointer; 0 for null. Raises OrtError."""
        out = c_void_p()
        self.call(name, *arguments, ctypes.byref(out))
        return out.value or 0

    def release(self, kind: str, handle: int) -> None:
        """Give an object back through Release<kind>. Null is harmless."""
        if handle:
            self._functions[f"Release{kind}"](handle)

    def make_status(self, message: str) -> int:
        """A failure, for a callback to return, which then is ONNX Runtime's to release."""
        status: int = self._functions["CreateStatus"](ERROR_FAIL, message.encode("utf-8", "replace"))
        return status

    def take_error(self, status: int) -> OrtError:
        """The exception for a status, which is released."""
        message: bytes = self._functions["GetErrorMessage"](status)
        self.release("Status", status)
        return OrtError(message.decode("utf-8", "replace"))

    def function(self, name: str) -> Callable[..., Any]:
        """A function for who calls it often. Its status is the caller's to look at: take_error."""
        function: Callable[..., Any] = self._functions[name]
        return function

    def quick_function(self, name: str) -> Callable[..., Any]:
        """The same for one that returns at once: it keeps Python's lock, and converts nothing.

        All arguments must be ctypes objects of exactly the declared types: a plain int would be cut to 32 bits.
        """
        return PYFUNCTYPE(FUNCTIONS[name].result)(self._addresses[name])
