"""Token ids -> hidden states."""

import onnx_ir as ir

from precast.builder.network.collectives import emit_all_reduce
from precast.builder.network.emitter import Emitter
from precast.checkpoints.ranks.rank_model import RankModel
from precast.plugins.embedding import schema as embedding

EMBEDDING_WEIGHT = "embedding.weight"


def emit_embedding(emitter: Emitter, rank: RankModel) -> ir.Value:
    """The rows of the table, float32 [num_tokens, hidden_size].

    Each tensor rank has its rows of the vocabulary and gives zeros for all others, and the ranks' outputs are summed.
    """
    vocabulary, features = rank.vocabulary, rank.model.hidden_size
    attributes = embedding.EmbeddingAttributes(
        len(vocabulary),
        features,
        emitter.plan.weight_layout,
        row_start=vocabulary.start,
        is_slice=int(rank.tensor_parallel_size > 1),
    )
    inputs = [emitter.inputs.token_ids, vocabulary_table(emitter, rank)]
    return emit_all_reduce(emitter, emitter.op(embedding, attributes, inputs, "embedding", features), features)


def vocabulary_table(emitter: Emitter, rank: RankModel) -> ir.Value:
    """The packed table of the embedding, which a tied head reads too; on one rank there is one of it."""
    existing = emitter.network.graph.initializers.get(EMBEDDING_WEIGHT)
    if existing is not None:
        return existing
    return emitter.packed_weight(EMBEDDING_WEIGHT, (len(rank.vocabulary), rank.model.hidden_size))
