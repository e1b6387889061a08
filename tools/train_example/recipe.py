"""Every number that decides the example checkpoint's weights, besides the text and the toolchain's versions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Architecture, optimisation and split. Lengths are in tokens."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    max_tokens: int = 1024

    tokens_per_step: int = 4096
    window_lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """One step each, in turn. Short windows, because prompts are short: in long ones alone, text with little before
    it is rare. Up to `max_tokens`, so that every position which the model accepts was trained."""
    num_steps: int = 300
    warmup_steps: int = 30
    peak_learning_rate: float = 4e-3
    final_learning_rate: float = 1e-4
    weight_decay: float = 0.1
    dropout: float = 0.2
    max_grad_norm: float = 1.0

    hold_out_every: int = 10
    seed: int = 0
    num_threads: int = 2

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.head_dim % 16:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_heads {self.num_heads} is not a multiple of 16: "
                "choose another number of heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if max(self.window_lengths) != self.max_tokens:
            raise ValueError(f"the longest of window_lengths {self.window_lengths} is not max_tokens {self.max_tokens}")
        if uneven := [length for length in self.window_lengths if self.tokens_per_step % length]:
            raise ValueError(f"tokens_per_step {self.tokens_per_step} is not a multiple of window_lengths {uneven}")
        if not 0 < self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} does not lie between 0 and num_steps {self.num_steps}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} does not lie in [0, 1)")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads
