"""Precast casts a Hugging Face checkpoint into an engine ahead of time and runs it from a small native
runtime.

The public names are imported when first used (PEP 562), so that `import precast.runtime` on a machine
that only runs engines never loads the builder.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from precast.version import __version__

if TYPE_CHECKING:
    from precast.build_cache import BuildCacheConfig
    from precast.llm import LLM
    from precast.outputs import CompletionOutput, RequestOutput
    from precast.sampling_params import SamplingParams

__all__ = ["LLM", "BuildCacheConfig", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]

_MODULE_OF = {
    "LLM": "precast.llm",
    "BuildCacheConfig": "precast.build_cache",
    "CompletionOutput": "precast.outputs",
    "RequestOutput": "precast.outputs",
    "SamplingParams": "precast.sampling_params",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
