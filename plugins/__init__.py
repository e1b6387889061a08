"""The custom ops, a folder each: schema, NumPy reference, weight layout, kernels.

This module names every op and layout that this version implements; an engine lists those it needs, and one that needs
more is refused by name before anything is read. The native library has the CPU's lists too (plugins/cpu/registry.cpp).
"""

SUPPORTED_OPS: tuple[str, ...] = (
    "ai.precast.AllGather/1",
    "ai.precast.AllReduce/1",
    "ai.precast.Embedding/1",
    "ai.precast.GatedActivation/1",
    "ai.precast.Linear/1",
    "ai.precast.PagedAttention/1",
    "ai.precast.Receive/1",
    "ai.precast.RmsNorm/1",
    "ai.precast.Send/1",
)
"""Versioned op ids of the CPU, sorted. A released version is never removed."""

SUPPORTED_LAYOUTS: tuple[str, ...] = (
    "kv16.bf16/1",
    "kv16.f32/1",
    "x16k1.f32/1",
    "x16k2.bf16/1",
)
"""Versioned ids of weight layouts and KV layouts of the CPU, sorted. A released version is never removed."""

TENSORRT_OPS: tuple[str, ...] = (
    "ai.precast.AllGather/1",
    "ai.precast.AllReduce/1",
    "ai.precast.PagedAttention/1",
    "ai.precast.Receive/1",
    "ai.precast.Send/1",
)
"""Versioned ids of the ops that are plugins of TensorRT, sorted; all others are lowered to TensorRT's own layers."""

CUDA_OPS: tuple[str, ...] = (
    "ai.precast.AllGather/1",
    "ai.precast.AllReduce/1",
    "ai.precast.GatedActivation/1",
    "ai.precast.GreedyTokens/1",
    "ai.precast.PagedAttention/1",
    "ai.precast.Receive/1",
    "ai.precast.RmsNorm/1",
    "ai.precast.Send/1",
    "ai.precast.TopCandidates/1",
)
"""Versioned ids of the ops that ONNX Runtime runs on GPUs, sorted; all others are lowered to ONNX's."""

DEVICE_LAYOUTS: tuple[str, ...] = ("kvrow.bf16/1", "kvrow.f16/1")
"""Versioned ids of the KV layouts of engines for GPUs, sorted."""
