"""Compiled device kernels of any op: the bytes in which they travel, which of them a device runs, the workspace."""

import re

import pytest

from precast.plugins.device import serialize
from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET, CompiledKernel, CompiledParameter
from precast.plugins.device.kernel_spec import Parameter
from precast.plugins.device.launch import lay_out
from precast.plugins.device.select_kernels import select_kernels


def some_kernels() -> tuple[CompiledKernel, ...]:
    parameters = (CompiledParameter("kv", "pointer"), CompiledParameter("width", "int32"))
    return (
        CompiledKernel("write", "sm_90", "cubin", b"\x7fELF\0\xff", 1024, 4, parameters),
        CompiledKernel("größe", "sm_80", "ptx", b"", 0, 1, ()),
    )


def test_kernels_survive_their_bytes() -> None:
    assert serialize.from_bytes(serialize.to_bytes(some_kernels())) == some_kernels()
    assert serialize.from_bytes(serialize.to_bytes(())) == ()


def test_the_bytes_of_format_1() -> None:
    kernel = CompiledKernel("k", "sm_90", "ptx", b"code", 3, 2, (CompiledParameter("n", "int32"),))
    expected = b"PCKERNEL" + b"\1\0\0\0" + b"\1\0\0\0"
    expected += b"\1\0\0\0k" + b"\5\0\0\0sm_90" + b"\3\0\0\0ptx" + b"\3\0\0\0" + b"\2\0\0\0"
    expected += b"\1\0\0\0" + b"\1\0\0\0n" + b"\5\0\0\0int32" + b"\4\0\0\0\0\0\0\0code"
    assert serialize.to_bytes([kernel]) == expected


def test_bytes_that_end_early_are_refused_wherever_they_end() -> None:
    data = serialize.to_bytes(some_kernels())
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r"compiled kernels: .* are left"):
            serialize.from_bytes(data[:size])


@pytest.mark.parametrize(
    ("offset", "replacement", "message"),
    [
        (0, b"X", "begins with b'XCKERNEL'"),
        (8, b"\2", "format 2; this version of Precast reads format 1"),
        (12, b"\1", "bytes follow the last kernel"),
        (16, b"\xff\xff\xff\xff", "name of kernel 0 takes 4294967295 bytes at offset 20"),
        (20, b"\xff", "name of kernel 0 is not UTF-8"),
        (29, b"sm_91", "unknown target"),
        (38, b"cubix", "of kind 'cubix'"),
        (43, b"\xff\xff\xff\xff", "uses 4294967295 bytes of shared memory"),
        (47, b"\0", "has 0 warps"),
        (65, b"painter", "C type 'painter'"),
    ],
)
def test_bytes_that_make_no_sense_are_refused(offset: int, replacement: bytes, message: str) -> None:
    data = bytearray(serialize.to_bytes(some_kernels()))
    data[offset : offset + len(replacement)] = replacement
    with pytest.raises(ValueError, match=re.escape(message)):
        serialize.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("major", "minor", "chosen"),
    [
        (8, 0, "cubin sm_80"),
        (8, 6, "cubin sm_86"),
        (8, 7, "cubin sm_86"),
        (8, 9, "cubin sm_89"),
        (9, 0, "cubin sm_90"),
        (10, 0, "cubin sm_100"),
        (10, 3, "ptx sm_80"),
        (12, 1, "ptx sm_80"),
    ],
)
def test_a_device_runs_the_nearest_machine_code_or_ptx(major: int, minor: int, chosen: str) -> None:
    kernels = [CompiledKernel("k", target, "cubin", b"", 0, 1, ()) for target in CUBIN_TARGETS]
    kernels.insert(2, CompiledKernel("k", PTX_TARGET, "ptx", b"", 0, 1, ()))
    kernel = select_kernels(kernels, major, minor)["k"]
    assert f"{kernel.kind} {kernel.target}" == chosen


def test_a_device_for_which_nothing_was_compiled_is_named() -> None:
    with pytest.raises(ValueError, match=r"'größe' was not compiled for a device of compute capability 7.5"):
        select_kernels(some_kernels()[1:], 7, 5)


def test_ptx_may_use_what_every_later_device_has() -> None:
    with pytest.raises(ValueError, match="uses 120000 bytes of shared memory; a block may use 101376"):
        CompiledKernel("k", "sm_80", "ptx", b"", 120_000, 1, ())
    CompiledKernel("k", "sm_80", "cubin", b"", 120_000, 1, ())


def test_a_type_that_no_launcher_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter 'x' has type 'i8'"):
        Parameter("x", "i8")


def test_regions_follow_each_other() -> None:
    laid_out = lay_out({"a": 1, "b": 256, "c": 300})
    assert [(r.name, r.offset) for r in laid_out.regions] == [("a", 0), ("b", 256), ("c", 512)]
    assert laid_out.size_bytes == 1024
