"""Send as a plugin of TensorRT."""
