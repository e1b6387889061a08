"""What the ranks of an engine take, and how much room for the KV cache a memory then has. All sizes are in bytes.

    memory = reserve | weights | KV cache: blocks, each of tokens_per_block tokens

A memory is a device with one rank in it, or this host with all of them. The weights are those of weights.bin, which is
mapped as it is. Blocks are counted as the native runtime counts them when it loads an engine
(runtime/native/src/kv_plan.h); what differs is the budget: the runtime takes half of what this host has at that moment,
while here everything but weights and reserve may become KV cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precast.checkpoints.engine_manifest import EngineManifest
    from precast.checkpoints.weights_index import WeightsIndex

DEFAULT_MAX_BATCH_SIZE = 64
DEFAULT_MAX_NUM_TOKENS = 2048
"""What an engine is loaded with where nothing else is said: EngineOptions in runtime/native/src/engine_loader.h."""

RESERVE_DIVISOR = 10
"""One part in ten of a memory is left to activations, the graph, the backend and whatever else runs there. An estimate:
what they really take depends on the step's tokens, the backend and its version, which no engine records."""

MAX_BLOCKS = ((1 << 31) - 1) // 2
"""Of a pool, whatever the memory: kv_plan.cpp has the same limit."""

_LAYER_OF_TENSOR = re.compile(r"layers\.(\d+)\.", re.ASCII)


@dataclass(frozen=True)
class RankMemory:
    """What one rank takes."""

    rank: int
    stage: int
    tensor_rank: int
    layers: tuple[int, ...]
    """Ascending numbers of the layers that have tensors in the rank's weights file, by the tensors' names; all layers
    where the graph's file holds the weights."""
    weights_bytes: int
    """Of the weights file, or of the graph's file that holds the weights."""
    tensor_bytes: int
    """Of the tensors in it; the rest of the file is its index and zeros between tensors. All of a graph's file."""
    graph_bytes: int
    """Of the graph's file."""
    kv_block_bytes: int
    """Of one more KV block of a sequence, in whichever KV group: blocks of all groups are one set of pages, and every
    rank has all of them, also where it has fewer layers of a group than of another, or none. 0 without attention."""
    kv_bytes_per_token: int
    """Of one more token of a sequence in the groups without a window; 0 where every layer has one."""
    kv_bytes_per_token_in_windows: int
    """The same in the groups with a window, which give it back once no row sees the token any more."""


def rank_memories(manifest: EngineManifest, indices: Mapping[str, WeightsIndex]) -> list[RankMemory]:
    """Of every rank, in order. `indices` has the index of each weights file, by its path in the manifest."""
    from precast.checkpoints.engine_kv import kv_page_bytes

    memories = []
    for number, rank in enumerate(manifest.ranks):
        file = manifest.files[rank.graph if rank.weights is None else rank.weights]
        tensors = None if rank.weights is None else indices[rank.weights].tensors
        block_bytes = kv_page_bytes(rank.kv_caches)
        num_windows = sum(group.window is not None for group in rank.kv_groups)
        memories.append(
            RankMemory(
                rank=number,
                stage=manifest.mapping.stage(number),
                tensor_rank=manifest.mapping.tensor_rank(number),
                layers=tuple(range(manifest.model.num_layers))
                if tensors is None
                else _layers_of(tensor.spec.name for tensor in tensors),
                weights_bytes=file.size,
                tensor_bytes=file.size if tensors is None else sum(tensor.spec.size_bytes for tensor in tensors),
                graph_bytes=manifest.files[rank.graph].size,
                kv_block_bytes=block_bytes,
                kv_bytes_per_token=block_bytes * (len(rank.kv_groups) - num_windows) // manifest.build.tokens_per_block,
                kv_bytes_per_token_in_windows=block_bytes * num_windows // manifest.build.tokens_per_block,
            )
        )
    return memories


def _layers_of(tensor_names: Iterable[str]) -> tuple[int, ...]:
    found = (_LAYER_OF_TENSOR.match(name) for name in tensor_names)
    return tuple(sorted({int(match[1]) for match in found if match}))


