"""PagedAttention: rotary embedding, KV cache and causal attention over packed sequences, in one op."""
