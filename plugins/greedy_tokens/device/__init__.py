"""GreedyTokens on NVIDIA GPUs: two Triton kernels, compiled ahead of time (plugins/device).

    op_fields.py        the shape for which kernels are compiled
    launches.py         which kernels an op needs, what to launch for a step, where the workspace's parts lie
    partial_kernel.py   partial results of chunks of a row
    merge_kernel.py     merges them

Only the kernels' files need Triton.
"""
