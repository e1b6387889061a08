"""TopCandidates' kernels: what to compile, what to launch, where the workspace's parts lie, and how to run it.

Imports no Triton (select_kernel.py and sort_kernel.py do).
"""

from precast.plugins.device.kernel_spec import KernelSpec, Parameter
from precast.plugins.device.launch import Launch, Workspace, lay_out
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.run_launches import run_launches
from precast.plugins.top_candidates.device.op_fields import TopCandidatesFields
from precast.plugins.top_candidates.schema import NAME

SELECT = "top_candidates_select"
SORT = "top_candidates_sort"
CHUNK = 8192
"""J: 16 logits for each of 512 threads, four vectors of 16 bytes in flight. A power of two, at least 4 * G."""
TILE = 2048
"""T: 4 numbers of 64 bits for each of 512 threads; the slots of 16 chunks of 64 candidates. A power of two."""
_NUM_WARPS = 16
_MODULE = "precast.plugins.top_candidates.device"


def kernel_specs(op_fields: TopCandidatesFields) -> tuple[KernelSpec, ...]:
    """The two kernels: select, sort."""
    logits = Parameter("logits", "*fp32")
    slot_id = Parameter("slot_id", "*i32")
    sizes = (("V", op_fields.vocab_size), ("K", op_fields.num_candidates), ("G", _list_length(op_fields)))
    slots_of_a_row = _chunks(op_fields) * _slots(op_fields)
    return (
        KernelSpec(
            f"{_MODULE}.select_kernel",
            SELECT,
            (logits, slot_id),
            (*sizes, ("J", CHUNK), ("S", _slots(op_fields)), ("P", min(32 * _NUM_WARPS, CHUNK // 4))),
            num_warps=_NUM_WARPS,
        ),
        KernelSpec(
            f"{_MODULE}.sort_kernel",
            SORT,
            (logits, slot_id, Parameter("candidate_ids", "*i32"), Parameter("candidate_logits", "*fp32")),
            (*sizes, ("N", slots_of_a_row), ("T", min(TILE, _power_of_two(slots_of_a_row)))),
            num_warps=_NUM_WARPS,
        ),
    )


def workspace(op_fields: TopCandidatesFields, num_rows: int) -> Workspace:
    """The region `slot_id`. Its size grows with R."""
    size_bytes = num_rows * _chunks(op_fields) * _slots(op_fields) * 4
    return lay_out({"slot_id": size_bytes})


def launches(op_fields: TopCandidatesFields, num_rows: int) -> tuple[Launch, ...]:
    """The launches for R rows in order, on one stream; none for no rows."""
    if not num_rows:
        return ()
    return (
        Launch(SELECT, (num_rows, _chunks(op_fields), 1), ("logits", "slot_id"), ()),
        Launch(SORT, (num_rows, 1, 1), ("logits", "slot_id", "candidate_ids", "candidate_logits"), ()),
    )


def run_top_candidates(op_fields: TopCandidatesFields, launcher: Launcher, call: OpCall) -> None:
    """Enqueue the op for logits [R, V]. The workspace holds what `workspace` says of the greatest R.

    Raises:
        DeviceError: the driver refused a launch.
        ValueError: logits have other columns than the kernels were compiled for.
    """
    num_rows, vocab_size = call.shapes[0]
    if vocab_size != op_fields.vocab_size:
        raise ValueError(f"{NAME}: logits have {vocab_size} columns, the kernels are for {op_fields.vocab_size}")
    buffers = {"logits": call.inputs[0], "candidate_ids": call.outputs[0], "candidate_logits": call.outputs[1]}
    run_launches(launcher, launches(op_fields, num_rows), buffers, workspace(op_fields, num_rows), call)


def _chunks(op_fields: TopCandidatesFields) -> int:
    """C."""
    return -(-op_fields.vocab_size // CHUNK)


def _list_length(op_fields: TopCandidatesFields) -> int:
    """G: a power of two, for the sort, which does no list of one."""
    return _power_of_two(max(2, op_fields.num_candidates))


def _slots(op_fields: TopCandidatesFields) -> int:
    """S: twice what is needed, so that many thresholds are good enough."""
    return 2 * _list_length(op_fields)


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
