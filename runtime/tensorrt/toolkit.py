"""TensorRT, and whether it and the GPU are what an engine needs."""

from __future__ import annotations

import importlib
import mmap
from typing import Any

from precast.checkpoints.engine_manifest import EngineManifest, TensorRtRequirements
from precast.plugins.collectives.device.group import GroupSlot
from precast.plugins.device.driver import call_driver
from precast.plugins.tensorrt.creators import register_creators
from precast.runtime.device import toolkit as any_toolkit
from precast.runtime.device.device import Device
from precast.runtime.device.toolkit import (
    RankPlace,
    describe_capability,
    import_driver,
    name_capability,
    refusal,
)
from precast.runtime.tensorrt.network import PlanNetwork
from precast.runtime.tensorrt.runtime_cache import FILE_NAME, CacheKey, CachePlace

_PORTABLE = "portable"
_PORTABLE_LEAST = 80


class TensorRtToolkit:
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

    def open_network(self, place: RankPlace, device: Device) -> PlanNetwork:
        """Load the rank's plan. Raises as Toolkit says."""
        cache = self._cache_place(place, device)
        with place.graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            view = memoryview(plan)
            try:
                return PlanNetwork(self.trt, device, view, str(place.graph), self.plugin_errors, cache)
            finally:
                view.release()

    def _cache_place(self, place: RankPlace, device: Device) -> CachePlace:
        """Where what is compiled for the rank lies, and what it must be of."""
        key = CacheKey(
            plan_sha256=place.manifest.files[place.files.graph].sha256,
            library=f"{self.trt.__name__} {self.trt.__version__}",
            gpu=f"{device.name}, compute capability {name_capability(device.capability)}",
            driver=str(call_driver(self.driver, "cuDriverGetVersion")),
        )
        return CachePlace(place.graph.with_name(FILE_NAME), key)


def open_toolkit(source: str, requirements: TensorRtRequirements) -> TensorRtToolkit:
    """The library that the plans need, and the driver.

    Raises:
        EngineLoadError: TensorRT is missing or another version; cuda-python, the driver or a GPU is missing.
    """
    trt = _import_library(source, requirements)
    return TensorRtToolkit(trt, import_driver(source, "tensorrt-runtime"))


def _import_library(source: str, requirements: TensorRtRequirements) -> Any:
    name, version = requirements.library, requirements.library_version
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        wheel = f"tensorrt-rtx-cu13=={version}" if name == "tensorrt_rtx" else f"tensorrt=={version}"
        raise refusal(
            f"{source}: the engine needs {name} {version}, which cannot be imported here ({error}): pip install {wheel}"
        ) from error
    if trt.__version__ != version:
        raise refusal(
            f"{source}: the engine was built with {name} {version}, and its plans load in no other version; this is "
            f"{trt.__version__}: install {version}, or rebuild the engine with this one"
        )
    return trt


def check_device(source: str, manifest: EngineManifest, driver: Any, rank: int) -> None:
    """Whether the GPU of this rank can run the engine, from what the manifest says.

    Raises:
        EngineLoadError: there are too few GPUs, its compute capability is another one, or its memory too small.
    """
    requirements = manifest.backend_requirements
    assert isinstance(requirements, TensorRtRequirements)
    gpu, capability = any_toolkit.check_device(source, manifest, driver, rank)
    here = describe_capability(gpu, capability)
    least = requirements.min_capability
    if capability < least:
        raise refusal(
            f"{source}: {here}, and the engine needs {name_capability(least)} or later: rebuild it for this GPU"
        )
    targets = [target for target in requirements.targets if target.startswith("sm")]
    if targets and f"sm{capability}" not in targets:
        raise refusal(
            f"{source}: {here}, and the engine was built for {', '.join(targets)}: rebuild it with --target "
            f"sm{capability}, or portable"
        )
    if _PORTABLE in requirements.targets and capability < _PORTABLE_LEAST:
        raise refusal(f"{source}: {here}, and portable engines run from 8.0 on")
