"""Compiles kernels beside each other: Triton compiles in one thread of one process."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from precast.builder.processes import end_with
from precast.plugins.device.compile_triton import compile_kernel
from precast.plugins.device.compiled_kernel import PTX_TARGET, CompiledKernel
from precast.plugins.device.kernel_spec import KernelSpec

MAX_PROCESSES = 8
"""Each takes 200 MB for Triton."""


def compile_beside_each_other(specs: Sequence[KernelSpec], targets: Sequence[str]) -> list[CompiledKernel]:
    """Each kernel as a cubin for each target and as PTX for later ones; none where there are no targets.

    Raises:
        ValueError: a kernel cannot be compiled for a target.
    """
    kinds = [*((target, "cubin") for target in targets), *([(PTX_TARGET, "ptx")] if targets else [])]
    jobs = [(spec, target, kind) for spec in specs for target, kind in kinds]
    num_processes = min(len(jobs), len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if num_processes < 2:
        return [compile_kernel(*job) for job in jobs]
    # Not forked: the threads of TensorRT may be in this process.
    with ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        return list(pool.map(_compile, jobs))


def _compile(job: tuple[KernelSpec, str, str]) -> CompiledKernel:
    return compile_kernel(*job)
