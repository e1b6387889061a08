"""What the device kernels of TopCandidates are specialised by."""

from dataclasses import dataclass

from precast.plugins.top_candidates.schema import MAX_CANDIDATES, NAME

MAX_VOCAB_SIZE = 1 << 22
"""Of which a row has 512 chunks."""


@dataclass(frozen=True)
class TopCandidatesFields:
    """V and K. Raises ValueError where they make no sense."""

    vocab_size: int
    num_candidates: int

    def __post_init__(self) -> None:
        if not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(f"{NAME}: a vocabulary of {self.vocab_size}; the device kernels do 1 to {MAX_VOCAB_SIZE}")
        most = min(MAX_CANDIDATES, self.vocab_size)
        if not 1 <= self.num_candidates <= most:
            raise ValueError(
                f"{NAME}: {self.num_candidates} candidates of a vocabulary of {self.vocab_size}; "
                f"the device kernels do 1 to {most}"
            )
