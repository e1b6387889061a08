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
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    YarnScaling,
    inverse_frequencies,
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


def expected_frequencies(rope: dict[str, Any], head_dim: int) -> tuple[NDArray[np.float32], float]:
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters=dict(rope),
        max_position_embeddings=4 * rope.get("original_max_position_embeddings", 2048),
    )
    compute: Any = ROPE_INIT_FUNCTIONS.get(rope["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    frequencies, attention_factor = compute(config)
    return frequencies.numpy(), attention_factor


def torch_powers(theta: float, head_dim: int) -> NDArray[np.float32]:
    """theta ** (2j / head_dim) as PyTorch computes it in float32."""
    powers: NDArray[np.float32] = (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim)).numpy()
    return powers


def parsed_rope(rope: dict[str, Any], head_dim: int) -> RopeConfig:
    return hf_config.rope(JsonObject({"rope_parameters": rope}, "config.json"), head_dim, 2048)


@settings(max_examples=300, deadline=None)
@given(st.one_of(default_ropes, linear_ropes, llama3_ropes, yarn_ropes), thetas, head_dims)
def test_equals_transformers_bit_for_bit_given_its_powers(rope: dict[str, Any], theta: float, head_dim: int) -> None:
    rope = {**rope, "rope_theta": theta}
    expected, expected_factor = expected_frequencies(rope, head_dim)
    with mock.patch.object(rope_module, "_powers", return_value=torch_powers(theta, head_dim)):
        frequencies, attention_factor = inverse_frequencies(parsed_rope(rope, head_dim))
    assert frequencies.dtype == np.float32
    np.testing.assert_array_equal(frequencies, expected)
    assert attention_factor == expected_factor


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
