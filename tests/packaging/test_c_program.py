"""A C program compiles and runs against the wheel, whichever of the three ways it finds the library."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import precast

SOURCE = """
#include <precast.h>
#include <stdio.h>

int main(void) {
  printf("%s %d\\n", precast_version_string(), precast_version() == PRECAST_VERSION);
  return 0;
}
"""
PRINTS = f"{precast.__version__} 1\n"

CMAKE_LISTS = f"""
cmake_minimum_required(VERSION 3.24)
project(program LANGUAGES C)
find_package(precast {precast.__version__} REQUIRED)
add_executable(program program.c)
target_link_libraries(program PRIVATE precast::precast)
"""

COMPILE = ("cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "program.c", "-o", "program")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "program.c").write_text(SOURCE)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE_LISTS)
    return tmp_path


@pytest.fixture(scope="module")
def prefix(wheel_site: Path) -> Path:
    return wheel_site / "precast" / "runtime"


def with_library_path(prefix: Path) -> dict[str, str]:
    return os.environ | {"LD_LIBRARY_PATH": str(prefix / "lib")}


def test_compiler_options(project: Path, prefix: Path, run: Callable[..., str]) -> None:
    run(*COMPILE, f"-I{prefix}/include", f"-L{prefix}/lib", "-lprecast", cwd=project)
    assert run("./program", cwd=project, env=with_library_path(prefix)) == PRINTS


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="pkg-config is not installed")
def test_pkg_config(project: Path, prefix: Path, run: Callable[..., str]) -> None:
    search = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    assert run("pkg-config", "--modversion", "precast", env=search).strip() == precast.__version__
    run(*COMPILE, *run("pkg-config", "--cflags", "--libs", "precast", env=search).split(), cwd=project)
    assert run("./program", cwd=project, env=with_library_path(prefix)) == PRINTS


def test_cmake(project: Path, prefix: Path, run: Callable[..., str]) -> None:
    run("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=project)
    run("cmake", "--build", "build", cwd=project)
    assert run("build/program", cwd=project) == PRINTS
