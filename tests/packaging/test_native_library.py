"""The shared library and its objects: what is exported, and that no kernel level leaks into another."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ONNXRUNTIME_CONVENTION = "RegisterCustomOps"
"""ONNX Runtime looks this name up in a library of custom operators; precast.h does not declare it."""


@pytest.fixture(scope="module")
def prefix(wheel_site: Path) -> Path:
    return wheel_site / "precast" / "runtime"


def test_exactly_what_the_header_declares_is_exported(prefix: Path, run: Callable[..., str]) -> None:
    header = (prefix / "include" / "precast.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^PRECAST_API [^;(]*?\b(\w+)\(", header, flags=re.MULTILINE))
    table = run("nm", "--dynamic", "--defined-only", prefix / "lib" / "libprecast.so.0")
    exported = {line.split()[2] for line in table.splitlines()}
    assert exported == declared | {ONNXRUNTIME_CONVENTION}


def test_the_soname_is_the_file_name(prefix: Path, run: Callable[..., str]) -> None:
    dynamic = run("readelf", "--dynamic", prefix / "lib" / "libprecast.so.0")
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["libprecast.so.0"]


def test_objects_of_a_kernel_level_define_no_shared_functions(
    wheel: Path, repository: Path, run: Callable[..., str]
) -> None:
    """An inline function or template outside an anonymous namespace is a weak symbol: the linker keeps one
    copy for the whole library. If that copy comes from an AVX-512 file, innocent code dies on a processor
    without AVX-512.
    """
    assert wheel.exists()  # the objects are those it was linked from
    objects = sorted((repository / "build" / "Release").glob("plugins/**/*_avx*.o"))
    weak = [
        f"{path.name}: {line.split(maxsplit=2)[2]}"
        for path in objects
        for line in run("nm", "--demangle", "--defined-only", path).splitlines()
        if re.match(r"\w+ [WuV] (?!DW\.ref\.)", line)
    ]
    assert weak == [], "move these into an anonymous namespace, or keep them out of the files of a kernel level"
