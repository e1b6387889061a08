"""What runs networks on a device, and whether it and the GPU are what an engine needs: before its files are touched.

Every refusal is one sentence that names what was needed, what is here, and what to do.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from precast.checkpoints.engine_manifest import EngineManifest, RankFiles
from precast.plugins.collectives.device.group import GroupSlot
from precast.plugins.device.driver import call_driver, device_capability
from precast.runtime.device.device import Device, device_name
from precast.runtime.device.network import Network
from precast.runtime.errors import ErrorCode, NativeError, make_error


@dataclass(frozen=True)
class RankPlace:
    """A rank of an engine in its directory."""

    engine: Path
    manifest: EngineManifest
    files: RankFiles

    @property
    def graph(self) -> Path:
        return self.engine / self.files.graph


class Toolkit(Protocol):
    """One way to run networks, as this process has it."""

    @property
    def driver(self) -> Any:
        """``cuda.bindings.driver``, initialised."""

    @property
    def group(self) -> GroupSlot:
        """Where collectives find this rank's way to the others."""

    def open_network(self, place: RankPlace, device: Device) -> Network:
        """Load the rank's network.

        Raises:
            EngineLoadError: it is refused; the message has the words of what refuses it.
            DeviceError, NativeError: there is not enough memory.
        """


def import_driver(source: str, extra: str) -> Any:
    """The CUDA driver, initialised, of a process that sees a GPU.

    Raises:
        EngineLoadError: cuda-python, which the extra installs, the driver or a GPU is missing.
    """
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise refusal(
            f"{source}: the engine runs on an NVIDIA GPU through cuda-python, which cannot be imported here ({error}): "
            f"pip install 'precast[{extra}]'"
        ) from error
    try:
        call_driver(driver, "cuInit", 0)
        count = call_driver(driver, "cuDeviceGetCount")
    except RuntimeError as error:  # cuda-python's own, where there is no driver, and the driver's
        raise refusal(
            f"{source}: the engine runs on an NVIDIA GPU, and CUDA finds none here ({_first_line(error)}): load it on "
            "a machine with a GPU and its driver, or build an engine for the CPU"
        ) from error
    if count == 0:
        raise refusal(
            f"{source}: the engine runs on an NVIDIA GPU, and this process sees none: check CUDA_VISIBLE_DEVICES, "
            f"which is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}"
        )
    return driver


def check_device(source: str, manifest: EngineManifest, driver: Any, rank: int) -> tuple[str, int]:
    """Whether the GPU of this rank can be one of the engine's, from what the manifest says.

    Returns:
        What a sentence calls the GPU, and its compute capability, 89 for 8.9.

    Raises:
        EngineLoadError: there are too few GPUs, or its memory is too small.
    """
    count, world_size = call_driver(driver, "cuDeviceGetCount"), len(manifest.ranks)
    if count < world_size:
        raise refusal(
            f"{source}: the engine has {world_size} ranks, which need a GPU each, and this process sees {count}: "
            "rebuild it for fewer, or check CUDA_VISIBLE_DEVICES"
        )
    device = call_driver(driver, "cuDeviceGet", rank)
    name = device_name(driver, device)
    needed = sum(manifest.files[path].size for path in _files(manifest, rank))
    total = int(call_driver(driver, "cuDeviceTotalMem", device))
    if needed > total:
        raise refusal(
            f"{source}: rank {rank} of the engine is {needed} bytes, and GPU {rank} ({name}) has {total} bytes of "
            "memory: quantise the engine, or build it for more ranks"
        )
    return f"GPU {rank} ({name})", device_capability(driver, device)


def describe_capability(gpu: str, capability: int) -> str:
    """The first half of a sentence that refuses a GPU."""
    return f"{gpu} has compute capability {name_capability(capability)}"


def name_capability(capability: int) -> str:
    """89 -> "8.9"."""
    return f"{capability // 10}.{capability % 10}"


def refusal(message: str) -> NativeError:
    """An engine that cannot be loaded here."""
    return make_error(ErrorCode.UNSUPPORTED_ENGINE, message)


def _files(manifest: EngineManifest, rank: int) -> list[str]:
    files = manifest.ranks[rank]
    return [files.graph] if files.weights is None else [files.graph, files.weights]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
