"""Runs graphs with ONNX Runtime on a device; runtime/device has what does not depend on ONNX Runtime.

session.py         a graph that runs on one execution provider, and the tensors bound to it
network.py         a graph as a session of runtime/device has it, and memory for its ops
toolkit.py         ONNX Runtime with CUDA; refuses what an engine needs and is not here
cuda_libraries.py  finds the ONNX Runtime that has CUDA, and the libraries that it needs
ort_log.py         what ONNX Runtime says, kept

ONNX Runtime's Python module is never imported: its C library is opened by path.
"""
