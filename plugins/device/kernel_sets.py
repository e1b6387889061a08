"""The kernels of an op's plugins, in fields: the first plugin of each set has the bytes, the others name their hash."""

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_fields import read_text

KERNELS = "kernels"
"""The bytes of plugins/device."""
KERNELS_SHA256 = "kernels_sha256"

OpenLauncher = Callable[[bytes], Launcher]
"""Loads the kernels that these bytes hold into the current context."""


@dataclass(frozen=True)
class KernelSet:
    """What a plugin says of its kernels."""

    sha256: str
    is_carried: bool
    """Whether this plugin's fields have the bytes too."""


class KernelSets:
    """The sets of all plugins of an op in this process."""

    def __init__(self, op: str, open_launcher: OpenLauncher) -> None:
        """`open_launcher` is for plugins that run, and asked once for each set."""
        self._op, self._open_launcher = op, open_launcher
        self._compiled: dict[Hashable, str] = {}
        self._sets: dict[str, bytes] = {}  # by hash; a plan's plugins are made in any order
        self._launchers: dict[str, Launcher] = {}

    def compile(self, fields: Hashable, compile_kernels: Callable[[], bytes]) -> KernelSet:
        """Of a new plugin. Kernels are compiled for the first one with these fields, which carries them."""
        is_carried = fields not in self._compiled
        if is_carried:
            kernels = compile_kernels()
            self._compiled[fields] = _sha256(kernels)
            self._sets[_sha256(kernels)] = kernels
        return KernelSet(self._compiled[fields], is_carried)

    def read(self, arrays: Mapping[str, NDArray[Any]]) -> KernelSet:
        """Of a plan's plugin. Raises ValueError where its kernels were damaged."""
        sha256 = read_text(arrays[KERNELS_SHA256])
        if KERNELS in arrays:
            kernels = np.asarray(arrays[KERNELS]).tobytes()
            if _sha256(kernels) != sha256:
                raise ValueError(
                    f"{self._op}: the plan's kernels have the SHA-256 {_sha256(kernels)}, it says {sha256}: "
                    "copy the engine again or rebuild it"
                )
            self._sets[sha256] = kernels
        return KernelSet(sha256, KERNELS in arrays)

    def to_arrays(self, kernel_set: KernelSet) -> dict[str, NDArray[Any]]:
        """The fields that `read` reads."""
        arrays: dict[str, NDArray[Any]] = {KERNELS_SHA256: np.frombuffer(kernel_set.sha256.encode("ascii"), np.int8)}
        if kernel_set.is_carried:
            arrays[KERNELS] = np.frombuffer(self._sets[kernel_set.sha256], np.int8)
        return arrays

    def launcher(self, kernel_set: KernelSet) -> Launcher:
        """Raises ValueError where no plugin has brought the kernels, and as the launcher does."""
        sha256 = kernel_set.sha256
        if sha256 not in self._launchers:
            if sha256 not in self._sets:
                raise ValueError(f"the plan lacks the kernels {sha256}: rebuild the engine")
            self._launchers[sha256] = self._open_launcher(self._sets[sha256])
        return self._launchers[sha256]


def _sha256(kernels: bytes) -> str:
    return hashlib.sha256(kernels).hexdigest()
