"""ONNX Runtime with its CUDA provider, and whether it and the GPU are what an engine needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from precast.checkpoints.engine_manifest import EngineManifest, OnnxRuntimeCudaRequirements
from precast.plugins.collectives.device.group import GroupSlot
from precast.plugins.domain import DOMAIN
from precast.plugins.onnxruntime.add_ops import add_ops
from precast.plugins.onnxruntime.custom_op import CUDA_PROVIDER, CustomOps
from precast.plugins.onnxruntime.ort_abi import OrtApi, OrtError
from precast.runtime.device import toolkit as any_toolkit
from precast.runtime.device.device import Device
from precast.runtime.device.toolkit import (
    RankPlace,
    describe_capability,
    import_driver,
    name_capability,
    refusal,
)
from precast.runtime.onnxruntime.cuda_libraries import (
    PACKAGE,
    find_onnxruntime_gpu,
    open_forget_error,
    preload_cuda_libraries,
)
from precast.runtime.onnxruntime.network import OrtNetwork, Workspace
from precast.runtime.onnxruntime.session import OrtSession, Provider

EXTRA = "cuda-runtime"
SESSION_CONFIG = {
    # A node that ran on the CPU would wait for the GPU in every step, and could not be recorded.
    "session.disable_cpu_ep_fallback": "1",
    # Weights are inputs: there is nothing to pack.
    "session.disable_prepacking": "1",
}


class CudaToolkit:
    """ONNX Runtime and the CUDA driver, as this process has them.

    Attributes:
        api: ONNX Runtime.
        driver: ``cuda.bindings.driver``, initialised.
        group: Where collectives find this rank's way to the others.

    Args:
        forget_error: Makes ONNX Runtime's CUDA forget the last error of the calling thread.
    """

    def __init__(self, api: OrtApi, driver: Any, forget_error: Callable[[], None]) -> None:
        self.api, self.driver, self._forget_error = api, driver, forget_error
        self.group = GroupSlot()

    def open_network(self, place: RankPlace, device: Device) -> OrtNetwork:
        """Load the rank's graph. Raises as Toolkit says."""
        workspace = Workspace(device)
        provider = self._provider(device)
        ops = CustomOps(self.api, DOMAIN, provider.name, workspace, lambda: device.stream)
        add_ops(ops, place.manifest.build.dtype, self.group)
        try:
            session = OrtSession(self.api, place.graph, ops, provider, SESSION_CONFIG)
        except OrtError as error:
            raise refusal(f"ONNX Runtime {self.api.version} refuses {error}") from error
        return OrtNetwork(session, device, workspace, ops, self._forget_error)

    def _provider(self, device: Device) -> Provider:
        options = {
            "user_compute_stream": str(device.stream),
            # As much as is asked for: what is left is for the KV cache.
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
        }
        return Provider(CUDA_PROVIDER, "Cuda", device.ordinal, options)


def open_toolkit(source: str, requirements: OnnxRuntimeCudaRequirements) -> CudaToolkit:
    """ONNX Runtime with CUDA, and the driver.

    Raises:
        EngineLoadError: ONNX Runtime, its CUDA provider or a library of CUDA's is missing, or older than the engine
            needs; cuda-python, the driver or a GPU is missing.
    """
    library = _find_library(source)
    driver = import_driver(source, EXTRA)
    api, forget_error = _open_library(source, library, requirements)
    return CudaToolkit(api, driver, forget_error)


def check_device(source: str, manifest: EngineManifest, driver: Any, rank: int) -> None:
    """Whether the GPU of this rank can run the engine, from what the manifest says.

    Raises:
        EngineLoadError: there are too few GPUs, its compute capability is too low, or its memory too small.
    """
    requirements = manifest.backend_requirements
    assert isinstance(requirements, OnnxRuntimeCudaRequirements)
    gpu, capability = any_toolkit.check_device(source, manifest, driver, rank)
    if capability < requirements.min_capability:
        raise refusal(
            f"{source}: {describe_capability(gpu, capability)}, and the engine needs "
            f"{name_capability(requirements.min_capability)} or later: build one for the CPU"
        )


def _find_library(source: str) -> Path:
    try:
        library = find_onnxruntime_gpu()
    except FileNotFoundError as error:
        raise refusal(f"{source}: the engine runs with ONNX Runtime on CUDA, and {error}") from error
    if library is None:
        raise refusal(
            f"{source}: the engine runs with ONNX Runtime on CUDA, and the package {PACKAGE} is not installed here: "
            f"pip install 'precast[{EXTRA}]'"
        )
    return library


def _open_library(
    source: str, library: Path, requirements: OnnxRuntimeCudaRequirements
) -> tuple[OrtApi, Callable[[], None]]:
    try:
        missing = preload_cuda_libraries(library)
        api = OrtApi(library)
        forget_error = open_forget_error(library) if not missing else None
    except OSError as error:
        raise refusal(f"{source}: the engine runs with ONNX Runtime on CUDA, and {error}") from error
    if forget_error is None:
        raise refusal(
            f"{source}: ONNX Runtime on CUDA needs {', '.join(missing)}, which neither the packages installed here nor "
            f"the loader's path have: pip install 'precast[{EXTRA}]'"
        )
    if _release(api.version) < _release(requirements.onnxruntime_min):
        raise refusal(
            f"{source}: the engine needs ONNX Runtime {requirements.onnxruntime_min} or later, {library} is "
            f"{api.version}: pip install --upgrade {PACKAGE}"
        )
    return api, forget_error


def _release(version: str) -> tuple[int, ...]:
    """Major and minor: (1, 31) of "1.31.1"."""
    return tuple(int(part) for part in version.split(".")[:2])
