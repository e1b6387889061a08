"""Inverse frequencies against transformers' own."""

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from precast.checkpoints import hf_config
from precast.checkpoints import rope as rope_module
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
    inverse_frequencies,
    rope_table,
    yarn_mscale,
)

thetas = st.sampled_from([10000.0, 500000.0, 1000000.0]) | st.floats(2.0, 1e7)
head_dims = st.integers(1, 128).map(lambda half: 2 * half)
factors = st.sampled_from([1.0, 2.0, 8.0, 32.0]) | st.floats(1.0, 64.0)
contexts = st.sampled_from([2048, 4096, 8192]) | st.integers(16, 100_000)
default_ropes = st.just({"rope_type": "default"})
linear_ropes = st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factors})
llama3_ropes = st.fixed_dictionaries(
    {
        "rope_type": st.just("llama3"),
        "factor": factors,
        "low_freq_factor": st.just(1.0) | st.floats(0.1, 3.0),
        "high_freq_factor": st.just(4.0) | st.floats(3.5, 9.0),
        "original_max_position_embeddings": contexts,
    }
)
yarn_ropes = st.fixed_dictionaries(
    {"rope_type": st.just("yarn"), "factor": factors, "original_max_position_embeddings": contexts},
    optional={
        "beta_fast": st.just(32) | st.floats(8.0, 70.0),
        "beta_slow": st.just(1) | st.floats(0.1, 7.0),
        "mscale": st.just(0.707) | st.floats(0.0, 2.0),
        "mscale_all_dim": st.just(0.707) | st.floats(0.0, 2.0),
        "attention_factor": st.floats(0.5, 2.0),
        "truncate": st.booleans(),
    },
)


def expected_frequencies(
    rope: dict[str, Any], head_dim: int, seq_len: int | None = None
) -> tuple[NDArray[np.float32], float]:
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters=dict(rope),
        max_position_embeddings=4 * rope.get("original_max_position_embeddings", 2048),
    )
    compute: Any = ROPE_INIT_FUNCTIONS.get(rope["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    length = None if seq_len is None else torch.tensor(seq_len)  # as its forward pass calls it
    frequencies, attention_factor = compute(config, seq_len=length)
    return frequencies.numpy(), attention_factor


def torch_powers(theta: float, head_dim: int) -> NDArray[np.float32]:
    """theta ** (2j / head_dim) as PyTorch computes it in float32."""
    powers: NDArray[np.float32] = (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim)).numpy()
    return powers


def parsed_rope(rope: dict[str, Any], head_dim: int, max_positions: int = 2048) -> RopeConfig:
    return hf_config.rope(JsonObject({"rope_parameters": rope}, "config.json"), head_dim, max_positions)


@settings(max_examples=300, deadline=None)
@given(st.one_of(default_ropes, linear_ropes, llama3_ropes, yarn_ropes), thetas, head_dims)
def test_equals_transformers_bit_for_bit_given_its_powers(rope: dict[str, Any], theta: float, head_dim: int) -> None:
    rope = {**rope, "rope_theta": theta}
    expected, expected_factor = expected_frequencies(rope, head_dim)
    with mock.patch.object(rope_module, "_powers", torch_powers):
        frequencies, attention_factor = inverse_frequencies(parsed_rope(rope, head_dim))
    assert frequencies.dtype == np.float32
    np.testing.assert_array_equal(frequencies, expected)
    assert attention_factor == expected_factor


@settings(max_examples=200, deadline=None)
@given(factors, thetas, st.integers(2, 64).map(lambda half: 2 * half), st.integers(1, 6000))
def test_dynamic_frequencies_are_those_of_the_length(factor: float, theta: float, head_dim: int, seq_len: int) -> None:
    # The original context is max_position_embeddings, whatever a file may say beside it.
    rope = {"rope_type": "dynamic", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": 512}
    expected, _ = expected_frequencies(rope, head_dim, seq_len)
    config = parsed_rope(rope, head_dim, max_positions=2048)
    assert config.scaling == DynamicScaling(factor, 2048)
    frequencies, attention_factor = inverse_frequencies(config, seq_len)
    assert attention_factor == 1.0
    np.testing.assert_allclose(frequencies, expected, rtol=1e-5)  # two powers of float32, one of them raised again
    if seq_len <= 2048:
        np.testing.assert_array_equal(frequencies, inverse_frequencies(RopeConfig(theta, head_dim))[0])


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"original_max_position_embeddings": contexts},
        optional={"factor": factors, "attention_factor": st.floats(0.5, 2.0)},
    ),
    thetas,
    st.integers(1, 16),
    st.data(),
)
def test_longrope_equals_transformers_bit_for_bit_given_its_powers(
    rope: dict[str, Any], theta: float, half: int, data: st.DataObject
) -> None:
    context = rope["original_max_position_embeddings"]
    lists = st.lists(st.floats(1.0, 64.0), min_size=half, max_size=half)
    rope |= {"rope_type": "longrope", "rope_theta": theta}
    rope |= {"short_factor": data.draw(lists), "long_factor": data.draw(lists)}
    for seq_len in (1, context, context + 1, 4 * context):
        expected, expected_factor = expected_frequencies(rope, 2 * half, seq_len)
        with mock.patch.object(rope_module, "_powers", torch_powers):
            frequencies, attention_factor = inverse_frequencies(parsed_rope(rope, 2 * half, 4 * context), seq_len)
        np.testing.assert_array_equal(frequencies, expected)
        assert attention_factor == expected_factor


