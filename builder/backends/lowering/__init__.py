"""From the network of our ops, as CPUs run it, to one for GPUs: one pass a file.

`backends/tensorrt/lowering/pipeline.py` and `backends/onnxruntime_cuda/lowering/pipeline.py` are the lists.
"""
