"""Attention over the paged KV cache, with its four projections.

    x -> q, k, v (Linear) -> Concat -> PagedAttention -> o (Linear) -> AllReduce

The op norms and rotates queries and keys itself, so q, k and v can become one Linear. With tensor parallelism each rank
has some of the heads, o gives their part of the result, and AllReduce adds these up.

x is [num_tokens, hidden_size], q [num_tokens, num_heads * head_dim], k and v [num_tokens, num_kv_heads * head_dim].
"""

import onnx_ir as ir

from precast.builder.network.collectives import emit_all_reduce
from precast.builder.network.emitter import Emitter, num_features
from precast.checkpoints.model_config import AttentionConfig
from precast.checkpoints.rope import inverse_frequencies, rope_rows
from precast.plugins.paged_attention import schema as paged_attention


def emit_attention(emitter: Emitter, attention: AttentionConfig, x: ir.Value, name: str) -> ir.Value:
    """The mixer of one layer, with a KV pool of its own."""
    rope, max_seq_len = attention.rope, emitter.plan.max_seq_len
    inv_freq = None if rope is None else emitter.rope_frequencies(rope)
    window = emitter.plan.effective_window(attention.window)
    attributes = paged_attention.PagedAttentionAttributes(
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        scale=attention.scale,
        kv_layout=emitter.plan.kv_layout,
        tokens_per_block=emitter.plan.tokens_per_block,
        rope_scaling=1.0 if rope is None else inverse_frequencies(rope, max_seq_len)[1],
        window=window or 0,
        qk_norm_epsilon=0.0 if attention.qk_norm is None else attention.qk_norm.norm.epsilon,
        rope_start=0 if rope is None else rope_rows(rope, max_seq_len)[1],
    )
    step = emitter.inputs
    qkv = _emit_qkv(emitter, attention, x, name)
    block_tables, pool = emitter.kv_cache(attributes.kv_layout, attributes.block_bytes, window)
    inputs = [qkv, step.query_starts, step.context_lengths, block_tables, pool, inv_freq]
    if attention.qk_norm is not None:
        inputs += [emitter.plain_weight(f"{name}.{part}_norm.weight", (attention.head_dim,)) for part in "qk"]
    heads = emitter.op(paged_attention, attributes, inputs, name, attention.num_heads * attention.head_dim)
    output = emitter.linear(heads, f"{name}.o", num_features(x), bias=attention.output_bias)
    return emit_all_reduce(emitter, output, num_features(x))


def _emit_qkv(emitter: Emitter, attention: AttentionConfig, x: ir.Value, name: str) -> ir.Value:
    """Query heads, then key heads, then value heads of each token."""
    q_features = attention.num_heads * attention.head_dim
    kv_features = attention.num_kv_heads * attention.head_dim
    key_bias = attention.qkv_bias if attention.key_bias is None else attention.key_bias
    qkv = [
        emitter.linear(x, f"{name}.q", q_features, bias=attention.qkv_bias),
        emitter.linear(x, f"{name}.k", kv_features, bias=key_bias),
        emitter.linear(x, f"{name}.v", kv_features, bias=attention.qkv_bias),
    ]
    return emitter.builtin("Concat", qkv, f"{name}.qkv", q_features + 2 * kv_features, axis=-1)
