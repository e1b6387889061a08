"""What the device kernels of GreedyTokens are specialised by."""

from dataclasses import dataclass

from precast.plugins.greedy_tokens.schema import NAME

MAX_VOCAB_SIZE = 1 << 22
"""Of which a row has 1024 partial results, a tile of the merge kernel."""


@dataclass(frozen=True)
class GreedyTokensFields:
    """V. Raises ValueError where it makes no sense."""

    vocab_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(f"{NAME}: a vocabulary of {self.vocab_size}; the device kernels do 1 to {MAX_VOCAB_SIZE}")
