"""The GPUs that a plan is built for, by compute capability: "sm89" is 8.9."""

from collections.abc import Sequence

from precast.builder.backends.tensorrt.library import TensorRtLibrary
from precast.builder.errors import BuildError

PORTABLE = "portable"
"""One plan for every GPU that TensorRT-RTX supports by default: 8.0, 8.6, 8.9, 12.0 and later."""
CURRENT = "current"
"""The GPU of this machine: what TensorRT, other than TensorRT-RTX, builds for."""

RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
_PORTABLE_CAPABILITIES = (80, 86, 89, 120)
_NOT_RTX = {
    "sm75": "the kernels of PagedAttention and bfloat16 need 8.0",
    "sm90": "TensorRT-RTX has no such target (H100, H200), and that a portable plan loads there has not been seen",
    "sm100": "TensorRT-RTX has no such target (B200), and that a portable plan loads there has not been seen",
    "sm103": "TensorRT-RTX has no such target (B300), and that a portable plan loads there has not been seen",
}
KERNEL_CAPABILITIES = (80, 86, 89, 90, 100, 120)
"""What PagedAttention's kernels are compiled for.

8.x runs those of a lower 8.y; from 9.0 on a GPU runs its own only, and others compile the PTX that is always beside
them (plugins/device/select_kernels.py).
"""


def check_targets(library: TensorRtLibrary, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The targets of a build, ascending; the library's default where none are given.

    Raises:
        BuildError: the library does not build for one of them; the message says what it builds for.
    """
    if library.name != "tensorrt_rtx":
        if targets and tuple(targets) != (CURRENT,):
            raise BuildError(
                f"target {','.join(targets)}: {library.title} {library.version} builds for this machine's GPU only: "
                f"leave the target out or choose {CURRENT}, or install TensorRT-RTX, which builds for others"
            )
        return (CURRENT,)
    if not targets:
        return (PORTABLE,)
    for target in targets:
        if target == PORTABLE and len(targets) > 1:
            raise BuildError(f"target {PORTABLE} stands alone: leave out {PORTABLE}, or the others")
        if target not in (PORTABLE, *RTX_TARGETS):
            why = _NOT_RTX.get(target, f"{library.title} {library.version} has no such target")
            raise BuildError(
                f"target {target or repr(target)}: {why}; there are {', '.join(RTX_TARGETS)} and {PORTABLE}"
            )
    return tuple(sorted(set(targets), key=lambda target: capability(target) if target != PORTABLE else 0))


def capability(target: str) -> int:
    """Of a target other than portable and current: 89 of "sm89"."""
    return int(target.removeprefix("sm"))


def capabilities(targets: Sequence[str]) -> tuple[int, ...]:
    """The compute capabilities that targets name."""
    if targets[0] in (PORTABLE, CURRENT):
        return _PORTABLE_CAPABILITIES
    return tuple(capability(target) for target in targets)


def kernel_capabilities(targets: Sequence[str]) -> tuple[int, ...]:
    """Of KERNEL_CAPABILITIES the nearest of each target, which is never above it."""
    if targets[0] in (PORTABLE, CURRENT):
        return KERNEL_CAPABILITIES
    wanted = set()
    for target in capabilities(targets):
        same_major = [known for known in KERNEL_CAPABILITIES if known // 10 == target // 10 and known <= target]
        wanted.add(max(same_major))
    return tuple(sorted(wanted))


def name_capability(value: int) -> str:
    """89 -> "8.9"."""
    return f"{value // 10}.{value % 10}"
