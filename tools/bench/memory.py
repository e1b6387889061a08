"""Memory of a process and its children, as Linux accounts for it.

PSS counts a page that n processes share as 1/n of a page in each: the sum over a tree of processes is what the tree
costs. Mapped files (weights that were not copied) are told apart from memory of its own (caches, copies, the heap).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryUsage:
    """Bytes, summed over a tree of processes. The peak is of resident pages, shared ones counted in full."""

    pss: int
    pss_private: int
    pss_mapped: int
    peak_rss: int


def process_tree_usage(pid: int | None = None, proc: Path = Path("/proc")) -> MemoryUsage:
    """Of this process (or `pid`) and its descendants, at this moment. Takes tens of milliseconds per gigabyte.

    Raises:
        OSError: there is no such process.
    """
    usages = [_usage(proc / str(one)) for one in _tree(os.getpid() if pid is None else pid, proc)]
    return MemoryUsage(
        sum(usage.pss for usage in usages),
        sum(usage.pss_private for usage in usages),
        sum(usage.pss_mapped for usage in usages),
        sum(usage.peak_rss for usage in usages),
    )


def _tree(pid: int, proc: Path) -> list[int]:
    children = [child for task in (proc / str(pid) / "task").iterdir() for child in _children_of_thread(task)]
    return [pid] + [descendant for child in children for descendant in _tree(child, proc)]


def _children_of_thread(task: Path) -> list[int]:
    try:
        return [int(child) for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # a thread that has ended since the threads were listed


def _usage(folder: Path) -> MemoryUsage:
    rollup = _kilobyte_fields(folder / "smaps_rollup")
    status = _kilobyte_fields(folder / "status")
    mapped = rollup["Pss_File"] + rollup["Pss_Shmem"]
    return MemoryUsage(rollup["Pss"], rollup["Pss_Anon"], mapped, status["VmHWM"])


def _kilobyte_fields(file: Path) -> dict[str, int]:
    """The lines of the form "Name:   123 kB", in bytes."""
    fields = {}
    for line in file.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            fields[words[0].rstrip(":")] = int(words[1]) * 1024
    return fields
