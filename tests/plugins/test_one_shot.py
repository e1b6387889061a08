"""The one-shot sum over peer memory: mailboxes, launches, ahead-of-time compilation, results.

No GPU is needed. What the kernel computes is checked by device_one_shot_checks.py in a process of its own, because an
environment variable chooses Triton's interpreter once and for all.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from precast.plugins.collectives.device.mailbox import BUFFER_BYTES, PROGRAMS, flag_bytes, mailbox_bytes
from precast.plugins.collectives.device.one_shot import MAX_RANKS, fits_one_shot, one_shot_launch, one_shot_specs
from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: device kernels cannot be compiled or interpreted")


def test_flags_and_two_buffers_lie_one_after_the_other() -> None:
    assert flag_bytes(2) == 2 * PROGRAMS * 2 * 4 == 512
    assert flag_bytes(3) == 768
    assert flag_bytes(5) % 256 == 0
    assert flag_bytes(5) >= 2 * PROGRAMS * 5 * 4
    assert mailbox_bytes(3) == 768 + 2 * BUFFER_BYTES


def test_a_message_must_fit_a_buffer_and_be_whole_vectors() -> None:
    most = BUFFER_BYTES // 2
    assert [fits_one_shot(size) for size in (8, most, 12, most + 8)] == [True, True, False, False]


def test_the_launch_passes_what_the_kernel_takes() -> None:
    (spec,) = one_shot_specs(4, "float16")
    launch = one_shot_launch(4096, 3, 500)
    assert (*launch.buffers, *dict(launch.scalars)) == tuple(p.name for p in spec.parameters)
    assert dict(launch.scalars) == {"num_vectors": 512, "rank": 3, "timeout_ms": 500}
    assert launch.grid == one_shot_launch(8, 0, 1).grid == (PROGRAMS, 1, 1)  # for programs count their calls
    types = {p.name: p.triton_type for p in spec.parameters}
    assert (types["x"], types["y"], types["mailboxes"]) == ("*fp16", "*fp16", "*i64")
    assert dict(spec.constants)["FLAGS"] == flag_bytes(4)


def test_more_ranks_than_reach_each_other_have_no_kernel() -> None:
    assert len(one_shot_specs(MAX_RANKS, "bfloat16")) == 1
    assert one_shot_specs(MAX_RANKS + 1, "bfloat16") == ()


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", CUBIN_TARGETS)
@pytest.mark.parametrize(("num_ranks", "dtype"), [(2, "bfloat16"), (8, "float16")])
def test_it_compiles_for_every_target(target: str, num_ranks: int, dtype: str) -> None:
    from precast.plugins.device.compile_triton import compile_kernel

    (spec,) = one_shot_specs(num_ranks, dtype)
    kernel = compile_kernel(spec, target, "cubin")
    assert kernel.code.startswith(b"\x7fELF")
    assert (kernel.name, kernel.target, kernel.num_warps) == (spec.function, target, 4)


@pytest.mark.usefixtures("_triton")
def test_flags_are_published_and_awaited_across_gpus_and_numbers_move_as_vectors() -> None:
    """What the code says to the memory system: no GPU was there to show it."""
    from precast.plugins.device.compile_triton import compile_kernel

    (spec,) = one_shot_specs(3, "bfloat16")
    ptx = compile_kernel(spec, PTX_TARGET, "ptx").code.decode()
    order = [
        r"ld\.global\.v4\.b32",  # x
        r"st\.global\.v4\.b32",  # into the own mailbox
        r"bar\.sync",
        r"fence\.acq_rel\.sys",  # together a release ...
        r"st\.relaxed\.sys\.global\.b32",  # ... of the flags
        r"ld\.relaxed\.sys\.global\.b32",  # together an acquire ...
        r"fence\.acq_rel\.sys",  # ... by those who wait
        r"bar\.sync",
        r"ld\.global\.v4\.b32",  # of rank 0's mailbox
        r"ld\.global\.v4\.b32",  # of rank 1's
        r"add\.f32",
        r"ld\.global\.v4\.b32",  # of rank 2's
        r"add\.f32",
        r"cvt\.rn\.bf16",
        r"st\.global\.v4\.b32",  # y
    ]
    assert re.search(".*".join(order), ptx, re.DOTALL)
    assert "ld.global.b16" not in ptx
    assert "atom." not in ptx  # which GPUs do not have across PCI Express


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
def test_the_kernel_is_the_reference_in_tritons_interpreter() -> None:
    checks = Path(__file__).with_name("device_one_shot_checks.py")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert re.search(r"\d+ passed", child.stdout)
    assert "skipped" not in child.stdout


def test_it_imports_without_triton_cuda_and_nccl() -> None:
    modules = "precast.plugins.collectives.device.open_group, precast.plugins.collectives.device.one_shot"
    program = f"import sys; sys.modules['triton'] = sys.modules['cuda'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
