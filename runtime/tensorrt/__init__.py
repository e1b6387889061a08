"""Runs TensorRT plans on a device; runtime/device has what does not depend on TensorRT.

network.py       a plan: its execution contexts and bindings
toolkit.py       TensorRT; refuses what an engine needs and is not here
runtime_cache.py what TensorRT has compiled on a GPU, kept in the engine
"""
