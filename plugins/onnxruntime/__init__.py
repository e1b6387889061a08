"""Custom ops of ONNX Runtime that are written in Python, on any of its devices.

ort_abi.py    the part of ONNX Runtime's C ABI that is used, and its library opened
custom_op.py  ops: what ONNX Runtime must know of them, a domain of them, how errors come back
op_node.py    one node: its attributes, and its runs

ONNX Runtime's Python module is never imported: its C library is opened by path.
"""
