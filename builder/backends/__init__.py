"""The backends by name. A module is imported when its backend is first asked for."""

from importlib import import_module

from precast.builder.backends.base import Backend
from precast.builder.errors import BuildError

_MODULES = {
    "onnxruntime": "precast.builder.backends.onnxruntime",
    "onnxruntime-cuda": "precast.builder.backends.onnxruntime_cuda.backend",
    "tensorrt": "precast.builder.backends.tensorrt.backend",
}
BACKENDS = tuple(_MODULES)


def get_backend(name: str) -> Backend:
    """The backend of that name. Raises BuildError that lists the known ones."""
    if name not in _MODULES:
        raise BuildError(f"backend {name!r} is unknown; known: {', '.join(BACKENDS)}")
    backend: Backend = import_module(_MODULES[name]).BACKEND
    return backend