@dataclass(frozen=True)
class KvBlockCounts:
    """How many KV blocks sequences need: the same number on every rank."""

    tokens_per_block: int
    windows: tuple[int | None, ...]
    """Of the KV groups, None: no window. Empty for a model without attention."""
    max_seq_len: int
    max_step_tokens: int
    """That a sequence may advance by before its windowed layers give blocks back."""

    @classmethod
    def of(cls, manifest: EngineManifest, max_num_tokens: int = DEFAULT_MAX_NUM_TOKENS) -> KvBlockCounts:
        """Of an engine that computes at most `max_num_tokens` tokens in a step."""
        return cls(
            tokens_per_block=manifest.build.tokens_per_block,
            windows=tuple(group.window for group in manifest.ranks[0].kv_groups),
            max_seq_len=manifest.model.max_seq_len,
            # As many steps are in flight as there are stages, and a prompt may advance in each of them.
            max_step_tokens=max_num_tokens * manifest.mapping.pipeline_parallel_size,
        )

    def of_sequence(self, num_tokens: int) -> int:
        """Most blocks that a sequence of `num_tokens` tokens holds at once, over all groups."""
        return sum(self._of_group(num_tokens, window) for window in self.windows)

    def _of_group(self, num_tokens: int, window: int | None) -> int:
        whole = -(-num_tokens // self.tokens_per_block)
        if window is None:
            return whole
        # A step's first row sees window - 1 tokens before it; they may start at the last token of a block.
        visible = window - 1 + self.max_step_tokens
        return min(whole, (visible + self.tokens_per_block - 2) // self.tokens_per_block + 1)


@dataclass(frozen=True)
class Share:
    """What lies together in one memory."""

    ranks: tuple[int, ...]
    weights_bytes: int
    kv_block_bytes: int

    @classmethod
    def of(cls, ranks: Sequence[RankMemory]) -> Share:
        return cls(
            ranks=tuple(rank.rank for rank in ranks),
            weights_bytes=sum(rank.weights_bytes for rank in ranks),
            kv_block_bytes=sum(rank.kv_block_bytes for rank in ranks),
        )


@dataclass(frozen=True)
class MemoryFit:
    """What an engine has in memories of one size, each with a share of it."""

    memory_bytes: int
    reserved_bytes: int
    weights_fit: bool
    """Beside the reserve, in every share's memory."""
    missing_bytes: int
    """By which every memory would have to be larger for the engine to hold a sequence of one token; 0: it fits."""
    tightest_ranks: tuple[int, ...]
    """The share that decides, the first of equal ones: the one whose KV cache is full first, or that lacks most."""
    free_for_kv_cache_bytes: int
    """In the memory of that share."""
    kv_cache_tokens: int | None
    """That the KV cache holds where no window has given anything back; None for a model without attention."""
    sequences_of_max_seq_len: int | None
    """That it holds at once; None for a model without attention."""


def fit_memory(memory_bytes: int, shares: Sequence[Share], blocks: KvBlockCounts) -> MemoryFit:
    """How `shares` fit memories of `memory_bytes`, one each. A pool has the same number of blocks in all of them."""
    fits = [_fit_share(memory_bytes, share, blocks) for share in shares]
    _, tightest = min(fits, key=lambda fit: fit[0])
    return tightest


def _fit_share(memory_bytes: int, share: Share, blocks: KvBlockCounts) -> tuple[tuple[int, int], MemoryFit]:
    """The fit as if `share` were the only one; in front of it, what is less for a tighter share."""
    usable_bytes = memory_bytes - memory_bytes // RESERVE_DIVISOR
    free_bytes = max(0, usable_bytes - share.weights_bytes)
    num_blocks = min(MAX_BLOCKS, free_bytes // share.kv_block_bytes) if share.kv_block_bytes > 0 else MAX_BLOCKS
    missing_bytes = max(0, smallest_memory([share], blocks, num_tokens=1) - memory_bytes)
    fit = MemoryFit(
        memory_bytes=memory_bytes,
        reserved_bytes=memory_bytes - usable_bytes,
        weights_fit=share.weights_bytes <= usable_bytes,
        missing_bytes=missing_bytes,
        tightest_ranks=share.ranks,
        free_for_kv_cache_bytes=free_bytes,
        kv_cache_tokens=num_blocks // len(blocks.windows) * blocks.tokens_per_block if blocks.windows else None,
        sequences_of_max_seq_len=num_blocks // blocks.of_sequence(blocks.max_seq_len) if blocks.windows else None,
    )
    return (-missing_bytes, num_blocks), fit


def smallest_memory(shares: Sequence[Share], blocks: KvBlockCounts, num_tokens: int) -> int:
    """Bytes of the smallest memories that hold `shares`, one each, with the KV cache of one sequence."""
    num_blocks = blocks.of_sequence(num_tokens)
    needed = max(share.weights_bytes + num_blocks * share.kv_block_bytes for share in shares)
    # The least m with m - m // RESERVE_DIVISOR >= needed: every RESERVE_DIVISOR-th byte goes to the reserve.
    return needed + (needed - 1) // (RESERVE_DIVISOR - 1)


@dataclass(frozen=True)
class HostFit:
    """What an engine has on this host, whose memory all its ranks share."""

    fit: MemoryFit
    weights_bytes: int
    """Of all ranks."""
    default_kv_cache_bytes: int
    """What the runtime reserves for the KV caches of all ranks where no kv_cache_bytes is given. It looks at the
    available memory alone, before anything is loaded, so it may be more than what the weights leave."""


def fit_host(available_bytes: int, ranks: Sequence[RankMemory], blocks: KvBlockCounts) -> HostFit:
    """How all of `ranks` fit a host with `available_bytes` of memory available."""
    share = Share.of(ranks)
    default_kv_cache_bytes = 0
    if share.kv_block_bytes > 0:
        affordable = available_bytes // 2 // share.kv_block_bytes
        useful = DEFAULT_MAX_BATCH_SIZE * blocks.of_sequence(blocks.max_seq_len)
        default_kv_cache_bytes = min(affordable, useful, MAX_BLOCKS) * share.kv_block_bytes
    return HostFit(fit_memory(available_bytes, [share], blocks), share.weights_bytes, default_kv_cache_bytes)
