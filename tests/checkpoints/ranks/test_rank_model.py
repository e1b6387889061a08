"""What each rank has of a model, exactly; and that ranks together have everything once."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precast.checkpoints.model_config import HeadConfig, ModelConfig, NormConfig, QkNormConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import plan_partition
from precast.checkpoints.ranks.rank_model import RankModel, rank_model, vocabulary_of, whole_model
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_shapes import layer_shapes, tensor_shapes
from tests.builder.worlds import LAYER, MODEL, TIED, with_attention, with_mlp

BIASED = with_mlp(with_attention(qkv_bias=True, output_bias=True), bias=True)
DEEP = replace(MODEL, layers=(LAYER,) * 4)


def ranks_of(model: ModelConfig, tensor_size: int, pipeline_size: int = 1) -> list[RankModel]:
    partition = plan_partition(model, Mapping.of(tensor_size, pipeline_size))
    return [rank_model(model, partition, rank) for rank in range(tensor_size * pipeline_size)]


def test_one_rank_has_everything() -> None:
    rank = whole_model(BIASED)
    assert rank.layers == dict(enumerate(BIASED.layers))
    assert rank.vocabulary == range(40)
    assert rank.slices == {name: TensorSlice(shape) for name, shape in tensor_shapes(BIASED).items()}
    assert (rank.is_first_stage, rank.is_last_stage, rank.tensor_rank) == (True, True, 0)


def test_slices_of_the_second_of_two_ranks() -> None:
    """4 heads and 2 key-value heads of 8, hidden size 32, intermediate size 48, vocabulary 40 in 2 x 32 rows."""
    rank = ranks_of(replace(BIASED, head=HeadConfig(bias=True)), 2)[1]
    attention, mlp = "layers.0.attention", "layers.0.feed_forward"
    assert rank.slices == {
        "embedding.weight": TensorSlice((32, 32), 0, 32),
        "layers.0.mixer_norm.weight": TensorSlice((32,)),
        f"{attention}.q.weight": TensorSlice((16, 32), 0, 16),
        f"{attention}.q.bias": TensorSlice((16,), 0, 16),
        f"{attention}.k.weight": TensorSlice((8, 32), 0, 8),
        f"{attention}.k.bias": TensorSlice((8,), 0, 8),
        f"{attention}.v.weight": TensorSlice((8, 32), 0, 8),
        f"{attention}.v.bias": TensorSlice((8,), 0, 8),
        f"{attention}.o.weight": TensorSlice((32, 16), 1, 16),
        f"{attention}.o.bias": TensorSlice((32,), is_zero=True),
        "layers.0.feed_forward_norm.weight": TensorSlice((32,)),
        f"{mlp}.gate.weight": TensorSlice((24, 32), 0, 24),
        f"{mlp}.gate.bias": TensorSlice((24,), 0, 24),
        f"{mlp}.up.weight": TensorSlice((24, 32), 0, 24),
        f"{mlp}.up.bias": TensorSlice((24,), 0, 24),
        f"{mlp}.down.weight": TensorSlice((32, 24), 1, 24),
        f"{mlp}.down.bias": TensorSlice((32,), is_zero=True),
        "final_norm.weight": TensorSlice((32,)),
        "lm_head.weight": TensorSlice((32, 32), 0, 32),
        "lm_head.bias": TensorSlice((32,), 0, 32),
    }
    assert rank.vocabulary == range(32, 64)


def test_fewer_key_value_heads_than_ranks() -> None:
    slices = [rank.slices["layers.0.attention.k.weight"] for rank in ranks_of(MODEL, 4)]
    assert slices == [TensorSlice((8, 32), 0, start) for start in (0, 0, 8, 8)]


def test_norms_of_heads_are_on_every_rank() -> None:
    model = with_attention(qk_norm=QkNormConfig(NormConfig(1e-5)))
    for rank in ranks_of(model, 2):
        assert rank.slices["layers.0.attention.q_norm.weight"] == TensorSlice((8,))
        assert rank.slices["layers.0.attention.k_norm.weight"] == TensorSlice((8,))


@pytest.mark.parametrize(
    ("vocab_size", "size", "num_rows"),
    [(40, 1, 40), (40, 2, 32), (64, 2, 32), (65, 2, 48), (32000, 2, 16000), (5, 4, 16)],
)
def test_a_padded_vocabulary(vocab_size: int, size: int, num_rows: int) -> None:
    assert [vocabulary_of(vocab_size, size, rank) for rank in range(size)] == [
        range(rank * num_rows, (rank + 1) * num_rows) for rank in range(size)
    ]


def test_stages_have_their_own_layers_and_the_ends_the_rest() -> None:
    first, last = ranks_of(DEEP, 1, 2)
    assert list(first.layers) == [0, 1]
    assert list(last.layers) == [2, 3]
    assert "embedding.weight" in first.slices
    assert {"embedding.weight", "layers.1.mixer_norm.weight"}.isdisjoint(last.slices)
    assert {"lm_head.weight", "final_norm.weight"} <= last.slices.keys()
    assert {"lm_head.weight", "final_norm.weight"}.isdisjoint(first.slices)


def test_a_tied_table_is_on_the_first_and_on_the_last_stage() -> None:
    ranks = ranks_of(replace(TIED, layers=(LAYER,) * 3), 1, 3)
    assert ["embedding.weight" in rank.slices for rank in ranks] == [True, False, True]


@given(
    tensor_size=st.sampled_from([1, 2, 4]),
    pipeline_size=st.integers(1, 4),
    biased=st.booleans(),
    num_kv_heads=st.sampled_from([1, 2, 4]),
)
def test_ranks_together_have_every_element(
    tensor_size: int, pipeline_size: int, biased: bool, num_kv_heads: int
) -> None:
    """Each element once; norms on every rank of a stage, and heads that ranks share on each of these."""
    base = with_attention(BIASED if biased else MODEL, num_kv_heads=num_kv_heads)
    model = replace(base, layers=base.layers * 4)
    counts = {name: np.zeros(shape, int) for name, shape in tensor_shapes(model).items()}
    for rank in ranks_of(model, tensor_size, pipeline_size):
        sizes = {
            f"layers.{index}.{name}": shape
            for index, layer in rank.layers.items()
            for name, shape in layer_shapes(layer, model.hidden_size)
        }
        assert {name: part.shape for name, part in rank.slices.items() if name.startswith("layers.")} == sizes
        for name, part in rank.slices.items():
            if not part.is_zero:
                index = (slice(None),) * part.axis + (slice(part.start, part.stop),)
                counts[name][index] += 1
    for name, count in counts.items():
        module = name.split(".")[-2]
        replicas = tensor_size if "norm" in name else max(tensor_size // num_kv_heads, 1) if module in "kv" else 1
        assert Counter(count.ravel().tolist()) == {replicas: count.size}, name
