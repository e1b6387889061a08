"""GreedyTokens' kernels: what to compile, what to launch, where the workspace's parts lie, and how to run it.

Imports no Triton (partial_kernel.py and merge_kernel.py do).
"""

from precast.plugins.device.kernel_spec import KernelSpec, Parameter
from precast.plugins.device.launch import Launch, Workspace, lay_out
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.run_launches import run_launches
from precast.plugins.greedy_tokens.device.op_fields import GreedyTokensFields
from precast.plugins.greedy_tokens.schema import NAME

PARTIAL = "greedy_tokens_partial"
MERGE = "greedy_tokens_merge"
CHUNK = 4096
"""J: 32 logits for each of 128 threads, eight vectors of 16 bytes in flight."""
_NUM_WARPS = 4
_MODULE = "precast.plugins.greedy_tokens.device"
_PARTIAL_RESULTS = {"partial_max": "*fp32", "partial_token": "*i32", "partial_sum": "*fp32"}


def kernel_specs(op_fields: GreedyTokensFields) -> tuple[KernelSpec, ...]:
    """The two kernels: partial, merge."""
    partial_results = tuple(Parameter(name, type_) for name, type_ in _PARTIAL_RESULTS.items())
    vocabulary = ("V", op_fields.vocab_size)
    return (
        KernelSpec(
            f"{_MODULE}.partial_kernel",
            PARTIAL,
            (Parameter("logits", "*fp32"), *partial_results),
            (vocabulary, ("J", CHUNK)),
            num_warps=_NUM_WARPS,
        ),
        KernelSpec(
            f"{_MODULE}.merge_kernel",
            MERGE,
            (*partial_results, Parameter("tokens", "*i32"), Parameter("log_sums", "*fp32")),
            (vocabulary, ("C", _chunks(op_fields))),
            num_warps=1,
        ),
    )


def workspace(op_fields: GreedyTokensFields, num_rows: int) -> Workspace:
    """The regions `partial_max`, `partial_token` and `partial_sum`. Its size grows with R."""
    size_bytes = num_rows * _chunks(op_fields) * 4
    return lay_out(dict.fromkeys(_PARTIAL_RESULTS, size_bytes))


def launches(op_fields: GreedyTokensFields, num_rows: int) -> tuple[Launch, ...]:
    """The launches for R rows in order, on one stream; none for no rows."""
    if not num_rows:
        return ()
    partial_results = tuple(_PARTIAL_RESULTS)
    return (
        Launch(PARTIAL, (num_rows, _chunks(op_fields), 1), ("logits", *partial_results), ()),
        Launch(MERGE, (num_rows, 1, 1), (*partial_results, "tokens", "log_sums"), ()),
    )


def run_greedy_tokens(op_fields: GreedyTokensFields, launcher: Launcher, call: OpCall) -> None:
    """Enqueue the op for logits [R, V]. The workspace holds what `workspace` says of the greatest R.

    Raises:
        DeviceError: the driver refused a launch.
        ValueError: logits have other columns than the kernels were compiled for.
    """
    num_rows, vocab_size = call.shapes[0]
    if vocab_size != op_fields.vocab_size:
        raise ValueError(f"{NAME}: logits have {vocab_size} columns, the kernels are for {op_fields.vocab_size}")
    buffers = {"logits": call.inputs[0], "tokens": call.outputs[0], "log_sums": call.outputs[1]}
    run_launches(launcher, launches(op_fields, num_rows), buffers, workspace(op_fields, num_rows), call)


def _chunks(op_fields: GreedyTokensFields) -> int:
    """C."""
    return -(-op_fields.vocab_size // CHUNK)
