"""Requests whose outputs two runs are compared by, the tiny models they run on, and what a run is seen to do."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from precast.runtime import Engine, EngineOptions, EngineRequest, FinishedEvent, FinishReason, RequestHandle, TokenEvent

VOCAB_SIZE = 320
TOKENS_PER_BLOCK = 16

Output = tuple[list[tuple[int, tuple[tuple[int, float, int], ...]]], FinishReason]


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """How `tiny_engine` builds it, and its KV groups: as many blocks hold what one block holds in a Llama."""

    variant: str
    dtype: str
    kv_cache_dtype: str = "auto"
    num_kv_groups: int = 1

    def engine(self, tiny_engine: Callable[..., Path]) -> Path:
        return tiny_engine(self.variant, self.dtype, self.kv_cache_dtype)


MODELS = {
    "float32": TinyModel("gqa", "float32"),
    "bfloat16_kv": TinyModel("gqa", "float32", kv_cache_dtype="bfloat16"),
    "bfloat16": TinyModel("gqa", "bfloat16"),
    "window": TinyModel("mistral", "float32"),
    "some_windows": TinyModel("qwen2_window", "bfloat16", num_kv_groups=2),
}

# Names are those of EngineRequest.
SAMPLINGS: list[tuple[tuple[str, float | int], ...]] = [
    (("temperature", 0.0),),
    (("temperature", 0.0), ("repetition_penalty", 1.3), ("min_tokens", 2)),
    (("temperature", 1.0), ("seed", 1)),
    (("temperature", 0.7), ("top_k", 20), ("seed", 2)),
    (("temperature", 1.3), ("top_p", 0.8), ("seed", 3)),
    (("temperature", 1.0), ("min_p", 0.05), ("presence_penalty", 0.5), ("frequency_penalty", 0.3), ("seed", 4)),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A request that two runs can be compared by: hashable, unlike EngineRequest."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: tuple[tuple[str, float | int], ...]
    salt: bytes = b""
    priority: float = 0.5

    def request(self, *, alone: bool) -> EngineRequest:
        return EngineRequest(
            self.prompt,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            num_logprobs=3,
            skip_block_reuse=alone,
            cache_salt=self.salt,
            priority=self.priority,
            **dict(self.sampling),  # type: ignore[arg-type]
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What each request gave, in the order of submission, and what the engine did meanwhile.

    Attributes:
        iterations: of `take_iteration_stats`; empty unless the options ask for them.
    """

    tokens: list[list[TokenEvent]]
    ends: list[FinishedEvent]
    iterations: list[dict[str, Any]]
    stats: dict[str, Any]

    @property
    def outputs(self) -> list[Output]:
        return [
            ([(one.token_id, tuple(map(_to_tuple, one.logprobs))) for one in tokens], end.reason)
            for tokens, end in zip(self.tokens, self.ends, strict=True)
        ]


def _to_tuple(logprob: Any) -> tuple[int, float, int]:
    return logprob.token_id, logprob.logprob, logprob.rank


def run(path: Path, options: EngineOptions, waves: Sequence[Sequence[Case]], *, alone: bool = False) -> Run:
    """Submits each wave when the last request of the one before has begun; those of one wave arrive at once."""
    with Engine(path, options) as engine:
        events: list[list[TokenEvent | FinishedEvent]] = []
        handles: list[RequestHandle] = []
        for wave in waves:
            if handles:
                events[-1].append(handles[-1].get(timeout_s=60))
            submitted = engine.submit([case.request(alone=alone) for case in wave])
            handles.extend(submitted)
            events.extend([] for _ in submitted)
        for handle, seen in zip(handles, events, strict=True):
            while not (seen and isinstance(seen[-1], FinishedEvent)):
                seen.append(handle.get(timeout_s=60))
        stats = engine.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"]
        return Run(
            [[event for event in seen if isinstance(event, TokenEvent)] for seen in events],
            [event for seen in events for event in seen if isinstance(event, FinishedEvent)],
            engine.take_iteration_stats(),
            stats,
        )


@functools.cache
def alone(path: Path, case: Case, kernel_level: str | None = None) -> Output:
    """In an engine of one thread that reuses nothing and computes the prompt in one piece."""
    options = EngineOptions(
        num_threads=1, max_batch_size=1, max_seq_len=64, enable_block_reuse=False, kernel_level=kernel_level
    )
    (output,) = run(path, options, [[case]], alone=True).outputs
    return output


@functools.cache
def block_bytes(path: Path) -> int:
    """Bytes of one block of this engine's KV pool."""
    with Engine(path) as engine:
        size: int = engine.info["kv_cache_bytes"] // engine.info["num_blocks"]
        return size
