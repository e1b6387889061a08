"""Runs graphs with ONNX Runtime from Python, on memory that the caller owns; ops are those of plugins/onnxruntime.

session.py         a graph that runs on one execution provider, and the tensors bound to it
ort_log.py         what ONNX Runtime says, kept
cuda_libraries.py  finds the ONNX Runtime that has CUDA, and the libraries that it needs

ONNX Runtime's Python module is never imported: its C library is opened by path.
"""
