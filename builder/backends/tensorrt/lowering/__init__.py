"""From the network of our ops to what TensorRT's ONNX parser reads: one pass a file, `pipeline.py` is the list."""
