"""As much of TensorRT-RTX as runs an engine, on the machine of tests/runtime/tensorrt/fake_cuda.

A plan holds the lowered network (fake_tensorrt/plan.py), which ONNX's reference evaluator computes. Names and
signatures were compared with tensorrt_rtx 1.7.1.116, which test_fake_device.py does again where it is installed.
"""

from tests.runtime.tensorrt.fake_tensorrt.basics import Dims, IHostMemory, ILogger, Logger
from tests.runtime.tensorrt.fake_tensorrt.context import IExecutionContext
from tests.runtime.tensorrt.fake_tensorrt.enums import (
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    PluginCapabilityType,
    PluginFieldType,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    TensorRTPhase,
)
from tests.runtime.tensorrt.fake_tensorrt.plugins import (
    IPluginCreatorV3One,
    IPluginRegistry,
    IPluginV3,
    IPluginV3OneBuildV2,
    IPluginV3OneCore,
    IPluginV3OneRuntime,
    PluginField,
    PluginFieldCollection,
    get_plugin_registry,
    reset_plugins,
)
from tests.runtime.tensorrt.fake_tensorrt.runtime import VERSION, ICudaEngine, IRuntimeCache, IRuntimeConfig, Runtime

__version__ = VERSION

float32, float16, bfloat16 = DataType.FLOAT, DataType.HALF, DataType.BF16
int8, int32, int64, uint8 = DataType.INT8, DataType.INT32, DataType.INT64, DataType.UINT8
fp8, int4, fp4 = DataType.FP8, DataType.INT4, DataType.FP4

FOR_TESTS = ("reset_plugins",)
"""What the real module does not have."""

__all__ = [
    "CudaGraphStrategy",
    "DataType",
    "Dims",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "IPluginCreatorV3One",
    "IPluginRegistry",
    "IPluginV3",
    "IPluginV3OneBuildV2",
    "IPluginV3OneCore",
    "IPluginV3OneRuntime",
    "IRuntimeCache",
    "IRuntimeConfig",
    "Logger",
    "PluginCapabilityType",
    "PluginField",
    "PluginFieldCollection",
    "PluginFieldType",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "TensorRTPhase",
    "bfloat16",
    "float16",
    "float32",
    "fp4",
    "fp8",
    "get_plugin_registry",
    "int4",
    "int8",
    "int32",
    "int64",
    "reset_plugins",
    "uint8",
]
