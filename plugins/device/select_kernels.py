"""Which of the compiled kernels a device runs."""

from collections.abc import Iterable

from precast.plugins.device.compiled_kernel import CompiledKernel


def select_kernels(kernels: Iterable[CompiledKernel], major: int, minor: int) -> dict[str, CompiledKernel]:
    """Of each kernel the best code for a device of this compute capability, by name.

    Machine code of 8.x runs on any later 8.y, so the nearest one below is taken. From 9.0 on Triton compiles for the
    "a" variant (sm_90a), which runs on exactly its own capability. A device for which there is no machine code gets the
    PTX, if it is not older than that. Raises ValueError, naming the kernel, where nothing runs.
    """
    device = 10 * major + minor
    best: dict[str, tuple[int, CompiledKernel]] = {}
    names: dict[str, None] = {}
    for kernel in kernels:
        names[kernel.name] = None
        rank = _rank(kernel, device)
        if rank > 0 and (kernel.name not in best or rank > best[kernel.name][0]):
            best[kernel.name] = rank, kernel
    for name in names:
        if name not in best:
            raise ValueError(f"kernel {name!r} was not compiled for a device of compute capability {major}.{minor}")
    return {name: kernel for name, (_, kernel) in best.items()}


def _rank(kernel: CompiledKernel, device: int) -> int:
    """0: does not run there. Otherwise more is better: the target's capability, and 1 for PTX."""
    target = int(kernel.target.removeprefix("sm_"))
    if kernel.kind == "ptx":
        return 1 if target <= device else 0
    runs = target == device if target >= 90 else target // 10 == device // 10 and target <= device
    return target if runs else 0
