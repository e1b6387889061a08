"""The arithmetic behind `precast inspect`: each rank's bytes, and what fits where."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.weights_reader import read_weights_index
from precast.cli.engine_memory import (
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MAX_NUM_TOKENS,
    HostFit,
    KvBlockCounts,
    MemoryFit,
    RankMemory,
    Share,
    fit_host,
    fit_memory,
    rank_memories,
    smallest_memory,
)
from precast.runtime.engine import Engine

RanksEngine = Callable[[str, int, int], Path]

WEIGHTS_START = 2 << 20  # the tensors of a weights.bin begin there
FULL = KvBlockCounts(tokens_per_block=16, windows=(None,), max_seq_len=256, max_step_tokens=2048)


def ranks_of(engine: Path) -> list[RankMemory]:
    manifest = read_manifest(engine)
    paths = [str(rank.weights) for rank in manifest.ranks]
    return rank_memories(manifest, {path: read_weights_index(engine / path) for path in paths})


# ----------------------------------------------------------------------------------------------------------- the ranks


def test_ranks_of_a_stage_have_slices_of_the_same_layers(ranks_engine: RanksEngine) -> None:
    engine = ranks_engine("gqa", 2, 1)
    # Each rank has 2 query heads and 1 key-value head of 16, 80 of 160 features, 160 of 320 tokens, of hidden size 64:
    # qkv 4 x 16 x 64, o 64 x 32, gate and up 160 x 64, down 64 x 80, 2 norms.
    layer = 4 * (64 * 64 + 64 * 32 + 160 * 64 + 64 * 80 + 2 * 64)
    ends = 4 * (160 * 64 + 64 + 160 * 64)  # embedding, norm, head
    frequencies = 4 * 8
    tensors = 2 * layer + ends + frequencies
    block = 2 * 2 * 16 * 16 * 4  # 2 layers, K and V, 1 head of 16, 16 tokens, fp32
    assert tensors == 255_264
    assert ranks_of(engine) == [
        RankMemory(
            rank=rank,
            stage=0,
            tensor_rank=rank,
            layers=(0, 1),
            weights_bytes=WEIGHTS_START + tensors + 32,  # the frequencies end 32 bytes before the next tensor's place
            tensor_bytes=tensors,
            graph_bytes=(engine / f"rank{rank}" / "model.onnx").stat().st_size,
            kv_block_bytes=block,
            kv_bytes_per_token=block // 16,
            kv_bytes_per_token_in_windows=0,
        )
        for rank in (0, 1)
    ]


def test_stages_may_have_different_numbers_of_layers(ranks_engine: RanksEngine) -> None:
    first, last = ranks_of(ranks_engine("mqa", 1, 2))
    assert [(rank.rank, rank.stage, rank.tensor_rank, rank.layers) for rank in (first, last)] == [
        (0, 0, 0, (0, 1)),
        (1, 1, 0, (2,)),
    ]
    # qkv 6 heads of 16 x 64, o 64 x 64, gate and up 320 x 64, down 64 x 160, 2 norms; embedding and head 320 x 64
    layer = 4 * (96 * 64 + 64 * 64 + 320 * 64 + 64 * 160 + 2 * 64)
    assert first.tensor_bytes == 4 * 320 * 64 + 2 * layer + 32
    assert last.tensor_bytes == layer + 32 + 4 * 64 + 4 * 320 * 64
    assert (first.kv_block_bytes, last.kv_block_bytes) == (2 * 2048, 2048)  # a layer: K and V, 1 head of 16, 16 tokens
    assert (first.kv_bytes_per_token, last.kv_bytes_per_token) == (256, 128)


def test_ranks_are_numbered_stage_by_stage(ranks_engine: RanksEngine) -> None:
    ranks = ranks_of(ranks_engine("bfloat16", 2, 2))
    assert [(rank.rank, rank.stage, rank.tensor_rank, rank.layers) for rank in ranks] == [
        (0, 0, 0, (0,)),
        (1, 0, 1, (0,)),
        (2, 1, 0, (1,)),
        (3, 1, 1, (1,)),
    ]


def test_a_block_is_a_page_of_all_groups_on_every_rank(ranks_engine: RanksEngine) -> None:
    """Layer 0 sees all, layers 1 and 2 have a window: the last stage holds pages of a group that it has no layer of."""
    first, last = ranks_of(ranks_engine("qwen2_window", 1, 2))
    assert (first.layers, last.layers) == ((0, 1), (2,))
    for rank in (first, last):
        assert rank.kv_block_bytes == 2 * 2 * 16 * 16 * 4  # one layer: K and V, 2 heads of 16, 16 tokens, fp32
        assert (rank.kv_bytes_per_token, rank.kv_bytes_per_token_in_windows) == (256, 256)


# ---------------------------------------------------------------------------------------------------- blocks and memory


def test_a_window_keeps_what_a_step_can_see_at_the_worst_place() -> None:
    for tokens_per_block in (1, 4, 16):
        for window in (1, 2, 15, 16, 17, 33):
            for step in (1, 3, 16, 17):
                blocks = KvBlockCounts(tokens_per_block, (window,), max_seq_len=1, max_step_tokens=step)
                most = max(
                    len({p // tokens_per_block for p in range(max(0, start - window + 1), start + step)})
                    for start in range(64)
                )
                assert blocks.of_sequence(10_000) == most


def test_blocks_are_counted_over_all_groups() -> None:
    blocks = KvBlockCounts(tokens_per_block=16, windows=(None, 20), max_seq_len=100, max_step_tokens=32)
    assert blocks.of_sequence(1) == 1 + 1
    assert blocks.of_sequence(64) == 4 + 4
    assert blocks.of_sequence(100) == 7 + 5  # 19 + 32 tokens touch at most 5 blocks
    assert KvBlockCounts(16, (), 100, 32).of_sequence(100) == 0


def test_each_stage_has_a_step_in_flight(ranks_engine: RanksEngine) -> None:
    manifest = read_manifest(ranks_engine("mqa", 1, 2))
    assert KvBlockCounts.of(manifest) == KvBlockCounts(16, (None,), max_seq_len=256, max_step_tokens=2 * 2048)


def test_a_tenth_of_a_memory_is_reserved_and_blocks_fill_the_rest() -> None:
    share = Share(ranks=(0,), weights_bytes=40_000, kv_block_bytes=1000)
    # 100,009 - 10,000 reserved - 40,000 = 50,009: 50 blocks of 16 tokens; 256 tokens need 16 blocks
    assert fit_memory(100_009, [share], FULL) == MemoryFit(
        memory_bytes=100_009,
        reserved_bytes=10_000,
        weights_fit=True,
        missing_bytes=0,
        tightest_ranks=(0,),
        free_for_kv_cache_bytes=50_009,
        kv_cache_tokens=800,
        sequences_of_max_seq_len=3,
    )


def test_what_is_missing_is_what_a_larger_memory_needs() -> None:
    share = Share(ranks=(0,), weights_bytes=8000, kv_block_bytes=1000)
    too_small = fit_memory(8000, [share], FULL)  # 7200 usable; 9000 needed, which is 10,000 less a tenth, but for 1
    assert (too_small.weights_fit, too_small.missing_bytes) == (False, 1999)
    assert (too_small.kv_cache_tokens, too_small.sequences_of_max_seq_len) == (0, 0)
    no_block = fit_memory(9998, [share], FULL)  # 8999 usable
    assert (no_block.weights_fit, no_block.missing_bytes, no_block.free_for_kv_cache_bytes) == (True, 1, 999)
    assert fit_memory(9999, [share], FULL).missing_bytes == 0  # 9000 usable


def test_the_smallest_memory_is_the_smallest() -> None:
    for weights_bytes in range(1, 60):
        share = Share(ranks=(0,), weights_bytes=weights_bytes, kv_block_bytes=3)
        size = smallest_memory([share], FULL, num_tokens=256)
        assert fit_memory(size, [share], FULL).sequences_of_max_seq_len == 1
        assert fit_memory(size - 1, [share], FULL).sequences_of_max_seq_len == 0


def test_the_rank_whose_cache_is_full_first_decides() -> None:
    heavy = Share(ranks=(0,), weights_bytes=50_000, kv_block_bytes=100)  # 40,000 free: 400 blocks
    many_layers = Share(ranks=(1,), weights_bytes=30_000, kv_block_bytes=600)  # 60,000 free: 100 blocks
    without_attention = Share(ranks=(2,), weights_bytes=10_000, kv_block_bytes=0)
    fit = fit_memory(100_000, [heavy, many_layers, without_attention], FULL)
    assert (fit.tightest_ranks, fit.free_for_kv_cache_bytes, fit.kv_cache_tokens) == ((1,), 60_000, 1600)
    fit = fit_memory(40_000, [heavy, many_layers, without_attention], FULL)  # 36,000 usable
    assert fit.tightest_ranks == (0,)  # many_layers fits
    assert not fit.weights_fit
    assert fit_memory(100_000, [heavy, dataclasses.replace(heavy, ranks=(3,))], FULL).tightest_ranks == (0,)


def test_a_token_takes_a_block_of_every_group() -> None:
    blocks = dataclasses.replace(FULL, windows=(None, 20), max_step_tokens=32)
    share = Share(ranks=(0,), weights_bytes=0, kv_block_bytes=100)
    fit = fit_memory(5000, [share], blocks)  # 4500: 45 blocks, 22 in each group; 256 tokens need 16 + 5
    assert (fit.kv_cache_tokens, fit.sequences_of_max_seq_len) == (22 * 16, 2)
    assert fit_memory(200, [share], blocks).missing_bytes == 22  # 2 blocks need 222 bytes, of which 22 are reserved


def test_without_attention_there_is_no_kv_cache() -> None:
    blocks = dataclasses.replace(FULL, windows=())
    fit = fit_memory(1000, [Share(ranks=(0,), weights_bytes=900, kv_block_bytes=0)], blocks)
    assert (fit.missing_bytes, fit.kv_cache_tokens, fit.sequences_of_max_seq_len) == (0, None, None)


def test_ranks_on_one_host_share_its_memory(ranks_engine: RanksEngine) -> None:
    ranks = ranks_of(ranks_engine("mqa", 1, 2))
    weights = ranks[0].weights_bytes + ranks[1].weights_bytes
    # 9,000,000 usable bytes hold pages of 4096 + 2048; by default half of what is available becomes pages
    num_blocks = (9_000_000 - weights) // 6144
    host = fit_host(10_000_000, ranks, FULL)
    assert host == HostFit(
        fit=MemoryFit(
            memory_bytes=10_000_000,
            reserved_bytes=1_000_000,
            weights_fit=True,
            missing_bytes=0,
            tightest_ranks=(0, 1),
            free_for_kv_cache_bytes=9_000_000 - weights,
            kv_cache_tokens=16 * num_blocks,
            sequences_of_max_seq_len=num_blocks // 16,
        ),
        weights_bytes=weights,
        default_kv_cache_bytes=5_000_000 // 6144 * 6144,
    )


@pytest.mark.parametrize("variant", ["gqa", "mistral"])
def test_the_default_kv_cache_is_the_runtimes(tiny_engine: Callable[..., Path], variant: str) -> None:
    directory = tiny_engine(variant)
    manifest = read_manifest(directory)
    with Engine(directory) as engine:
        info = engine.info
    assert (info["max_batch_size"], info["max_num_tokens"]) == (DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_NUM_TOKENS)
    host = fit_host(1 << 40, ranks_of(directory), KvBlockCounts.of(manifest))
    assert host.default_kv_cache_bytes == info["kv_cache_bytes"]