def test_a_table_of_dynamic_rope_has_a_row_for_every_position_beyond_the_original_context() -> None:
    rope = RopeConfig(10000.0, 8, DynamicScaling(2.0, 16))
    table = rope_table(rope, 20)
    assert (table.frequencies.shape, table.start, table.attention_factor) == ((5, 4), 15, 1.0)
    for position in range(20):
        row = min(max(0, position - table.start), 4)
        np.testing.assert_array_equal(table.frequencies[row], inverse_frequencies(rope, position + 1)[0])
    assert rope_table(rope, 16).frequencies.shape == (1, 4)


def test_a_table_of_longrope_has_the_factors_of_the_longest_sequence() -> None:
    rope = RopeConfig(10000.0, 4, LongRopeScaling((1.0, 1.0), (2.0, 4.0), 16, 1.25))
    plain, _ = inverse_frequencies(RopeConfig(10000.0, 4))
    for max_seq_len, divisors in [(16, [1, 1]), (17, [2, 4])]:
        table = rope_table(rope, max_seq_len)
        np.testing.assert_array_equal(table.frequencies, [plain / np.array(divisors, np.float32)])
        assert (table.start, table.attention_factor) == (0, 1.25)


@settings(max_examples=300, deadline=None)
@given(thetas, head_dims)
def test_plain_frequencies_differ_from_torch_in_the_last_bits_at_most(theta: float, head_dim: int) -> None:
    frequencies, _ = inverse_frequencies(RopeConfig(theta, head_dim))
    expected, _ = expected_frequencies({"rope_type": "default", "rope_theta": theta}, head_dim)
    np.testing.assert_array_max_ulp(frequencies, expected, maxulp=2)  # the reciprocal can double the last bit


def test_llama3_keeps_short_wavelengths_and_divides_long_ones() -> None:
    plain, _ = inverse_frequencies(RopeConfig(500000.0, 128))
    scaled, _ = inverse_frequencies(RopeConfig(500000.0, 128, Llama3Scaling(8.0, 1.0, 4.0, 8192)))
    wavelengths = 2 * math.pi / plain
    is_short, is_long = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_array_equal(scaled[is_short], plain[is_short])
    np.testing.assert_array_equal(scaled[is_long], plain[is_long] / np.float32(8))
    between = ~is_short & ~is_long
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain, _ = inverse_frequencies(RopeConfig(10000.0, 128))
    scaled, attention_factor = inverse_frequencies(RopeConfig(10000.0, 128, YarnScaling(4.0, 4096)))
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / np.float32(4)
    assert attention_factor == 0.1 * math.log(4.0) + 1.0


def test_yarn_attention_factor_is_the_ratio_of_both_mscales() -> None:
    scaling = YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=0.5)
    _, attention_factor = inverse_frequencies(RopeConfig(10000.0, 64, scaling))
    assert attention_factor == yarn_mscale(40.0, 1.0) / yarn_mscale(40.0, 0.5)
    assert yarn_mscale(1.0, 0.7) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RopeConfig(1.0, 64), "theta must be greater than 1, not 1.0"),
        (lambda: RopeConfig(float("inf"), 64), "theta must be positive"),
        (lambda: RopeConfig(1e4, 63), "rotary_dim must be even, not 63"),
        (lambda: RopeConfig(1e4, 64, mrope_section=(16, 24, 24)), "must sum to rotary_dim / 2 = 32"),
        (lambda: DynamicScaling(0.5, 64), "DynamicScaling: factor must be at least 1, not 0.5"),
        (lambda: RopeConfig(1e4, 2, DynamicScaling(2.0, 64)), "needs a rotary_dim of at least 4, not 2"),
        (lambda: LongRopeScaling((1.0, 0.0), (1.0, 1.0), 64), "every short_factor must be positive"),
        (
            lambda: RopeConfig(1e4, 4, LongRopeScaling((1.0, 1.0), (1.0,), 64)),
            "long_factor has 1 factors; rotary_dim / 2 is 2",
        ),
        (lambda: LinearScaling(0.0), "LinearScaling: factor must be positive, not 0.0"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 8192), "high_freq_factor 4.0 must be greater than low_freq_factor 4.0"),
        (lambda: YarnScaling(4.0, 0), "original_max_position_embeddings must be positive, not 0"),
        (lambda: YarnScaling(4.0, 64, beta_fast=1.0, beta_slow=2.0), "beta_fast 1.0 must not be less than beta_slow"),
        (lambda: YarnScaling(4.0, 64, attention_factor=-1.0), "attention_factor must not be negative, and is -1.0"),
    ],
)
def test_impossible_values_are_refused_at_birth(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
