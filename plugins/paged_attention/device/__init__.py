"""PagedAttention on NVIDIA GPUs: four Triton kernels, compiled ahead of time (plugins/device).

    write_kernel.py     phase 1 of the schema: norm, rotate, round; k and v to the pool, q to a scratch buffer
    context_kernel.py   phase 2 for sequences with more than one row in the step
    decode_kernel.py    phase 2 for sequences with one row: partial results of spans of the context
    merge_kernel.py     merges those partial results

    paging.py, rotary.py, softmax.py, spans.py   what kernels share, in Triton too
    kernels.py          which kernels an op needs: constants, parameter types, tile sizes
    launches.py         what to launch for a step, and where everything lies in the workspace

Only kernels.py and launches.py may be imported where Triton is not installed.
"""
