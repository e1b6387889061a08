"""The enumerations of tensorrt_rtx 1.7.1.116 that a session uses. As pybind11 makes them: they equal no number."""

from enum import Enum


class _Enumeration(Enum):
    def __int__(self) -> int:
        return int(self.value)


class DataType(_Enumeration):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9
    FP4 = 10
    E8M0 = 11


class TensorIOMode(_Enumeration):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(_Enumeration):
    DEVICE = 0
    HOST = 1


class TensorFormat(_Enumeration):
    LINEAR = 0


class TensorRTPhase(_Enumeration):
    BUILD = 0
    RUNTIME = 1


class PluginFieldType(_Enumeration):
    FLOAT16 = 0
    FLOAT32 = 1
    FLOAT64 = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    CHAR = 6
    DIMS = 7
    UNKNOWN = 8
    BF16 = 9
    INT64 = 10
    FP8 = 11
    INT4 = 12
    FP4 = 13


class PluginCapabilityType(_Enumeration):
    CORE = 0
    BUILD = 1
    RUNTIME = 2


class CudaGraphStrategy(_Enumeration):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(_Enumeration):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ExecutionContextAllocationStrategy(_Enumeration):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2
