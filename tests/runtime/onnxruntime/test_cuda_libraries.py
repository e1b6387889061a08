"""Finding the ONNX Runtime that has CUDA: packages and libraries that are made up."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from precast.runtime.onnxruntime.cuda_libraries import (
    CUDA_PROVIDER_LIBRARY,
    PATH_VARIABLE,
    find_onnxruntime_gpu,
    needed_libraries,
    open_forget_error,
    preload_cuda_libraries,
)
from tests.plugins.ort_world import library

LIBRARY = library()  # found while there are other folders with packages


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with packages."""
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    return folder


def install(site: Path, package: str, version: str, files: dict[str, bytes], with_sizes: bool = True) -> None:
    """Over what is there, as pip does."""
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    capi = site / "onnxruntime" / "capi"
    capi.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (capi / name).write_bytes(content)
    sizes = {name: str(len(content)) if with_sizes else "" for name, content in files.items()}
    (info / "RECORD").write_text("".join(f"onnxruntime/capi/{name},,{size}\n" for name, size in sizes.items()))


GPU = {
    "libonnxruntime.so.1.31.1": b"with CUDA",
    CUDA_PROVIDER_LIBRARY: b"CUDA",
    "libonnxruntime_providers_shared.so": b"",
}


class TestFind:
    def test_none(self) -> None:
        assert find_onnxruntime_gpu() is None

    def test_only_the_package_without_cuda(self, site: Path) -> None:
        install(site, "onnxruntime", "1.31.1", {"libonnxruntime.so.1.31.1": b"without"})
        assert find_onnxruntime_gpu() is None

    @pytest.mark.parametrize("with_sizes", [True, False])
    def test_the_package_with_cuda(self, site: Path, with_sizes: bool) -> None:
        install(site, "onnxruntime-gpu", "1.31.1", GPU, with_sizes)
        assert find_onnxruntime_gpu() == site / "onnxruntime" / "capi" / "libonnxruntime.so.1.31.1"

    @pytest.mark.parametrize("gpu_first", [True, False])
    def test_both_of_two_versions(self, site: Path, gpu_first: bool) -> None:
        packages = [
            ("onnxruntime-gpu", "1.31.1", GPU),
            ("onnxruntime", "1.32.0", {"libonnxruntime.so.1.32.0": b"without"}),
        ]
        for package in packages if gpu_first else packages[::-1]:
            install(site, *package)
        found = find_onnxruntime_gpu()
        assert found is not None
        assert found.read_bytes() == b"with CUDA"

    def test_both_of_one_version(self, site: Path) -> None:
        cpu = {"libonnxruntime.so.1.31.1": b"without"}
        install(site, "onnxruntime", "1.31.1", cpu)
        install(site, "onnxruntime-gpu", "1.31.1", GPU)
        assert find_onnxruntime_gpu() is not None
        (site / "onnxruntime" / "capi" / "libonnxruntime.so.1.31.1").write_bytes(b"without")
        message = (
            r"libonnxruntime\.so\.1\.31\.1 was overwritten, it is not the one of onnxruntime-gpu 1\.31\.1: install"
        )
        with pytest.raises(FileNotFoundError, match=message):
            find_onnxruntime_gpu()

    @pytest.mark.parametrize("lost", ["libonnxruntime.so.1.31.1", CUDA_PROVIDER_LIBRARY])
    def test_a_file_that_was_removed_since(self, site: Path, lost: str) -> None:
        install(site, "onnxruntime-gpu", "1.31.1", GPU)
        (site / "onnxruntime" / "capi" / lost).unlink()
        message = rf"^there is no .*{re.escape(lost)}, of onnxruntime-gpu 1\.31\.1: install that again"
        with pytest.raises(FileNotFoundError, match=message):
            find_onnxruntime_gpu()

    def test_a_package_without_a_list_of_files(self, site: Path) -> None:
        install(site, "onnxruntime-gpu", "1.31.1", GPU)
        next(site.glob("*.dist-info/RECORD")).unlink()
        assert find_onnxruntime_gpu() == site / "onnxruntime" / "capi" / "libonnxruntime.so.1.31.1"

    def test_where_the_variable_says(self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(site, "onnxruntime-gpu", "1.31.1", GPU)
        own = tmp_path / "libonnxruntime.so"
        monkeypatch.setenv(PATH_VARIABLE, str(own))
        for path in (own, tmp_path / CUDA_PROVIDER_LIBRARY):
            message = f"^there is no {re.escape(str(path))}, which PRECAST_ONNXRUNTIME_CUDA names$"
            with pytest.raises(FileNotFoundError, match=message):
                find_onnxruntime_gpu()
            path.touch()
        assert find_onnxruntime_gpu() == own


@pytest.fixture
def compiler() -> str:
    compiler = os.environ.get("CC") or shutil.which("cc")
    assert compiler is not None
    return compiler


def compile_library(compiler: str, path: Path, needs: list[Path], source: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    code = path.with_suffix(".c")
    code.write_text(source or f"int {path.name.split('.')[0]}_is_there;\n")
    options = ["-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{path.name}"]
    subprocess.run([compiler, *options, "-o", str(path), str(code), *map(str, needs)], check=True)
    code.unlink()
    return path


class TestPreload:
    def test_wheels_first_in_the_order_in_which_they_need_each_other(
        self, compiler: str, site: Path, tmp_path: Path
    ) -> None:
        base = compile_library(compiler, site / "nvidia" / "cu99" / "lib" / "libprecastbase.so.9", [])
        upper = compile_library(compiler, site / "nvidia" / "cublas" / "lib" / "libprecastupper.so.9", [base])
        compile_library(compiler, tmp_path / CUDA_PROVIDER_LIBRARY, [upper, base])
        assert needed_libraries(tmp_path / CUDA_PROVIDER_LIBRARY)[:2] == [upper.name, base.name]
        assert preload_cuda_libraries(tmp_path / "libonnxruntime.so.1.31.1") == []
        assert ctypes.c_int.in_dll(ctypes.CDLL(None), "libprecastupper_is_there").value == 0  # for the whole process
        ctypes.CDLL(str(tmp_path / CUDA_PROVIDER_LIBRARY))

    def test_what_is_missing_is_named(self, compiler: str, site: Path, tmp_path: Path) -> None:
        there = compile_library(compiler, site / "nvidia" / "lib" / "libprecastthere.so.1", [])
        gone = [compile_library(compiler, tmp_path / f"libprecastgone{number}.so.1", []) for number in (1, 2)]
        needs_gone = compile_library(compiler, site / "nvidia" / "a" / "b" / "lib" / "libprecastneeds.so.1", gone[:1])
        compile_library(compiler, tmp_path / CUDA_PROVIDER_LIBRARY, [gone[1], there, needs_gone])
        for path in gone:
            path.unlink()
        missing = preload_cuda_libraries(tmp_path / "libonnxruntime.so")
        assert missing == [gone[1].name, needs_gone.name]

    def test_a_real_library(self) -> None:
        needed = needed_libraries(LIBRARY)
        assert {"libc.so.6", "libstdc++.so.6"} <= set(needed)

    @pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\0" * 100, b"no library" * 20])
    def test_a_file_that_is_no_library(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / CUDA_PROVIDER_LIBRARY).write_bytes(content)
        with pytest.raises(
            OSError, match=r"libonnxruntime_providers_cuda\.so is not a shared library of this platform$"
        ):
            preload_cuda_libraries(tmp_path / "libonnxruntime.so")


class TestForgetError:
    def test_the_runtime_that_the_provider_needs(self, compiler: str, tmp_path: Path) -> None:
        source = "int asked; int cudaGetLastError(void) { return ++asked; }"
        runtime = compile_library(compiler, tmp_path / "libcudart.so.99", [], source)
        compile_library(compiler, tmp_path / CUDA_PROVIDER_LIBRARY, [runtime])
        opened = ctypes.CDLL(str(runtime))
        forget = open_forget_error(tmp_path / "libonnxruntime.so.1.31.1")
        forget()
        assert ctypes.c_int.in_dll(opened, "asked").value == 1

    def test_a_provider_without_one(self, compiler: str, tmp_path: Path) -> None:
        compile_library(compiler, tmp_path / CUDA_PROVIDER_LIBRARY, [])
        with pytest.raises(OSError, match=r"CUDA's runtime, libcudart\.so: use that of onnxruntime-gpu$"):
            open_forget_error(tmp_path / "libonnxruntime.so.1.31.1")
