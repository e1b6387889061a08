"""The wheel holds what Python and C programs need to run engines, and no sources of the library."""

import re
import zipfile
from pathlib import Path

import pytest

import precast


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_one_wheel_serves_every_python_version(wheel: Path) -> None:
    assert wheel.name.startswith(f"precast-{precast.__version__}-py3-none-linux_")


@pytest.mark.parametrize(
    "name",
    [
        "precast/py.typed",
        "precast/runtime/include/precast.h",
        "precast/runtime/bin/precast-worker",
        "precast/runtime/mpi/precast_mpi.c",
        "precast/runtime/mpi/precast_mpi.h",
        "precast/runtime/lib/libprecast.so.0",
        "precast/runtime/lib/libprecast.so",
        "precast/runtime/lib/pkgconfig/precast.pc",
        "precast/runtime/lib/cmake/precast/precast-config.cmake",
        "precast/runtime/lib/cmake/precast/precast-config-version.cmake",
    ],
)
def test_it_holds(names: list[str], name: str) -> None:
    assert names.count(name) == 1


def test_the_worker_is_a_program(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo("precast/runtime/bin/precast-worker").external_attr >> 16 & 0o111 == 0o111


def test_every_python_file_of_the_rooms_is_in_it(names: list[str], repository: Path) -> None:
    expected = {
        (Path() if room == "precast" else Path("precast")) / path.relative_to(repository)
        for room in ("precast", "builder", "checkpoints", "plugins", "runtime")
        for path in (repository / room).rglob("*.py")
    }
    assert expected == {Path(name) for name in names if name.endswith(".py")}


def test_nothing_else_is_in_it(names: list[str]) -> None:
    allowed = re.compile(
        r"precast/.*\.py|precast/py\.typed"
        r"|precast/runtime/bin/precast-worker"
        r"|precast/runtime/mpi/precast_mpi\.[ch]"
        r"|precast/runtime/include/precast\.h|precast/runtime/lib/libprecast\.so(\.0)?"
        r"|precast/runtime/lib/(pkgconfig/precast\.pc|cmake/precast/precast-config[-a-z]*\.cmake)"
        r"|precast-[^/]*\.dist-info/.*"
    )
    assert [name for name in names if not allowed.fullmatch(name)] == []
