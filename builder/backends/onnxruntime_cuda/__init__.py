"""ONNX Runtime on NVIDIA GPUs: the other way onto a card, for those that TensorRT-RTX refuses.

The network has ONNX's operators for matrices and indices, which ONNX Runtime's CUDA provider runs, and our ops for the
rest, with the same kernels as the plugins of TensorRT. `planning.py` decides and refuses; `lowering/` rewrites the
network; `add_kernels.py` compiles the ops' kernels and puts them into the graph.
"""
