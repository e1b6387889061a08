"""What the machine can do at this moment, and which one it is."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def compile_program(source: str, work: Path, command: list[str], *libraries: str) -> Path:
    """Compiles a file of this folder into the folder `work`; `command` is the compiler with its options."""
    program = work / Path(source).stem
    subprocess.run([*command, str(HERE / source), "-o", str(program), *libraries], check=True)
    return program


class Bandwidth:
    """Memory bandwidth, by bandwidth.cpp."""

    def __init__(self, work: Path, num_threads: int) -> None:
        self._program = compile_program(
            "bandwidth.cpp", work, ["c++", "-std=c++20", "-O3", "-march=native", "-pthread"]
        )
        self._num_threads = num_threads

    def gb_s(self, runs: int = 100) -> float:
        """GB/s over seconds, about as long as a run of W1: virtual machines have bursts, which decoding uses up."""
        command = [str(self._program), "--threads", str(self._num_threads), "--runs", str(runs)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return statistics.median(float(line) for line in lines)


def describe() -> dict[str, str]:
    """The processor, how many of it this process may use, and the operating system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return {
        "processor": f"{fields.get('model name')} ({family})",
        "processors_used": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.release()}",
    }
