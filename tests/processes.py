"""Looking at processes, for tests of what starts and ends them."""

from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Processes of a process that have not been waited for, in ascending order.

    Found by their parent and not in the `children` of its threads: those come and go while they are read.
    """
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sorted(child for child in found if _stat(child)[1:2] == [str(pid)])


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended yet."""
    return _stat(pid)[:1] not in ([], ["Z"])


def _stat(pid: int) -> list[str]:
    """State, parent and what follows in proc(5)'s stat, after the name; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
