"""Hidden states -> logits of the next token, for the rows that want them."""

import onnx_ir as ir

from precast.builder.network.embedding import EMBEDDING_WEIGHT
from precast.builder.network.emitter import Emitter
from precast.builder.network.implemented import implemented
from precast.builder.network.norm import emit_norm
from precast.checkpoints.model_config import HeadConfig, ModelConfig, NormConfig


def emit_head(emitter: Emitter, model: ModelConfig, x: ir.Value) -> ir.Value:
    """x [num_tokens, hidden_size] -> logits [num_logit_rows, vocab_size]. Rows are selected before the final norm."""
    head = implemented(model.head, HeadConfig, "head")
    norm = implemented(model.final_norm, NormConfig, "final_norm")
    rows = emitter.select_rows(x)
    normed = emit_norm(emitter, norm, rows, "final_norm")
    table = emitter.network.graph.initializers[EMBEDDING_WEIGHT] if head.tied else None
    return emitter.linear(normed, "lm_head", model.vocab_size, bias=head.bias, weight=table)
