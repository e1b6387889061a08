"""What to launch for a step, and where the workspace's parts lie: pure functions of attributes and shapes.

T = tokens, S = sequences, B = width of the block table.
"""

from dataclasses import dataclass

from precast.plugins.device.launch import Launch, Workspace, lay_out
from precast.plugins.paged_attention.device import kernels
from precast.plugins.paged_attention.schema import TOKENS_PER_SPLIT, PagedAttentionAttributes

_WRITE_PROGRAMS = 2048
"""From about so many programs on the write kernel gives a program more heads rather than more programs."""
_DECODE_PROGRAMS = 16384
"""Up to so many programs share a step's spans. More would only cost: a program whose context is short exits at once,
but starting it takes its time, and B is the width of the longest context."""


@dataclass(frozen=True)
class StepShape:
    """T, S and B of a step. Raises ValueError where there can be no such step."""

    num_tokens: int
    num_sequences: int
    table_width: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_sequences <= self.num_tokens or self.table_width < 1:
            raise ValueError(
                f"PagedAttention: a step of {self.num_tokens} tokens, {self.num_sequences} sequences and a block table "
                f"{self.table_width} wide; every sequence has a token and a block"
            )


def workspace(attributes: PagedAttentionAttributes, shape: StepShape) -> Workspace:
    """The regions `queries`, `partial_max`, `partial_sum`, `partial_weighted`.

    Its size grows with each of T, S and B: that of the largest shapes is enough for every step.
    """
    heads = attributes.num_heads
    query_bytes = shape.num_tokens * heads * attributes.head_dim * 2
    partials = shape.num_sequences * partials_per_row(attributes, shape.table_width) * heads
    return lay_out(
        {
            "queries": query_bytes,
            "partial_max": partials * 4,
            "partial_sum": partials * 4,
            "partial_weighted": partials * attributes.head_dim * 4,
        }
    )


def partials_per_row(attributes: PagedAttentionAttributes, table_width: int) -> int:
    """P of decode_kernel.py: spans that a row can have, whose blocks fit the table and which its window touches."""
    spans = -(-table_width * attributes.tokens_per_block // TOKENS_PER_SPLIT)
    if attributes.window:
        spans = min(spans, -(-attributes.window // TOKENS_PER_SPLIT) + 1)
    return min(spans, kernels.MAX_SPANS)


def launches(
    attributes: PagedAttentionAttributes, shape: StepShape, has_rope: bool, has_norm: bool, has_sinks: bool
) -> tuple[Launch, ...]:
    """The launches of a step in order, on one stream. Buffers are inputs, the output, or regions of the workspace.

    A step in which every sequence has one row (T == S) needs no context kernel. Any other launches both: which
    sequences have one row is data, and each kernel skips those of the other.
    """
    heads = attributes.num_kv_heads
    heads_per_program = min(heads, max(1, shape.num_tokens * heads // _WRITE_PROGRAMS))
    optional = ("inv_freq",) * has_rope + ("q_norm", "k_norm") * has_norm
    sinks = ("sinks",) * has_sinks
    indices = ("query_starts", "context_lengths", "block_tables")
    partial_results = ("partial_max", "partial_sum", "partial_weighted")
    num_sequences, table_width = ("num_sequences", shape.num_sequences), ("table_width", shape.table_width)
    partials = partials_per_row(attributes, shape.table_width)

    write = Launch(
        kernels.WRITE,
        (shape.num_tokens, -(-heads // heads_per_program), 1),
        ("qkv", *indices, *optional, "kv", "queries"),
        (num_sequences, table_width, ("heads_per_program", heads_per_program)),
    )
    context = Launch(
        kernels.CONTEXT,
        (shape.num_tokens // kernels.rows_per_tile(attributes) + shape.num_sequences, heads, 1),
        ("queries", *indices, "kv", *sinks, "output"),
        (num_sequences, table_width),
    )
    programs_per_head = min(partials, max(1, _DECODE_PROGRAMS // (shape.num_sequences * heads)))
    decode = Launch(
        kernels.DECODE,
        (shape.num_sequences, heads, programs_per_head),
        ("queries", *indices, "kv", *partial_results),
        (table_width, ("partials_per_row", partials)),
    )
    merge = Launch(
        kernels.MERGE,
        (shape.num_sequences, attributes.num_heads, 1),
        ("query_starts", "context_lengths", *partial_results, *sinks, "output"),
        (("partials_per_row", partials),),
    )
    if shape.num_tokens == shape.num_sequences:
        return write, decode, merge
    return write, context, decode, merge
