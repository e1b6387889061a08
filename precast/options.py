"""The options of ``LLM``: which exist, which half they belong to, and what to say about the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precast.build_cache import BuildCacheConfig, to_cache_config

# What LLM's **options may hold, and the names the two halves know them by.
RUNTIME_OPTIONS = {
    "num_threads": "num_threads",
    "max_batch_size": "max_batch_size",
    "max_num_seqs": "max_batch_size",
    "max_num_tokens": "max_num_tokens",
    "max_num_batched_tokens": "max_num_tokens",
    "kv_cache_bytes": "kv_cache_bytes",
    "kv_cache_memory_bytes": "kv_cache_bytes",
}
BUILD_OPTIONS = {"kv_cache_dtype": "kv_cache_dtype", "tokens_per_block": "tokens_per_block"}
SEQUENCE_LENGTH_OPTIONS = ("max_seq_len", "max_model_len")
OTHER_OPTIONS = ("verify", "workspace", "enable_build_cache")
# LLM's named arguments, which somebody may have meant with a name that is nearly one of them.
ARGUMENTS = (
    "model",
    "tokenizer",
    "tokenizer_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
    "tensor_parallel_size",
    "dtype",
    "revision",
    "tokenizer_revision",
    "backend",
)

_FOREIGN_BACKENDS = ("pytorch", "_autodeploy")


@dataclass(frozen=True)
class Options:
    """LLM's options, sorted."""

    build: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    max_seq_len: int | None = None
    verify: bool = False
    workspace: str | os.PathLike[str] | None = None
    build_cache: BuildCacheConfig | None = None


def sort_options(options: Mapping[str, Any]) -> Options:
    """Raises ValueError for an unknown name, with the nearest known one, and for one value given under two names;
    ValueError, TypeError for an ``enable_build_cache`` that says nothing sensible.
    """
    known = (*RUNTIME_OPTIONS, *BUILD_OPTIONS, *SEQUENCE_LENGTH_OPTIONS, *OTHER_OPTIONS)
    for name in options:
        if name not in known:
            raise ValueError(f"unknown option {name}; {_hint(name, known)}")
    lengths = _rename(options, dict.fromkeys(SEQUENCE_LENGTH_OPTIONS, "max_seq_len"))
    return Options(
        build=_rename(options, BUILD_OPTIONS),
        runtime=_rename(options, RUNTIME_OPTIONS),
        max_seq_len=lengths.get("max_seq_len"),
        verify=bool(options.get("verify", False)),
        workspace=options.get("workspace"),
        build_cache=to_cache_config(options.get("enable_build_cache")),
    )


def _hint(name: str, known: Sequence[str]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, (*known, *ARGUMENTS), n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"


def _rename(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for name, value in options.items():
        if name not in names or value is None:
            continue
        target = names[name]
        if target in renamed:
            raise ValueError(f"{given_as[target]} and {name} are the same option: give one of them")
        renamed[target], given_as[target] = value, name
    return renamed


def check_backend(backend: str | None) -> None:
    """None picks onnxruntime, which is all that this version has.

    Raises:
        ValueError: it is unknown, or another project's; the message says what Precast has.
    """
    if backend in (None, "onnxruntime"):
        return
    if backend in _FOREIGN_BACKENDS:
        raise ValueError(
            f"backend={backend!r} runs models through PyTorch, which Precast never needs: "
            "leave backend out, or choose 'onnxruntime'"
        )
    raise ValueError(f"unknown backend {backend!r}: Precast has 'onnxruntime'")
