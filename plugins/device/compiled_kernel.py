"""A kernel as machine code, with what cuLaunchKernel must know about it."""

from dataclasses import dataclass

from precast.plugins.device.kernel_spec import PARAMETER_BYTES

CUBIN_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""Compute capabilities that get machine code; select_kernels.py says which devices run which."""
PTX_TARGET = "sm_80"
"""What the fallback is written for: a driver compiles it for any device from here on."""
SHARED_BYTES_LIMITS = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}
"""Shared memory that one block may use (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").

More than 48 KiB needs cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES) before the launch.
"""
KINDS = ("cubin", "ptx")


@dataclass(frozen=True)
class CompiledParameter:
    """One entry of cuLaunchKernel's kernelParams. `c_type` is one of PARAMETER_BYTES."""

    name: str
    c_type: str

    def __post_init__(self) -> None:
        if self.c_type not in PARAMETER_BYTES:
            raise ValueError(
                f"kernel parameter {self.name!r} has C type {self.c_type!r}; known: {', '.join(PARAMETER_BYTES)}"
            )


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code ("cubin") or PTX of one kernel for one target, to be launched with 32 * num_warps threads.

    `parameters` are all that the code takes, in order: those of the KernelSpec, then the two pointers that Triton adds
    to each kernel (compile_triton.py), which are null.
    """

    name: str
    target: str
    kind: str
    code: bytes
    shared_bytes: int
    num_warps: int
    parameters: tuple[CompiledParameter, ...]

    def __post_init__(self) -> None:
        what = f"kernel {self.name!r} for {self.target!r}"
        if self.kind not in KINDS:
            raise ValueError(f"{what} is of kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.target not in SHARED_BYTES_LIMITS:
            raise ValueError(f"{what}: unknown target; known: {', '.join(SHARED_BYTES_LIMITS)}")
        if self.num_warps < 1 or self.num_warps > 32:
            raise ValueError(f"{what} has {self.num_warps} warps; a block has 1 to 32")
        # PTX may be compiled for any later device.
        limit = SHARED_BYTES_LIMITS[self.target] if self.kind == "cubin" else min(SHARED_BYTES_LIMITS.values())
        if self.shared_bytes < 0 or self.shared_bytes > limit:
            raise ValueError(f"{what} uses {self.shared_bytes} bytes of shared memory; a block may use {limit}")
