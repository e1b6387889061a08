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


def processes_with(variable: str) -> list[int]:
    """Processes that were started with an environment that has "NAME=value", in ascending order."""
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sorted(pid for pid in found if variable in _environment(pid))


def name_of(pid: int) -> str:
    """The name of a process's program, its first 15 bytes; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _stat(pid: int) -> list[str]:
    """State, parent and what follows in proc(5)'s stat, after the name; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
