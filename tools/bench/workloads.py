"""The work that engines are compared on, as token ids: the same ids for every engine, seeded, so the same on every day.

W1  one stream: a prompt of 128 tokens, 64 out. Decoding alone counts, from the first token to the last.
W2  one prompt of 1024 tokens, one token out.
W3  32 requests at once: prompts of 32 to 256 tokens (4229 in all), 16 to 128 out (2360 in all).
W4  16 requests at once that share a prefix of 512 tokens and have 32 of their own, 16 out each.
W5  from the start of the process to the first token of a prompt of 8 tokens, page cache warm.

Decoding is greedy and goes on after an end-of-sequence token, so that every engine computes as many tokens. Nothing
here needs more than the standard library: the workers of all engines read this file too.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

SEED = 20
FIRST_TOKEN_ID = 3  # below it lie the special tokens of make_checkpoint.py


@dataclass(frozen=True)
class Request:
    """A prompt, and how many tokens are wanted."""

    prompt: tuple[int, ...]
    num_output_tokens: int

    @property
    def length(self) -> int:
        return len(self.prompt) + self.num_output_tokens


@dataclass(frozen=True)
class Workload:
    """Requests that are submitted together, before the first step.

    Attributes:
        num_shared_tokens: how many tokens at the start of all prompts are the same. Engines find that out by
            themselves; it is here for those whose callers have to say it.
    """

    name: str
    requests: tuple[Request, ...]
    num_shared_tokens: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(request.num_output_tokens for request in self.requests)

    @property
    def max_length(self) -> int:
        return max(request.length for request in self.requests)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Workload:
        requests = tuple(Request(tuple(one["prompt"]), one["num_output_tokens"]) for one in data["requests"])
        return Workload(data["name"], requests, data["num_shared_tokens"])


def make_workload(name: str, vocab_size: int, scale: int = 1) -> Workload:
    """One of W1 to W5, with token ids in [3, vocab_size).

    Args:
        scale: divides the number of requests and every length, for trying things out; 1 is the workload itself.

    Raises:
        ValueError: an unknown name, or a vocabulary without ordinary tokens.
    """
    if vocab_size <= FIRST_TOKEN_ID:
        raise ValueError(f"vocab_size must be more than {FIRST_TOKEN_ID}, got {vocab_size}")
    if name not in _MAKERS:
        raise ValueError(f"there is no workload {name!r}; there are {', '.join(_MAKERS)}")
    rng = random.Random(f"{SEED} {name}")
    workload = _MAKERS[name](rng, vocab_size)
    return workload if scale == 1 else _scaled(workload, scale)


def make_warm_up(workload: Workload, vocab_size: int) -> Workload:
    """Short requests with other tokens than `workload`: they touch the weights and leave no prefix to reuse."""
    rng = random.Random(f"{SEED} warm-up")
    count = min(2, len(workload.requests))
    return Workload("warm-up", tuple(Request(_tokens(rng, vocab_size, 16), 4) for _ in range(count)))


def spread(rng: random.Random, count: int, least: int, most: int, total: int) -> list[int]:
    """`count` integers in [least, most], uniform but for what it takes to make their sum exactly `total`.

    Raises:
        ValueError: no such integers exist.
    """
    if not count * least <= total <= count * most:
        raise ValueError(f"{count} integers in [{least}, {most}] cannot have the sum {total}")
    values = [rng.randint(least, most) for _ in range(count)]
    while (missing := total - sum(values)) != 0:
        step = 1 if missing > 0 else -1
        i = rng.randrange(count)
        if least <= values[i] + step <= most:
            values[i] += step
    return values


def _tokens(rng: random.Random, vocab_size: int, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_TOKEN_ID, vocab_size) for _ in range(count))


def _w1(rng: random.Random, vocab_size: int) -> Workload:
    return Workload("W1", (Request(_tokens(rng, vocab_size, 128), 64),))


def _w2(rng: random.Random, vocab_size: int) -> Workload:
    return Workload("W2", (Request(_tokens(rng, vocab_size, 1024), 1),))


def _w3(rng: random.Random, vocab_size: int) -> Workload:
    prompts = spread(rng, 32, 32, 256, total=4229)
    outputs = spread(rng, 32, 16, 128, total=2360)
    lengths = zip(prompts, outputs, strict=True)
    return Workload("W3", tuple(Request(_tokens(rng, vocab_size, prompt), output) for prompt, output in lengths))


def _w4(rng: random.Random, vocab_size: int) -> Workload:
    prefix = _tokens(rng, vocab_size, 512)
    requests = tuple(Request(prefix + _tokens(rng, vocab_size, 32), 16) for _ in range(16))
    return Workload("W4", requests, num_shared_tokens=len(prefix))


def _w5(rng: random.Random, vocab_size: int) -> Workload:
    return Workload("W5", (Request(_tokens(rng, vocab_size, 8), 1),))


_MAKERS = {"W1": _w1, "W2": _w2, "W3": _w3, "W4": _w4, "W5": _w5}
NAMES = tuple(_MAKERS)


def _scaled(workload: Workload, scale: int) -> Workload:
    shared = workload.num_shared_tokens // scale
    own = workload.num_shared_tokens  # where a prompt's own tokens begin

    def cut(request: Request) -> Request:
        num_own = max(1, (len(request.prompt) - own) // scale)
        prompt = request.prompt[:shared] + request.prompt[own : own + num_own]
        return Request(prompt, max(1, request.num_output_tokens // scale))

    kept = workload.requests[: max(1, len(workload.requests) // scale)]
    return Workload(workload.name, tuple(cut(request) for request in kept), shared)
