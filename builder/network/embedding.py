"""Token ids -> hidden states."""

import onnx_ir as ir

from precast.builder.network.emitter import Emitter
from precast.checkpoints.model_config import ModelConfig
from precast.plugins.embedding import schema as embedding

EMBEDDING_WEIGHT = "embedding.weight"


def emit_embedding(emitter: Emitter, model: ModelConfig) -> ir.Value:
    """The rows of the table, float32 [num_tokens, hidden_size]. A tied head reads the same packed table."""
    rows, features = model.vocab_size, model.hidden_size
    table = emitter.packed_weight(EMBEDDING_WEIGHT, (rows, features))
    attributes = embedding.EmbeddingAttributes(rows, features, emitter.plan.weight_layout)
    return emitter.op(embedding, attributes, [emitter.inputs.token_ids, table], "embedding", features)
