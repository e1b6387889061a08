"""TensorRT on NVIDIA GPUs: plans, built by the library that is installed, TensorRT-RTX or TensorRT.

`planning.py` decides and refuses, before anything is read; `lowering/` rewrites our ops into those of TensorRT's ONNX
parser; `plan_process.py` builds the plan in a process of its own.
"""
