"""The graph's inputs besides the KV pools: the description of one step.

A step packs the new tokens of several sequences one after the other. Token i of sequence s has the absolute position
context_lengths[s] - (query_starts[s+1] - query_starts[s]) + i.
"""

from dataclasses import dataclass

import onnx_ir as ir

NUM_TOKENS = "num_tokens"
NUM_SEQUENCES = "num_sequences"
NUM_LOGIT_ROWS = "num_logit_rows"
NUM_BLOCKS = "num_blocks"
MAX_BLOCKS = "max_blocks"

LOGIT_ROWS = "logit_rows"
LOGITS = "logits"
"""The output of the last stage's graphs: float32 [num_logit_rows, vocab_size] on tensor rank 0, no rows on others."""
SENT_ROWS = "sent_rows"
"""The output of other stages' graphs: int32 [1], the number of rows that were handed on."""


@dataclass(frozen=True)
class StepInputs:
    """Values of int32, in the order of the graph's inputs.

    Attributes:
        token_ids: [num_tokens]
        query_starts: [num_sequences + 1]; sequence s owns rows query_starts[s] .. query_starts[s+1] - 1.
        context_lengths: [num_sequences], tokens of a sequence in the KV cache after this step.
        block_tables: For each KV group [num_sequences, max_blocks.<group>], -1 where a sequence has no block: behind
            its last one, or below the window.
        logit_rows: [num_logit_rows], the rows of the step whose logits are wanted; may be none.
    """

    token_ids: ir.Value
    query_starts: ir.Value
    context_lengths: ir.Value
    block_tables: tuple[ir.Value, ...]
    logit_rows: ir.Value

    def values(self) -> tuple[ir.Value, ...]:
        """All of them, in the order of the graph's inputs."""
        return (self.token_ids, self.query_starts, self.context_lengths, *self.block_tables, self.logit_rows)


def block_tables_name(group: int) -> str:
    """The graph input that holds the block tables of a KV group."""
    return f"block_tables.{group}"


def step_inputs(num_kv_groups: int) -> StepInputs:
    """New values, of no graph yet."""
    tables = [
        _int32(block_tables_name(group), NUM_SEQUENCES, f"{MAX_BLOCKS}.{group}") for group in range(num_kv_groups)
    ]
    return StepInputs(
        token_ids=_int32("token_ids", NUM_TOKENS),
        query_starts=_int32("query_starts", f"{NUM_SEQUENCES}_plus_1"),
        context_lengths=_int32("context_lengths", NUM_SEQUENCES),
        block_tables=tuple(tables),
        logit_rows=_int32(LOGIT_ROWS, NUM_LOGIT_ROWS),
    )


def kv_pool(name: str, block_bytes: int) -> ir.Value:
    """A block pool, uint8 [num_blocks, block_bytes], which its attention layer writes in place."""
    return ir.Value(name=name, shape=ir.Shape((NUM_BLOCKS, block_bytes)), type=ir.TensorType(ir.DataType.UINT8))


def _int32(name: str, *shape: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT32))
