"""Which sizes of tensor parallelism a model allows."""

from dataclasses import replace

import pytest

from precast.checkpoints.errors import PartitionError
from precast.checkpoints.model_config import (
    AttentionConfig,
    EmbeddingConfig,
    LinearMixerConfig,
    MixtureOfExpertsConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    QkNormConfig,
    RouterConfig,
)
from precast.checkpoints.ranks.tensor_parallel import check_tensor_parallel_size, kv_heads_of, rank_layer
from tests.builder.worlds import LAYER, MLP, MODEL, with_attention, with_layers, with_mlp

HEADS_12 = with_mlp(with_attention(num_heads=12, num_kv_heads=6), intermediate_size=144)


def sizes_that_work(model: ModelConfig) -> list[int]:
    works = []
    for size in range(1, 30):
        try:
            check_tensor_parallel_size(model, size)
        except PartitionError:
            continue
        works.append(size)
    return works


def test_sizes_that_divide_heads_and_the_intermediate_size() -> None:
    assert sizes_that_work(HEADS_12) == [1, 2, 3, 6, 12]
    assert sizes_that_work(with_mlp(HEADS_12, intermediate_size=16)) == [1, 2]
    assert sizes_that_work(with_attention(HEADS_12, num_kv_heads=4)) == [1, 2, 4, 12]  # 3 and 6 cannot share 4 heads
    assert sizes_that_work(with_attention(HEADS_12, num_kv_heads=1)) == [1, 2, 3, 4, 6, 12]


def test_every_layer_counts() -> None:
    other = replace(LAYER, feed_forward=MlpConfig(50))
    assert sizes_that_work(replace(MODEL, layers=(LAYER, other))) == [1, 2]


@pytest.mark.parametrize(
    ("model", "size", "problem"),
    [
        (HEADS_12, 5, "layer 0 has 12 attention heads; sizes that work: 1, 2, 3, 6, 12"),
        (with_attention(HEADS_12, num_kv_heads=4), 3, "layer 0 has 4 key-value heads; sizes that work: 1, 2, 4, 12"),
        (with_mlp(HEADS_12, intermediate_size=50), 3, "layer 0 has an intermediate size of 50; sizes that work: 1, 2"),
        (
            with_attention(qk_norm=QkNormConfig(NormConfig(1e-5), scope="projection")),
            2,
            "layer 0 has a norm over the queries of all heads; sizes that work: 1",
        ),
        (with_layers(mixer=LinearMixerConfig()), 2, "layer 0 has a LinearMixerConfig, which cannot be divided yet"),
        (replace(MODEL, embedding=EmbeddingConfig(num_rows=48)), 2, "its embedding has 48 rows for a vocabulary of 40"),
    ],
)
def test_what_does_not_divide_is_named(model: ModelConfig, size: int, problem: str) -> None:
    with pytest.raises(PartitionError) as raised:
        check_tensor_parallel_size(model, size)
    assert str(raised.value).startswith(f"tensor_parallel_size {size} does not divide TinyForCausalLM: {problem}")


def test_a_layer_of_a_rank() -> None:
    local = rank_layer(HEADS_12.layers[0], 3)
    assert isinstance(local.mixer, AttentionConfig)
    assert isinstance(local.feed_forward, MlpConfig)
    assert (local.mixer.num_heads, local.mixer.num_kv_heads, local.feed_forward.intermediate_size) == (4, 2, 48)
    assert local.mixer.scale == 0.25


def test_key_value_heads_are_the_ones_that_the_ranks_queries_read() -> None:
    """Query head h reads the key-value head h * num_kv_heads // num_heads."""
    for num_heads, num_kv_heads, size in [(12, 6, 3), (12, 4, 12), (12, 1, 4), (8, 2, 4), (8, 8, 8)]:
        attention = AttentionConfig(num_heads, num_kv_heads, head_dim=8, scale=1.0)
        for rank in range(size):
            heads = range(rank * num_heads // size, (rank + 1) * num_heads // size)
            read = {head * num_kv_heads // num_heads for head in heads}
            assert set(kv_heads_of(attention, size, rank)) == read
            local = rank_layer(replace(LAYER, mixer=attention), size).mixer
            assert isinstance(local, AttentionConfig)
            # Within the rank, its first query head reads its first key-value head, and so on.
            start = kv_heads_of(attention, size, rank).start
            locally_read = [start + i * local.num_kv_heads // local.num_heads for i in range(local.num_heads)]
            assert locally_read == [head * num_kv_heads // num_heads for head in heads]


def test_experts_are_divided_along_their_intermediate_size() -> None:
    experts = MixtureOfExpertsConfig(8, 2, expert=MLP, router=RouterConfig(), shared_expert=MlpConfig(96))
    model = with_layers(feed_forward=experts)
    assert sizes_that_work(model) == [1, 2, 4]
    local = rank_layer(model.layers[0], 4).feed_forward
    assert local == replace(experts, expert=MlpConfig(12), shared_expert=MlpConfig(24))
