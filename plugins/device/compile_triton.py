"""Compiles Triton kernels ahead of time, without a GPU.

What a kernel compiled by Triton 3.9 looks like to cuLaunchKernel:

- Its entry carries the name of the Python function.
- kernelParams: the parameters that are no constants, in the function's order; each pointer is a 64-bit device address,
  each i32 four bytes. Then two more pointers, which Triton adds to every kernel: `global_scratch` and
  `profile_scratch`, device memory of `global_scratch_size` and `profile_scratch_size` bytes for each block of the
  grid. Both sizes are 0 for our kernels (checked), the addresses are never used, and null is passed.
- blockDim is (32 * num_warps, 1, 1), with num_warps of the *compiled* kernel, `.reqntid` in the PTX.
- Shared memory is dynamic: `shared` bytes, an `extern` array in the PTX.
- No clusters, no cooperative grid, no tensor maps: the launch attributes stay empty.
"""

import importlib
import re
from collections.abc import Iterable
from typing import Any

from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET, CompiledKernel, CompiledParameter
from precast.plugins.device.kernel_spec import PARAMETER_BYTES, KernelSpec

_SCRATCH_PARAMETERS = (CompiledParameter("global_scratch", "pointer"), CompiledParameter("profile_scratch", "pointer"))
_PTX_VERSION = 80
"""PTX ISA 8.0, what drivers since 525 (CUDA 12.0) read; the kernels need no newer instruction on sm_80.

Both kinds for that target have it, so Triton compiles once for them and finds the other in its cache.
"""
_PTX_TYPE_BYTES = {"u32": 4, "b32": 4, "s32": 4, "f32": 4, "u64": 8, "b64": 8, "s64": 8}


def compile_kernels(
    specs: Iterable[KernelSpec], targets: Iterable[str] = CUBIN_TARGETS, ptx: bool = True
) -> tuple[CompiledKernel, ...]:
    """Each kernel as a cubin for each target and, last, as PTX, which any later device can compile."""
    kernels: list[CompiledKernel] = []
    for spec in specs:
        kernels += [compile_kernel(spec, target, "cubin") for target in targets]
        if ptx:
            kernels.append(compile_kernel(spec, PTX_TARGET, "ptx"))
    return tuple(kernels)


def compile_kernel(spec: KernelSpec, target: str, kind: str) -> CompiledKernel:
    """Compiles one kernel; PTX is for PTX_TARGET only. Raises ValueError where the launcher could not run the result.

    Equal input gives equal bytes: line tables, which hold paths of this machine, are left out.
    """
    if kind == "ptx" and target != PTX_TARGET:
        raise ValueError(f"kernel {spec.function!r}: PTX for {target}; the fallback is for {PTX_TARGET}")
    from triton import knobs

    # A knob, not an option; while it is set, so is an environment variable that Triton's cache has in its keys.
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        compiled = _compile(spec, target)
    metadata, ptx = compiled.metadata, compiled.asm["ptx"]
    for what in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, what):
            raise ValueError(f"kernel {spec.function!r} for {target}: {what} is not 0; launchers pass null")
    if metadata.num_ctas != 1 or metadata.launch_cooperative_grid:
        raise ValueError(f"kernel {spec.function!r} for {target} needs clusters or a cooperative grid")
    if metadata.name != spec.function:
        raise ValueError(f"kernel {spec.function!r} for {target} was compiled under the name {metadata.name!r}")
    parameters = (*(CompiledParameter(p.name, p.c_type) for p in spec.parameters), *_SCRATCH_PARAMETERS)
    _check_ptx_parameters(spec.function, ptx, parameters)
    code = compiled.asm["cubin"] if kind == "cubin" else ptx.encode()
    return CompiledKernel(spec.function, target, kind, code, int(metadata.shared), int(metadata.num_warps), parameters)


def _compile(spec: KernelSpec, target: str) -> Any:
    """Triton's own CompiledKernel, with `asm` and `metadata`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(spec.module), spec.function)
    constants = dict(spec.constants)
    names = [name for name in function.arg_names if name not in constants]
    if names != [p.name for p in spec.parameters] or len(names) + len(constants) != len(function.arg_names):
        raise ValueError(
            f"kernel {spec.function!r} takes {', '.join(function.arg_names)}; "
            f"the spec has parameters {', '.join(p.name for p in spec.parameters)} and constants {', '.join(constants)}"
        )
    types = {p.name: p.triton_type for p in spec.parameters}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    alignment = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }
    options = {
        "num_warps": spec.num_warps,
        "num_stages": spec.num_stages,
        "enable_fp_fusion": spec.fuse_multiply_add,
        "ptx_version": _PTX_VERSION if target == PTX_TARGET else None,
    }
    return triton.compile(
        ASTSource(function, signature, constants, alignment),
        target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32),
        options=options,
    )


def _check_ptx_parameters(name: str, ptx: str, parameters: tuple[CompiledParameter, ...]) -> None:
    """Compares what we tell launchers with the entry that Triton wrote."""
    entry = re.search(r"\.entry\s+" + re.escape(name) + r"\s*\(([^)]*)\)", ptx)
    if entry is None:
        raise ValueError(f"kernel {name!r}: the PTX has no such entry")
    found = [_PTX_TYPE_BYTES.get(ptx_type, 0) for ptx_type in re.findall(r"\.param\s+\.(\w+)", entry[1])]
    wanted = [PARAMETER_BYTES[p.c_type] for p in parameters]
    if found != wanted:
        raise ValueError(
            f"kernel {name!r}: its PTX takes parameters of {found} bytes, expected {wanted} "
            f"({', '.join(p.name for p in parameters)}); does this version of Triton add others?"
        )
