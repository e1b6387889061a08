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
    from precast.configs import (
        CapacitySchedulerPolicy,
        KvCacheConfig,
        KvCacheRetentionConfig,
        SchedulerConfig,
        TokenRangeRetentionConfig,
    )
    from precast.futures import RequestFuture
    from precast.inputs import PreprocessedInputs
    from precast.llm import LLM
    from precast.outputs import CompletionOutput, Logprob, RequestOutput
    from precast.runtime import QueueFullError
    from precast.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "BuildCacheConfig",
    "CapacitySchedulerPolicy",
    "CompletionOutput",
    "KvCacheConfig",
    "KvCacheRetentionConfig",
    "Logprob",
    "PreprocessedInputs",
    "QueueFullError",
    "RequestFuture",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "TokenRangeRetentionConfig",
    "__version__",
]

_MODULE_OF = {
    "LLM": "precast.llm",
    "BuildCacheConfig": "precast.build_cache",
    "CapacitySchedulerPolicy": "precast.configs",
    "CompletionOutput": "precast.outputs",
    "KvCacheConfig": "precast.configs",
    "KvCacheRetentionConfig": "precast.configs",
    "Logprob": "precast.outputs",
    "PreprocessedInputs": "precast.inputs",
    "QueueFullError": "precast.runtime",
    "RequestFuture": "precast.futures",
    "RequestOutput": "precast.outputs",
    "SamplingParams": "precast.sampling_params",
    "SchedulerConfig": "precast.configs",
    "TokenRangeRetentionConfig": "precast.configs",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
