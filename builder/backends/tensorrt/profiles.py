"""The optimisation profiles of a plan: the shapes that TensorRT chooses kernels for.

Decode has one token of each sequence, context any number: a step that computes prompts, with or without sequences that
are decoded beside them.
"""

from precast.builder.backends.tensorrt.plan_job import InputRange
from precast.builder.network.inputs import LOGIT_ROWS
from precast.builder.network.network import Network
from precast.builder.plan import BuildPlan, DevicePlan

MAX_POOL_ELEMENTS = 1 << 40
"""Of the greatest pool that a plan is ready for: 2 TiB of 16-bit numbers in one layer."""
_MAX_BLOCKS = (1 << 31) - 1
_COMMON_BATCH_SIZE = 8
_COMMON_CONTEXT_TOKENS = 1024
_COMMON_BLOCKS = 1024


def make_profiles(network: Network, plan: BuildPlan) -> tuple[tuple[InputRange, ...], ...]:
    """Decode's profile, then that of context."""
    tensorrt = plan.device
    assert tensorrt is not None  # this backend's plan has it
    batch = min(_COMMON_BATCH_SIZE, tensorrt.max_batch_size)
    decode = _Sizes(tensorrt.max_batch_size, batch, batch)
    context = _Sizes(tensorrt.max_num_tokens, min(_COMMON_CONTEXT_TOKENS, tensorrt.max_num_tokens), batch)
    return tuple(_profile(network, plan, tensorrt, sizes) for sizes in (decode, context))


class _Sizes:
    def __init__(self, max_tokens: int, common_tokens: int, common_sequences: int) -> None:
        self.max_tokens, self.common_tokens, self.common_sequences = max_tokens, common_tokens, common_sequences


def _profile(network: Network, plan: BuildPlan, tensorrt: DevicePlan, sizes: _Sizes) -> tuple[InputRange, ...]:
    most_sequences = tensorrt.max_batch_size
    common = sizes.common_sequences
    width = -(-plan.max_seq_len // plan.tokens_per_block)
    ranges = [
        InputRange("token_ids", (1,), (sizes.common_tokens,), (sizes.max_tokens,)),
        InputRange("query_starts", (2,), (common + 1,), (most_sequences + 1,)),
        InputRange("context_lengths", (1,), (common,), (most_sequences,)),
        InputRange(LOGIT_ROWS, (1,), (common,), (most_sequences,)),
    ]
    if any(value.name == "token_sources" for value in network.graph.inputs):
        ranges.append(InputRange("token_sources", (1,), (sizes.common_tokens,), (sizes.max_tokens,)))
    ranges += [
        InputRange(group.block_tables, (1, 1), (common, width), (most_sequences, width)) for group in network.kv_groups
    ]
    for cache in network.kv_caches:
        elements = cache.block_bytes // 2
        most = min(_MAX_BLOCKS, MAX_POOL_ELEMENTS // elements)
        ranges.append(InputRange(cache.name, (1, elements), (min(_COMMON_BLOCKS, most), elements), (most, elements)))
    return tuple(ranges)
