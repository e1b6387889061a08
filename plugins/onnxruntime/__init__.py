"""Our ops as custom ops of ONNX Runtime that are written in Python, on any of its devices.

ort_abi.py    the part of ONNX Runtime's C ABI that is used, and its library opened
custom_op.py  ops: what ONNX Runtime must know of them, a domain of them, how errors come back
op_node.py    one node: its attributes, and its runs
op_kind.py    what an op is made of that runs kernels on a device
kinds.py      all of them
add_ops.py    makes them known to ONNX Runtime

ONNX Runtime's Python module is never imported: its C library is opened by path.
"""
