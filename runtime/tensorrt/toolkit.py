"""TensorRT and the CUDA driver, and whether they and the GPU are what an engine needs: before its files are touched.

Every refusal is one sentence that names what was needed, what is here, and what to do.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from precast.checkpoints.engine_manifest import EngineManifest, TensorRtRequirements
from precast.plugins.collectives.device.group import GroupSlot
from precast.plugins.device.driver import call_driver, device_capability
from precast.plugins.tensorrt.creators import register_creators
from precast.runtime.errors import ErrorCode, NativeError, make_error
from precast.runtime.tensorrt.device import device_name

_PORTABLE = "portable"
_PORTABLE_LEAST = 80


class Toolkit:
    """TensorRT and the CUDA driver, as this process has them.

    Attributes:
        trt: The module tensorrt_rtx or tensorrt, with our plugins registered.
        driver: ``cuda.bindings.driver``, initialised.
        plugin_errors: What plugins say.
        group: Where collectives find this rank's way to the others.
    """

    def __init__(self, trt: Any, driver: Any) -> None:
        self.trt, self.driver = trt, driver
        self.plugin_errors: list[str] = []
        self.group = GroupSlot()
        register_creators(trt, self.group, self.plugin_errors)


def open_toolkit(source: str, requirements: TensorRtRequirements) -> Toolkit:
    """The library that the plans need, and the driver.

    Raises:
        EngineLoadError: TensorRT is missing or another version; cuda-python, the driver or a GPU is missing.
    """
    trt = _import_library(source, requirements)
    return Toolkit(trt, _import_driver(source))


def _import_library(source: str, requirements: TensorRtRequirements) -> Any:
    name, version = requirements.library, requirements.library_version
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        wheel = f"tensorrt-rtx-cu13=={version}" if name == "tensorrt_rtx" else f"tensorrt=={version}"
        raise _refusal(
            f"{source}: the engine needs {name} {version}, which cannot be imported here ({error}): pip install {wheel}"
        ) from error
    if trt.__version__ != version:
        raise _refusal(
            f"{source}: the engine was built with {name} {version}, and its plans load in no other version; this is "
            f"{trt.__version__}: install {version}, or rebuild the engine with this one"
        )
    return trt


def _import_driver(source: str) -> Any:
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise _refusal(
            f"{source}: the engine runs on an NVIDIA GPU through cuda-python, which cannot be imported here ({error}): "
            "pip install 'precast[tensorrt-runtime]'"
        ) from error
    try:
        call_driver(driver, "cuInit", 0)
        count = call_driver(driver, "cuDeviceGetCount")
    except RuntimeError as error:  # cuda-python's own, where there is no driver, and the driver's
        raise _refusal(
            f"{source}: the engine runs on an NVIDIA GPU, and CUDA finds none here ({_first_line(error)}): load it on "
            "a machine with a GPU and its driver, or build an engine for the backend onnxruntime"
        ) from error
    if count == 0:
        raise _refusal(
            f"{source}: the engine runs on an NVIDIA GPU, and this process sees none: check CUDA_VISIBLE_DEVICES, "
            f"which is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}"
        )
    return driver


def check_device(source: str, manifest: EngineManifest, driver: Any, rank: int) -> None:
    """Whether the GPU of this rank can run the engine, from what the manifest says.

    Raises:
        EngineLoadError: there are too few GPUs, its compute capability is another one, or its memory too small.
    """
    requirements = manifest.backend_requirements
    assert isinstance(requirements, TensorRtRequirements)
    count, world_size = call_driver(driver, "cuDeviceGetCount"), len(manifest.ranks)
    if count < world_size:
        raise _refusal(
            f"{source}: the engine has {world_size} ranks, which need a GPU each, and this process sees {count}: "
            "rebuild it for fewer, or check CUDA_VISIBLE_DEVICES"
        )
    device = call_driver(driver, "cuDeviceGet", rank)
    name = device_name(driver, device)
    _check_capability(source, requirements, f"GPU {rank} ({name})", device_capability(driver, device))
    needed = sum(manifest.files[path].size for path in _files(manifest, rank))
    total = int(call_driver(driver, "cuDeviceTotalMem", device))
    if needed > total:
        raise _refusal(
            f"{source}: rank {rank} of the engine is {needed} bytes, and GPU {rank} ({name}) has {total} bytes of "
            "memory: quantise the engine, or build it for more ranks"
        )


def _check_capability(source: str, requirements: TensorRtRequirements, gpu: str, capability: int) -> None:
    here = f"{gpu} has compute capability {capability // 10}.{capability % 10}"
    least = requirements.min_capability
    if capability < least:
        raise _refusal(
            f"{source}: {here}, and the engine needs {least // 10}.{least % 10} or later: rebuild it for this GPU"
        )
    targets = [target for target in requirements.targets if target.startswith("sm")]
    if targets and f"sm{capability}" not in targets:
        raise _refusal(
            f"{source}: {here}, and the engine was built for {', '.join(targets)}: rebuild it with --target "
            f"sm{capability}, or portable"
        )
    if _PORTABLE in requirements.targets and capability < _PORTABLE_LEAST:
        raise _refusal(f"{source}: {here}, and portable engines run from 8.0 on")


def _files(manifest: EngineManifest, rank: int) -> list[str]:
    files = manifest.ranks[rank]
    return [files.graph] if files.weights is None else [files.graph, files.weights]


def _refusal(message: str) -> NativeError:
    return make_error(ErrorCode.UNSUPPORTED_ENGINE, message)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
