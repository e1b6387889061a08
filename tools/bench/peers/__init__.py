"""What is compared: an engine, in an environment of its own, at one precision and with one way of using it.

An adapter per engine lies beside this file. It is imported by `worker.py`, inside that engine's environment only; this
file and `base.py` need nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A row of the comparison.

    Attributes:
        adapter: module in this folder, whose class `Adapter` is the engine.
        environment: name in `environments.py`.
        model: names the prepared files; variants with the same one share them.
        options: passed to the adapter; it refuses what it does not know.
        workloads: the ones it makes sense for; None: all.
    """

    adapter: str
    environment: str
    model: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    workloads: tuple[str, ...] | None = None

    def fits(self, workload_name: str) -> bool:
        return self.workloads is None or workload_name in self.workloads


def _variant(
    adapter: str, environment: str, model: str, *, only: tuple[str, ...] | None = None, **options: Any
) -> Variant:
    return Variant(adapter, environment, model, MappingProxyType(options), only)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "precast-bf16": _variant("precast_llm", "precast", "precast-bf16", dtype="bfloat16"),
        "precast-fp32": _variant("precast_llm", "precast", "precast-fp32", dtype="float32"),
        # The server gives every request a slot and computes its whole prompt.
        "llama.cpp-bf16": _variant("llama_cpp_batch", "llama-cpp", "gguf-bf16"),
        # What a caller of the library can do who knows the prefix: computes it once and copies its cells.
        "llama.cpp-bf16-prefix-copied": _variant(
            "llama_cpp_batch", "llama-cpp", "gguf-bf16", only=("W4",), copy_prefix=True
        ),
        # One KV buffer for all sequences (--kv-unified), which cuts batches in another way: to see which is faster.
        "llama.cpp-bf16-unified-kv": _variant("llama_cpp_batch", "llama-cpp", "gguf-bf16", kv_unified=True),
        "ort-genai-fp32": _variant("ort_genai", "ort-genai", "ort-genai-fp32", precision="fp32"),
        "ort-genai-fp32-batch-1": _variant("ort_genai", "ort-genai", "ort-genai-fp32", precision="fp32", batch_size=1),
        "ort-genai-fp32-batch-16": _variant(
            "ort_genai", "ort-genai", "ort-genai-fp32", precision="fp32", batch_size=16
        ),
        "ort-genai-int4": _variant("ort_genai", "ort-genai", "ort-genai-int4", precision="int4"),
    }
)
DEFAULT_VARIANTS = ("precast-bf16", "llama.cpp-bf16", "llama.cpp-bf16-prefix-copied", "ort-genai-fp32")
