"""Hidden states -> logits of the next token, for the rows that want them."""

import onnx_ir as ir

from precast.builder.network.collectives import emit_all_gather
from precast.builder.network.embedding import vocabulary_table
from precast.builder.network.emitter import Emitter
from precast.builder.network.implemented import implemented
from precast.builder.network.inputs import LOGITS
from precast.builder.network.norm import emit_norm
from precast.checkpoints.model_config import HeadConfig, NormConfig
from precast.checkpoints.ranks.rank_model import RankModel


def emit_head(emitter: Emitter, rank: RankModel, x: ir.Value) -> ir.Value:
    """x [num_tokens, hidden_size] -> logits [num_logit_rows, vocab_size]. Rows are selected before the final norm.

    Each tensor rank computes its columns; rank 0 of them has all.
    """
    head = implemented(rank.model.head, HeadConfig, "head")
    norm = implemented(rank.model.final_norm, NormConfig, "final_norm")
    rows = emitter.select_rows(x)
    normed = emit_norm(emitter, norm, rows, "final_norm")
    table = vocabulary_table(emitter, rank) if head.tied else None
    columns = emitter.linear(normed, "lm_head", len(rank.vocabulary), bias=head.bias, weight=table)
    logits = emit_all_gather(emitter, columns, rank.model.vocab_size)
    logits.name = LOGITS
    return logits
