"""A mailbox: the memory of a rank that its peers see. N = ranks of the stage, G = programs of the kernel.

    offset                        size_bytes
    0                             flag_bytes(N)      flags, int32 [2, G, N]; 256-aligned
    flag_bytes(N)                 BUFFER_BYTES       buffer of even calls
    flag_bytes(N) + BUFFER_BYTES  BUFFER_BYTES       buffer of odd calls

one_shot_kernel.py says who writes and reads what, and when. All of it is zero before the first call.
"""

PROGRAMS = 32
"""G. Each program waits for its like on other ranks, so all must fit a GPU at once: 32 blocks of 128 threads do, on any
GPU that has peers."""
BUFFER_BYTES = 512 << 10
"""The largest message. Each rank reads N - 1 messages, where NCCL's rings move 2 (N - 1) / N of one in 2 (N - 1) steps:
from a size on NCCL is faster. That size is not measured; other libraries change over at 256 to 512 KiB."""
_ALIGNMENT = 256


def flag_bytes(num_ranks: int) -> int:
    """Of the flags of N ranks, rounded up."""
    return -(-2 * PROGRAMS * num_ranks * 4 // _ALIGNMENT) * _ALIGNMENT


def mailbox_bytes(num_ranks: int) -> int:
    """Of a whole mailbox for N ranks."""
    return flag_bytes(num_ranks) + 2 * BUFFER_BYTES
