"""RmsNorm on NVIDIA GPUs: a Triton kernel, compiled ahead of time (plugins/device).

    op_fields.py         the op's attributes, and the shape and dtype for which a kernel is compiled
    launches.py          which kernel an op needs, what to launch for a step, and how to run it
    rms_norm_kernel.py   the kernel

Only the kernel's file needs Triton.
"""
