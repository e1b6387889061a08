"""Which stage gets which layers."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from precast.checkpoints.errors import PartitionError
from precast.checkpoints.model_config import MlpConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition, balanced_stages, plan_partition
from tests.builder.worlds import LAYER, MODEL

DEEP = replace(MODEL, layers=(LAYER,) * 8, vocab_size=1)


def test_ranks_are_numbered_stage_by_stage() -> None:
    mapping = Mapping.of(2, 3)
    assert [(mapping.stage(rank), mapping.tensor_rank(rank)) for rank in range(mapping.world_size)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip


def test_layers_of_a_rank() -> None:
    partition = Partition(Mapping.of(2, 3), (1, 4, 3))
    assert [partition.layer_indices(rank) for rank in (0, 1, 2, 3, 4, 5)] == [
        range(1), range(1), range(1, 5), range(1, 5), range(5, 8), range(5, 8),
    ]  # fmt: skip
    assert [partition.is_first_stage(rank) for rank in range(6)] == [True, True, False, False, False, False]
    assert [partition.is_last_stage(rank) for rank in range(6)] == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("stages", "message"),
    [((1,), "stage_layers must have pipeline_parallel_size = 2 elements, got 1"), ((3, 0), r"stage_layers\[1\] must")],
)
def test_a_partition_that_contradicts_itself(stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition(Mapping.of(1, 2), stages)


@pytest.mark.parametrize(("stages", "expected"), [(1, (8,)), (2, (4, 4)), (3, (3, 3, 2)), (8, (1,) * 8)])
def test_equal_layers_are_spread_evenly(stages: int, expected: tuple[int, ...]) -> None:
    assert plan_partition(DEEP, Mapping.of(1, stages)).stage_layers == expected


def test_the_head_counts_for_the_last_stage_and_the_embedding_for_none() -> None:
    layer_elements = 32 * 64 + 32 * 32 + 3 * 32 * 48 + 2 * 32  # q and kv, o, the feed-forward, norms
    head_of_two_layers = replace(DEEP, vocab_size=2 * layer_elements // 32)
    assert plan_partition(head_of_two_layers, Mapping.of(1, 2)).stage_layers == (5, 3)


def test_layers_of_different_sizes() -> None:
    wide = replace(LAYER, feed_forward=MlpConfig(480))
    model = replace(DEEP, layers=(wide, LAYER, LAYER, LAYER, LAYER, LAYER, LAYER, wide))
    assert plan_partition(model, Mapping.of(1, 2)).stage_layers == (4, 4)
    assert plan_partition(model, Mapping.of(1, 3)).stage_layers == (1, 6, 1)


def test_more_stages_than_layers() -> None:
    with pytest.raises(
        PartitionError, match="pipeline_parallel_size 9 exceeds the 8 layers of TinyForCausalLM: choose"
    ):
        plan_partition(DEEP, Mapping.of(1, 9))


@settings(max_examples=500)
@example(costs=[1, 6, 2, 4, 7, 1], extra=0, num_stages=5)
@given(
    costs=st.lists(st.integers(1, 30), min_size=1, max_size=9), extra=st.integers(0, 40), num_stages=st.integers(1, 9)
)
def test_no_other_division_is_better(costs: list[int], extra: int, num_stages: int) -> None:
    num_stages = min(num_stages, len(costs))

    def judge(ends: tuple[int, ...]) -> tuple[int, int]:
        stages = [sum(costs[start:end]) for start, end in zip((0, *ends), (*ends, len(costs)), strict=True)]
        stages[-1] += extra
        return max(stages), sum(stage * stage for stage in stages)

    lengths = balanced_stages(costs, extra, num_stages)
    assert len(lengths) == num_stages
    assert sum(lengths) == len(costs)
    assert min(lengths) >= 1
    ends = tuple(sum(lengths[: stage + 1]) for stage in range(num_stages - 1))
    assert judge(ends) == min(map(judge, combinations(range(1, len(costs)), num_stages - 1)))
