"""How ranks meet on GPUs: NCCL, and for short sums a kernel of ours over peer memory.

group.py            what plugins are given when they run, and where a session puts it
open_group.py       makes a rank's group: agrees with the other ranks, opens NCCL and peer memory
nccl.py             NCCL's C library, as far as it is used
nccl_group.py       a group whose collectives are NCCL's
peer_memory.py      memory of each GPU that the others see, through the CUDA driver
mailbox.py          what lies in it
one_shot.py         the kernel that sums over it: what to compile, what to launch, and for which messages
one_shot_kernel.py  the kernel, in Triton

Nothing here but the kernel needs Triton, and nothing needs cuda-python or NCCL to be imported.
"""
