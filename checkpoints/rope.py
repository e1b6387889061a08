"""Rotary position embeddings: their config, and the inverse frequencies that it means.

A head's first `rotary_dim` components are rotated in pairs; pair j at position p by the angle
p * inverse_frequency[j]. Cosine and sine are then multiplied by the attention factor.

The formulas and their order of operations are those of transformers 5.23 (`modeling_rope_utils.py`),
because a checkpoint was trained or published against them. Every operation is float32 as there, except the
power `theta ** (2j / rotary_dim)`: it is computed in float64 and rounded once, so that an engine does not
depend on the machine that builds it. PyTorch's float32 power differs from that in the last bit, in 0.06% to 1.6%
of cases depending on the vector instructions it uses; given the same powers, the frequencies are equal bit
for bit (tests/checkpoints/test_rope.py).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.config_checks import require_not_negative, require_positive


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595): frequencies are divided by `factor`."""

    factor: float

    def __post_init__(self) -> None:
        require_positive(self, "factor")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, those between
    interpolated.

    A wavelength is long above `original_max_position_embeddings / low_freq_factor` tokens, short below
    `original_max_position_embeddings / high_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require_positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"Llama3Scaling: high_freq_factor {self.high_freq_factor} must be greater than "
                f"low_freq_factor {self.low_freq_factor}"
            )


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp over the pairs of a head, from kept to interpolated.

    Attributes:
        beta_fast, beta_slow: Rotations within the original context at which the ramp starts and ends.
        attention_factor: Multiplies cosine and sine; None: from mscale and mscale_all_dim where both are
            given and not 0, else 0.1 ln(factor) + 1.
        truncate: Round the ramp's ends outwards to whole pairs.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
        require_not_negative(self, "attention_factor", "mscale", "mscale_all_dim")
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"YarnScaling: beta_fast {self.beta_fast} must not be less than beta_slow {self.beta_slow}"
            )


@dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK: beyond the original context, theta grows with the length (bloc97 and emozilla, 2023; as in
    transformers), so that the slowest pair turns as far as it did within the original context.

    Sequences may have `factor` times the original context.
    """

    factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require_positive(self, "factor", "original_max_position_embeddings")
        if self.factor < 1:
            raise ValueError(f"DynamicScaling: factor must be at least 1, not {self.factor}")

    @property
    def max_position_embeddings(self) -> int:
        return int(self.factor * self.original_max_position_embeddings)


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): each pair's frequency is divided by a factor of its own, of
    one of two sets.

    Attributes:
        short_factor, long_factor: rotary_dim / 2 factors each, for sequences within the original context, and for
            longer ones.
        attention_factor: Multiplies cosine and sine.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "original_max_position_embeddings", "attention_factor")
        for name in ("short_factor", "long_factor"):
            if not all(factor > 0 for factor in getattr(self, name)):
                raise ValueError(f"LongRopeScaling: every {name} must be positive")


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongRopeScaling


@dataclass(frozen=True)
class RopeConfig:
    """A rotary embedding.

    Attributes:
        theta: Base of the frequencies, greater than 1.
        rotary_dim: Leading components of a head that are rotated; even.
        scaling: None: the original embedding (Su et al. 2021, arXiv 2104.09864).
        interleaved: Pairs are components (2j, 2j+1). False: (j, j + rotary_dim / 2), as in most models.
        mrope_section: How many pairs follow each axis (time, height, width) of a multimodal position;
            empty: one axis.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None
    interleaved: bool = False
    mrope_section: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "theta", "rotary_dim")
        if self.theta <= 1:
            raise ValueError(f"RopeConfig: theta must be greater than 1, not {self.theta}")
        if self.rotary_dim % 2 != 0:
            raise ValueError(f"RopeConfig: rotary_dim must be even, not {self.rotary_dim}")
        if self.mrope_section and sum(self.mrope_section) != self.rotary_dim // 2:
            raise ValueError(
                f"RopeConfig: mrope_section {self.mrope_section} must sum to rotary_dim / 2 = {self.rotary_dim // 2}"
            )
        if isinstance(self.scaling, DynamicScaling) and self.rotary_dim < 4:
            raise ValueError(f"RopeConfig: dynamic scaling needs a rotary_dim of at least 4, not {self.rotary_dim}")
        if isinstance(self.scaling, LongRopeScaling):
            for name in ("short_factor", "long_factor"):
                if len(getattr(self.scaling, name)) != self.rotary_dim // 2:
                    raise ValueError(
                        f"RopeConfig: {name} has {len(getattr(self.scaling, name))} factors; rotary_dim / 2 is "
                        f"{self.rotary_dim // 2}"
                    )


@dataclass(frozen=True)
class RopeTable:
    """How an engine rotates, for good: the frequencies of a position depend on nothing but the position.

    Position p rotates by row min(max(0, p - start), rows - 1).

    Attributes:
        frequencies: float32 [rows, rotary_dim / 2], in radians per token.
        start: The last position of row 0.
        attention_factor: Multiplies cosine and sine.
    """

    frequencies: NDArray[np.float32]
    start: int
    attention_factor: float


def rope_table(rope: RopeConfig, max_seq_len: int) -> RopeTable:
    """The rotation of an engine whose sequences have at most `max_seq_len` tokens.

    Dynamic scaling: the token at position p is rotated, for good, as in a sequence that ends with it. Within the
    original context that is transformers, and beyond it is what transformers does when it generates token by token
    with a cache. (Where a prompt is longer than the original context, transformers rotates all its tokens by the
    prompt's length instead, so that its answer depends on how a sequence is cut into steps.)

    LongRoPE: all sequences have the factors of the longest one, `max_seq_len`, as in vLLM. (transformers takes the
    short ones until a sequence leaves the original context, and then the long ones for all that is in its cache.)
    """
    rows, start = rope_rows(rope, max_seq_len)
    if rows > 1:
        first, factor = inverse_frequencies(rope, start + 1)
        table = np.empty((rows, len(first)), np.float32)
        for row in range(rows):
            table[row] = inverse_frequencies(rope, start + 1 + row)[0]
        return RopeTable(table, start, factor)
    frequencies, factor = inverse_frequencies(rope, max_seq_len)
    return RopeTable(frequencies[None], start, factor)


def rope_rows(rope: RopeConfig, max_seq_len: int) -> tuple[int, int]:
    """The number of rows of an engine's RopeTable, and its start."""
    if not isinstance(rope.scaling, DynamicScaling):
        return 1, 0
    original = rope.scaling.original_max_position_embeddings
    return 1 + max(0, max_seq_len - original), original - 1


def inverse_frequencies(rope: RopeConfig, seq_len: int = 1) -> tuple[NDArray[np.float32], float]:
    """The inverse frequencies of a sequence of `seq_len` tokens, float32 [rotary_dim / 2] in radians per token, and
    the attention factor. Only dynamic scaling and LongRoPE depend on the length.
    """
    powers = _powers(_theta(rope, seq_len), rope.rotary_dim)
    match rope.scaling:
        case None:
            return np.float32(1) / powers, 1.0
        case LinearScaling(factor=factor):
            return np.float32(1) / powers / np.float32(factor), 1.0
        case Llama3Scaling():
            return _llama3(np.float32(1) / powers, rope.scaling), 1.0
        case YarnScaling():
            return _yarn(powers, rope, rope.scaling), _yarn_attention_factor(rope.scaling)
        case DynamicScaling():
            return np.float32(1) / powers, 1.0
        case LongRopeScaling():
            is_long = seq_len > rope.scaling.original_max_position_embeddings
            factors = np.array(rope.scaling.long_factor if is_long else rope.scaling.short_factor, np.float32)
            return np.float32(1) / (factors * powers), rope.scaling.attention_factor


def _theta(rope: RopeConfig, seq_len: int) -> float:
    """The base of the frequencies; dynamic scaling enlarges it beyond the original context."""
    if not isinstance(rope.scaling, DynamicScaling) or seq_len <= rope.scaling.original_max_position_embeddings:
        return rope.theta
    factor, context = rope.scaling.factor, rope.scaling.original_max_position_embeddings
    growth = np.float32(factor) * np.float32(seq_len) / np.float32(context) - np.float32(factor - 1)
    exponent = rope.rotary_dim / (rope.rotary_dim - 2)
    return float(np.float32(rope.theta) * np.float32(np.power(np.float64(growth), exponent)))


def _powers(theta: float, rotary_dim: int) -> NDArray[np.float32]:
    """theta ** (2j / rotary_dim), float32 [rotary_dim / 2]."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    powers: NDArray[np.float64] = np.power(np.float64(np.float32(theta)), exponents.astype(np.float64))
    return powers.astype(np.float32)


def _llama3(frequencies: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """`frequencies` float32 [rotary_dim / 2], scaled."""
    one, factor = np.float32(1), np.float32(scaling.factor)
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # A number divided by a tensor is, in PyTorch, the tensor's reciprocal times the number.
    wavelengths = (one / frequencies) * np.float32(2 * math.pi)
    is_long = wavelengths > np.float32(context / low)
    is_short = wavelengths < np.float32(context / high)
    scaled = np.where(is_long, frequencies / factor, frequencies)
    smooth = ((one / wavelengths) * np.float32(context) - np.float32(low)) / np.float32(high - low)
    interpolated = (one - smooth) * scaled / factor + smooth * scaled
    return np.where(~is_long & ~is_short, interpolated, scaled)


def _yarn(powers: NDArray[np.float32], rope: RopeConfig, scaling: YarnScaling) -> NDArray[np.float32]:
    """The frequencies of 1 / `powers`, float32 [rotary_dim / 2], interpolated along YaRN's ramp."""
    one = np.float32(1)
    start = _yarn_pair(scaling.beta_fast, rope, scaling)
    end = _yarn_pair(scaling.beta_slow, rope, scaling)
    if scaling.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, rope.rotary_dim - 1)
    if start == end:
        end += 0.001  # a step instead of a ramp
    pairs = np.arange(rope.rotary_dim // 2, dtype=np.float32)
    ramp = np.clip((pairs - np.float32(start)) / np.float32(end - start), np.float32(0), one)
    kept: NDArray[np.float32] = one - ramp
    interpolated: NDArray[np.float32] = one / (np.float32(scaling.factor) * powers)
    frequencies: NDArray[np.float32] = interpolated * (one - kept) + (one / powers) * kept
    return frequencies


def _yarn_pair(rotations: float, rope: RopeConfig, scaling: YarnScaling) -> float:
    """The (fractional) pair that turns `rotations` times within the original context."""
    tokens_per_radian = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
    return (rope.rotary_dim * math.log(tokens_per_radian)) / (2 * math.log(rope.theta))


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature: 0.1 * mscale * ln(factor) + 1, and 1 without extension (factor <= 1)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
