"""TopCandidates on NVIDIA GPUs: two Triton kernels, compiled ahead of time (plugins/device).

    op_fields.py        the shape for which kernels are compiled
    launches.py         which kernels an op needs, what to launch for a step, where the workspace's parts lie
    select_kernel.py    of each chunk of a row a few logits among which its largest are
    sort_kernel.py      the largest of these, in order

Only the kernels' files need Triton.
"""
