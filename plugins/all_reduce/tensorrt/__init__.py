"""AllReduce as a plugin of TensorRT."""
