"""The one-shot sum: which messages it is for, what to compile for it, and what to launch.

Pure: imports no Triton (one_shot_kernel.py does).
"""

from precast.plugins.collectives.device.mailbox import BUFFER_BYTES, PROGRAMS, flag_bytes
from precast.plugins.device.kernel_spec import KernelSpec, Parameter
from precast.plugins.device.launch import Launch
from precast.plugins.device.op_fields import TRITON_TYPES

ONE_SHOT = "one_shot_all_reduce"
"""The dtypes of activations, and Triton's names of them. Both have 16 bits."""
ELEMENT_BYTES = 2
MAX_RANKS = 8
"""GPUs of a host that reach each other directly, as hosts are sold; the kernel's code grows with their number."""
BLOCK = 1024
"""Elements of a step of a program: 16 bytes for each of 128 threads."""
_VECTOR = 8
_NUM_WARPS = 4
_INT32 = "*i32"


def fits_one_shot(num_elements: int) -> bool:
    """Whether a message may go through mailboxes: it fits a buffer, and is whole vectors of 16 bytes."""
    return num_elements * ELEMENT_BYTES <= BUFFER_BYTES and num_elements % _VECTOR == 0


def one_shot_specs(num_ranks: int, dtype: str) -> tuple[KernelSpec, ...]:
    """The kernel for N ranks and one of DTYPES; none for more than MAX_RANKS, which meet through NCCL alone."""
    if num_ranks > MAX_RANKS:
        return ()
    element = "*" + TRITON_TYPES[dtype]
    return (
        KernelSpec(
            "precast.plugins.collectives.device.one_shot_kernel",
            ONE_SHOT,
            (
                Parameter("x", element),
                Parameter("mailboxes", "*i64"),
                Parameter("calls", _INT32),
                Parameter("missing", _INT32),
                Parameter("y", element),
                Parameter("num_vectors", "i32"),
                Parameter("rank", "i32"),
                Parameter("timeout_ms", "i32"),
            ),
            (
                ("N", num_ranks),
                ("G", PROGRAMS),
                ("BUFFER", BUFFER_BYTES),
                ("FLAGS", flag_bytes(num_ranks)),
                ("BLOCK", BLOCK),
            ),
            num_warps=_NUM_WARPS,
        ),
    )


def one_shot_launch(num_elements: int, rank: int, timeout_ms: int) -> Launch:
    """The launch of a sum. Its buffers are x, y and those of Mailboxes (group.py)."""
    return Launch(
        ONE_SHOT,
        (PROGRAMS, 1, 1),
        ("x", "mailboxes", "calls", "missing", "y"),
        (("num_vectors", num_elements // _VECTOR), ("rank", rank), ("timeout_ms", timeout_ms)),
    )
