"""PagedAttention as a plugin of TensorRT."""
