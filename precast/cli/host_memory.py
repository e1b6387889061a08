"""How much memory this host has to give, as the native runtime sees it; inspecting loads no library to ask."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(meminfo: Path = _MEMINFO, control_group: Path = _CONTROL_GROUP) -> int | None:
    """The lesser of what the kernel calls MemAvailable and what the limit of this control group (version 2) leaves.

    None where neither is known. The same rule is in runtime/native/src/host_memory.cpp.
    """
    known = [size for size in (_system_bytes(meminfo), _control_group_bytes(control_group)) if size is not None]
    return min(known, default=None)


def _system_bytes(meminfo: Path) -> int | None:
    for line in _read(meminfo).splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024  # "  123456 kB"
    return None


def _control_group_bytes(control_group: Path) -> int | None:
    limit, used = (_read(control_group / name).strip() for name in ("memory.max", "memory.current"))
    if not (limit.isdecimal() and used.isdecimal()):  # a group without a limit says "max"
        return None
    return max(0, int(limit) - int(used))


def _read(path: Path) -> str:
    """Nothing where there is no such file, as in systems without control groups."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
