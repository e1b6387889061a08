"""Imported when a process starts that finds the fakes.

Where it has a meeting place, NCCL is one that meets there. Where PRECAST_FAKE_ONNXRUNTIME is 1, a worker that comes to
ONNX Runtime on CUDA finds that on the CPU in its place (tests/runtime/onnxruntime/cpu_provider.py); other processes
import nothing for it.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_FOLDER = json.loads(os.environ.get("PRECAST_FAKE_DEVICE", "{}")).get("meeting_dir", "")
_TOOLKIT = "precast.runtime.onnxruntime.toolkit"

if _FOLDER:
    from precast.plugins.collectives.device import nccl
    from tests.runtime.tensorrt.fake_nccl import MeetingNccl

    nccl.load_nccl = lambda: MeetingNccl(Path(_FOLDER))


class _ChangedToolkit(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the toolkit, and changes it then."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _TOOLKIT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        self._loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from tests.runtime.onnxruntime.cpu_provider import put_cpu_in_place

        put_cpu_in_place(setattr)


if os.environ.get("PRECAST_FAKE_ONNXRUNTIME") == "1":
    sys.meta_path.insert(0, _ChangedToolkit())
