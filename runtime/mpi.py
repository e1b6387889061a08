"""Ranks as the processes of an MPI job: the part of the library that is compiled for an MPI, and the start of a rank.

MPI libraries differ in their ABI, so that part is C source in the wheel (``mpi/precast_mpi.c``), compiled where the
MPI is.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from precast.runtime.library import library_path, onnxruntime_path

LIBRARY_VARIABLE = "PRECAST_MPI"
"""Names the compiled part. Where it is set, ranks are those of the MPI job; else rank 0 starts processes itself."""

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
"""How launchers tell a process its number: MPICH and Intel MPI, PMIx, Open MPI, MVAPICH, and Slurm."""

_LIBRARY_NAME = "libprecast_mpi.so"


class MpiError(Exception):
    """What an MPI job needs is not here; the text says what to do."""


class NotALauncherError(MpiError):
    """No launcher has started this process."""


def mpi_library_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The compiled part: where PRECAST_MPI says, else beside ``libprecast``."""
    chosen = environment.get(LIBRARY_VARIABLE)
    return Path(chosen) if chosen else library_path().parent / _LIBRARY_NAME


def build_mpi_library(output: Path, mpicc: str) -> None:
    """Compiles the part for MPI with an MPI compiler wrapper, and puts it at ``output``.

    Raises:
        MpiError: there is no such compiler, or it fails.
        OSError: ``output`` cannot be written.
    """
    compiler = shutil.which(mpicc)
    if compiler is None:
        raise MpiError(f"there is no {mpicc}: install an MPI library with its compiler wrapper, or give --mpicc PATH")
    source = library_path().parents[1] / "mpi" / "precast_mpi.c"
    output.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and renamed: a job that starts meanwhile sees the old one or the new one, whole.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{_LIBRARY_NAME}-") as folder:
        made = Path(folder) / _LIBRARY_NAME
        options = ["-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
        run = subprocess.run(
            [compiler, *options, str(source), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise MpiError(f"{compiler} cannot compile {source}: {run.stderr.strip() or run.stdout.strip()}")
        made.rename(output)


def job_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank, as the launcher says.

    Raises:
        NotALauncherError: no launcher has started this process.
    """
    for name in RANK_VARIABLES:
        value = environment.get(name, "")
        if value.isdecimal():
            return int(value)
    raise NotALauncherError(
        f"no launcher has said which rank this is ({', '.join(RANK_VARIABLES)}): start this with mpiexec or srun"
    )


def run_rank(command: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """Runs this process's part of an MPI job: ``command`` in rank 0, whose exit status is returned; in the others the
    worker takes the place of this process.

    Raises:
        NotALauncherError: it is no process of a job.
        MpiError: the part for MPI has not been compiled.
    """
    rank = job_rank(environment)
    library = mpi_library_path(environment)
    if not library.is_file():
        raise MpiError(f"{library} does not exist: run `precast build-mpi` once, with the MPI that this job runs under")
    variables = {**environment, LIBRARY_VARIABLE: str(library)}
    worker = variables.get("PRECAST_WORKER") or str(library_path().parents[1] / "bin" / "precast-worker")
    if rank != 0:
        onnxruntime = onnxruntime_path()
        if onnxruntime is not None:
            variables.setdefault("PRECAST_ONNXRUNTIME", str(onnxruntime))
        os.execve(worker, [worker, "--mpi", str(library)], variables)
    with tempfile.NamedTemporaryFile(prefix="precast-launch-", delete=False) as file:
        unstarted = Path(file.name)  # removed by the library when it starts MPI
    try:
        status = _run_program(command, {**variables, _UNSTARTED_VARIABLE: str(unstarted)})
        has_started = not unstarted.exists()
    finally:
        unstarted.unlink(missing_ok=True)
    if not has_started:
        # The program has loaded no engine, and the other ranks still wait for rank 0 to start MPI: this process does,
        # and ends it.
        os.execve(worker, [worker, "--mpi-end", str(library), str(status)], variables)
    return status


_UNSTARTED_VARIABLE = "PRECAST_MPI_UNSTARTED"
_FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def _run_program(command: list[str], environment: Mapping[str, str]) -> int:
    """The exit status; of a program that a signal ended, or that is not there, what a shell says."""
    try:
        # What the launcher speaks with this process through, descriptors and all, is the program's.
        started = subprocess.Popen(command, env=environment, close_fds=False, preexec_fn=_end_with_parent)  # noqa: PLW1509  there is one thread
    except OSError as error:
        # Not raised: the other ranks still wait for this one to end the job.
        print(f"precast: error: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127 if isinstance(error, FileNotFoundError) else 126
    with started as program:
        previous = {
            number: signal.signal(number, lambda got, _: program.send_signal(got)) for number in _FORWARDED_SIGNALS
        }
        try:
            status = program.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1
