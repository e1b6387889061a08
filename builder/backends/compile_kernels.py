"""Compiles kernels beside each other: Triton compiles in one thread of one process."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
        ValueError: a kernel cannot be compiled for a target, or a process that compiles ended.
    """
    kinds = [*((target, "cubin") for target in targets), *([(PTX_TARGET, "ptx")] if targets else [])]
    jobs = [(spec, target, kind) for spec in specs for target, kind in kinds]
    num_processes = min(len(jobs), len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if num_processes < 2:
        return [_compile(job) for job in jobs]
    # Not forked: the threads of TensorRT may be in this process.
    with ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        try:
            return list(pool.map(_compile, jobs))
        except BrokenProcessPool as error:
            raise ValueError("a process that compiles was killed, as the system does when memory runs out") from error


def _compile(job: tuple[KernelSpec, str, str]) -> CompiledKernel:
    """Whatever the compilers raise is a ValueError, which other processes can read too."""
    spec, target, _ = job
    try:
        return compile_kernel(*job)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"kernel {spec.function!r} for {target}: {_gist(error)}") from error


def _gist(error: Exception) -> str:
    """The last line, which says what is wrong; before it Triton quotes the kernel, and behind it how to repeat it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [line for line in lines if not line.startswith("Repro command")]
    return found[-1] if found else type(error).__name__
