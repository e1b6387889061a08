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

LOGIT_ROWS = "logit_rows"
LOGITS = "logits"


@dataclass(frozen=True)
class StepInputs:
    """Values of int32, in the order of the graph's inputs.

    Attributes:
        token_ids: [num_tokens]
        query_starts: [num_sequences + 1]; sequence s owns rows query_starts[s] .. query_starts[s+1] - 1.
        context_lengths: [num_sequences], tokens of a sequence in the KV cache after this step.
        block_tables: [num_sequences, max_blocks], -1 behind the last block of a sequence.
        logit_rows: [num_logit_rows], the rows of the step whose logits are wanted; may be none.
    """

    token_ids: ir.Value
    query_starts: ir.Value
    context_lengths: ir.Value
    block_tables: ir.Value
    logit_rows: ir.Value


def step_inputs() -> StepInputs:
    """New values, of no graph yet."""
    return StepInputs(
        token_ids=_int32("token_ids", NUM_TOKENS),
        query_starts=_int32("query_starts", f"{NUM_SEQUENCES}_plus_1"),
        context_lengths=_int32("context_lengths", NUM_SEQUENCES),
        block_tables=_int32("block_tables", NUM_SEQUENCES, "max_blocks"),
        logit_rows=_int32(LOGIT_ROWS, NUM_LOGIT_ROWS),
    )


def kv_pool(name: str, block_bytes: int) -> ir.Value:
    """A block pool, uint8 [num_blocks, block_bytes], which its attention layer writes in place."""
    return ir.Value(name=name, shape=ir.Shape((NUM_BLOCKS, block_bytes)), type=ir.TensorType(ir.DataType.UINT8))


def _int32(name: str, *shape: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT32))
