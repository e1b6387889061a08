"""AllGather as a plugin of TensorRT."""
