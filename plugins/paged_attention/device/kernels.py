"""Which kernels an op needs, specialised by its attributes: constants, parameter types, tile sizes.

Pure: imports no Triton, compiles nothing (plugins/device/compile_triton.py does).
"""

import math

from precast.plugins.device.kernel_spec import Constant, KernelSpec, Parameter
from precast.plugins.paged_attention.schema import DEVICE_KV_LAYOUTS, TOKENS_PER_SPLIT, PagedAttentionAttributes

WRITE = "paged_attention_write"
CONTEXT = "paged_attention_context"
DECODE = "paged_attention_decode"
MERGE = "paged_attention_merge"

MAX_SPANS = 64
"""Spans of a row, and so its partial results: 64 programs for each KV head fill a GPU with one sequence."""
MAX_HEAD_DIM = 256
MAX_QUERIES_PER_KV = 128
CONTEXT_BLOCK = 128
"""Rows times query heads of a program of the context kernel."""
CONTEXT_KEYS = 64
"""Tokens of a tile of keys of the context kernel. Both halve for a head_dim above 128."""
_ELEMENTS = {"kvrow.bf16/1": "bf16", "kvrow.f16/1": "fp16"}
_MODULE = "precast.plugins.paged_attention.device"
_INT32, _FP32 = "*i32", "*fp32"


def padded(size: int) -> int:
    """The next power of two: the size of a dimension of a Triton tile."""
    return 1 << (size - 1).bit_length()


def rows_per_tile(attributes: PagedAttentionAttributes) -> int:
    """R of context_kernel.py: rows of the step that one program does."""
    return _context_block(attributes) // attributes.queries_per_kv


def kernel_specs(
    attributes: PagedAttentionAttributes, rotary_dim: int, num_frequencies: int, has_norm: bool, has_sinks: bool
) -> tuple[KernelSpec, ...]:
    """The four kernels: write, context, decode, merge. rotary_dim 0: no inv_freq. Else it is [num_frequencies, R / 2].

    Raises ValueError for attributes that the device kernels do not serve.
    """
    check_attributes(attributes)
    return (
        _write(attributes, rotary_dim, num_frequencies, has_norm),
        _context(attributes, has_sinks),
        _decode(attributes),
        _merge(attributes, has_sinks),
    )


def check_attributes(attributes: PagedAttentionAttributes) -> None:
    """Raises ValueError where the CPU might, but a device cannot, run the op."""
    if attributes.kv_layout not in DEVICE_KV_LAYOUTS:
        raise ValueError(
            f"PagedAttention: device kernels do not read kv_layout {attributes.kv_layout!r}; "
            f"they know {', '.join(DEVICE_KV_LAYOUTS)}"
        )
    if attributes.scale <= 0:
        raise ValueError(f"PagedAttention: scale is {attributes.scale}; device kernels need one above 0")
    # Or tiles do not fit into the shared memory of every GPU.
    most = MAX_QUERIES_PER_KV if attributes.head_dim <= MAX_HEAD_DIM // 2 else MAX_QUERIES_PER_KV // 2
    if attributes.queries_per_kv > most:
        raise ValueError(
            f"PagedAttention: {attributes.queries_per_kv} query heads of head_dim {attributes.head_dim} share a KV "
            f"head; device kernels do at most {most}"
        )
    if attributes.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"PagedAttention: head_dim is {attributes.head_dim}; device kernels do at most {MAX_HEAD_DIM}")


