"""The TensorRT library that plans are built with, found without loading it."""

from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

LIBRARIES = ("tensorrt_rtx", "tensorrt")
"""Import names, in the order of preference: only TensorRT-RTX builds without a GPU."""


@dataclass(frozen=True)
class TensorRtLibrary:
    """An installed library.

    Attributes:
        name: One of LIBRARIES, which is its import name.
        version: As the package index has it. A plan of TensorRT-RTX loads in this version only.
    """

    name: str
    version: str

    @property
    def title(self) -> str:
        return {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}[self.name]


def find_library() -> TensorRtLibrary:
    """The first of LIBRARIES that is installed.

    Raises:
        ModuleNotFoundError: none is.
    """
    distributions = metadata.packages_distributions()
    for name in LIBRARIES:
        if name in distributions:  # a folder of that name on the path is no library
            return TensorRtLibrary(name, metadata.version(distributions[name][0]))
    raise ModuleNotFoundError(
        "building an engine for tensorrt needs TensorRT-RTX (or TensorRT), which is not installed: "
        "pip install 'precast[tensorrt]'",
        name=LIBRARIES[0],
    )


def shared_library() -> Path | None:
    """TensorRT-RTX's shared library, under the name that its wheel gives it; None where no wheel installed it."""
    spec = util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("libtensorrt_rtx.so.1")