def _write(attributes: PagedAttentionAttributes, rotary_dim: int, num_frequencies: int, has_norm: bool) -> KernelSpec:
    element = "*" + _ELEMENTS[attributes.kv_layout]
    types: dict[str, str | None] = {
        "qkv": element,
        "query_starts": _INT32,
        "context_lengths": _INT32,
        "block_tables": _INT32,
        "inv_freq": _FP32 if rotary_dim else None,
        "q_norm": _FP32 if has_norm else None,
        "k_norm": _FP32 if has_norm else None,
        "kv": element,
        "queries": element,
        "num_sequences": "i32",
        "table_width": "i32",
        "heads_per_program": "i32",
    }
    absent: list[tuple[str, Constant]] = [(name, None) for name, type_ in types.items() if type_ is None]
    constants: list[tuple[str, Constant]] = [
        ("HQ", attributes.num_heads),
        ("HKV", attributes.num_kv_heads),
        ("D", attributes.head_dim),
        ("N", attributes.tokens_per_block),
        ("HALF", rotary_dim // 2),
        ("F", num_frequencies),
        ("ROPE_START", attributes.rope_start),
        ("ROPE_SCALING", attributes.rope_scaling),
        ("HAS_NORM", has_norm),
        ("EPSILON", attributes.qk_norm_epsilon),
    ]
    # A warp holds a tile of up to 1024 elements, 32 a thread.
    elements = padded(attributes.queries_per_kv) * padded(attributes.head_dim)
    return KernelSpec(
        f"{_MODULE}.write_kernel",
        WRITE,
        tuple(Parameter(name, type_) for name, type_ in types.items() if type_ is not None),
        (*absent, *constants),
        num_warps=min(8, max(1, elements // 1024)),
        fuse_multiply_add=False,
    )


def _context_block(attributes: PagedAttentionAttributes) -> int:
    """BLOCK_M: rows times query heads of a program."""
    block = CONTEXT_BLOCK if attributes.head_dim <= 128 else CONTEXT_BLOCK // 2
    return max(block, padded(attributes.queries_per_kv))


def _context(attributes: PagedAttentionAttributes, has_sinks: bool) -> KernelSpec:
    element = "*" + _ELEMENTS[attributes.kv_layout]
    return KernelSpec(
        f"{_MODULE}.context_kernel",
        CONTEXT,
        (
            Parameter("queries", element),
            Parameter("query_starts", _INT32),
            Parameter("context_lengths", _INT32),
            Parameter("block_tables", _INT32),
            Parameter("kv", element),
            *_sinks_parameter(has_sinks),
            Parameter("output", element),
            Parameter("num_sequences", "i32"),
            Parameter("table_width", "i32"),
        ),
        (
            *_sinks_constant(has_sinks),
            *_shape(attributes),
            ("BLOCK_M", _context_block(attributes)),
            ("J", CONTEXT_KEYS if attributes.head_dim <= 128 else CONTEXT_KEYS // 2),
        ),
        num_warps=8 if padded(attributes.head_dim) > 64 else 4,
        # Block ids are a load of their own before K and V: five stages keep two tiles of them in flight, three stages
        # one. Five of a head_dim above 128 do not fit 99 KiB.
        num_stages=5 if attributes.head_dim <= 128 else 3,
    )


def _decode(attributes: PagedAttentionAttributes) -> KernelSpec:
    element = "*" + _ELEMENTS[attributes.kv_layout]
    return KernelSpec(
        f"{_MODULE}.decode_kernel",
        DECODE,
        (
            Parameter("queries", element),
            Parameter("query_starts", _INT32),
            Parameter("context_lengths", _INT32),
            Parameter("block_tables", _INT32),
            Parameter("kv", element),
            Parameter("partial_max", _FP32),
            Parameter("partial_sum", _FP32),
            Parameter("partial_weighted", _FP32),
            Parameter("table_width", "i32"),
            Parameter("partials_per_row", "i32"),
        ),
        (
            *_shape(attributes),
            ("SPLIT", TOKENS_PER_SPLIT),
            ("MAX_SPANS", MAX_SPANS),
            ("BLOCK_G", max(16, padded(attributes.queries_per_kv))),
            # 8 KiB of K and 8 of V, twice in flight (as in _context): two blocks fit the smallest shared memory.
            ("J", max(16, min(64, 4096 // padded(attributes.head_dim)))),
        ),
        num_warps=4,
        num_stages=5,
    )


def _merge(attributes: PagedAttentionAttributes, has_sinks: bool) -> KernelSpec:
    return KernelSpec(
        f"{_MODULE}.merge_kernel",
        MERGE,
        (
            Parameter("query_starts", _INT32),
            Parameter("context_lengths", _INT32),
            Parameter("partial_max", _FP32),
            Parameter("partial_sum", _FP32),
            Parameter("partial_weighted", _FP32),
            *_sinks_parameter(has_sinks),
            Parameter("output", "*" + _ELEMENTS[attributes.kv_layout]),
            Parameter("partials_per_row", "i32"),
        ),
        (
            *_sinks_constant(has_sinks),
            ("HQ", attributes.num_heads),
            ("D", attributes.head_dim),
            ("WINDOW", attributes.window),
            ("SPLIT", TOKENS_PER_SPLIT),
            ("MAX_SPANS", MAX_SPANS),
        ),
        num_warps=1,
    )


def _shape(attributes: PagedAttentionAttributes) -> tuple[tuple[str, Constant], ...]:
    """The constants that both attention kernels take."""
    softcap = attributes.logit_softcap
    return (
        ("HQ", attributes.num_heads),
        ("HKV", attributes.num_kv_heads),
        ("D", attributes.head_dim),
        ("N", attributes.tokens_per_block),
        ("WINDOW", attributes.window),
        ("SCALE_LOG2", (softcap or attributes.scale) * math.log2(math.e)),
        ("TANH_SCALE", attributes.scale / softcap if softcap else 0.0),
    )


def _sinks_parameter(has_sinks: bool) -> tuple[Parameter, ...]:
    return (Parameter("sinks", _FP32),) * has_sinks


def _sinks_constant(has_sinks: bool) -> tuple[tuple[str, Constant], ...]:
    return () if has_sinks else (("sinks", None),)
