"""What refuses an engine before any of its files but the manifest is touched: the whole sentence, each time."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_errors import UnsupportedEngineError
from precast.plugins.onnxruntime.ort_abi import OrtApi
from precast.runtime import Engine
from precast.runtime.device.worker import SUPPORT
from precast.runtime.errors import EngineLoadError, ErrorCode
from precast.runtime.library import onnxruntime_path
from precast.runtime.onnxruntime import cuda_libraries, toolkit
from precast.runtime.onnxruntime.toolkit import CudaToolkit, check_device
from precast.version import __version__
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.test_refusals import fakes as fakes
from tests.runtime.tensorrt.test_refusals import refused as refused
from tests.runtime.tensorrt.test_refusals import (
    test_a_driver_that_refuses_something_else,
    test_gpus_that_this_process_does_not_see,
    test_no_gpu,
)
from tests.runtime.tensorrt.worlds import FakeEngine, check_engine

pytestmark = pytest.mark.usefixtures("cpu_provider")

__all__ = [
    "test_a_driver_that_refuses_something_else",
    "test_gpus_that_this_process_does_not_see",
    "test_no_gpu",
]

LIBRARY = onnxruntime_path()
assert LIBRARY is not None
VERSION = OrtApi(LIBRARY).version
Edited = Callable[..., Path]


@pytest.fixture
def edited(fake_engine: FakeEngine, tmp_path: Path) -> Edited:
    """`edited(requires=[...])`: an engine of which there is no more than a manifest, with these members."""

    def edit(**members: Any) -> Path:
        engine = tmp_path / "edited"
        engine.mkdir()
        manifest = json.loads((fake_engine("float16") / "engine.json").read_text())
        requirements = members.pop("backend_requirements", {})
        manifest |= members
        manifest["backend_requirements"] |= requirements
        (engine / "engine.json").write_text(json.dumps(manifest))
        return engine

    return edit


def refusal_of(engine: Path) -> str:
    with pytest.raises(EngineLoadError) as caught:
        check_engine(engine)
    assert caught.value.code == ErrorCode.UNSUPPORTED_ENGINE
    text = str(caught.value)
    assert text.startswith(f"{engine}: ")
    assert "\n" not in text
    return text.removeprefix(f"{engine}: ")


# --------------------------------------------------------------------------------------------------------- ONNX Runtime


def test_no_package(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_onnxruntime_gpu", cuda_libraries.find_onnxruntime_gpu)
    monkeypatch.delenv(cuda_libraries.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(cuda_libraries, "PACKAGE", "no-such-package")
    assert refused() == (
        "the engine runs with ONNX Runtime on CUDA, and the package onnxruntime-gpu is not installed here: pip install "
        "'precast[cuda-runtime]'"
    )


def test_a_variable_that_names_no_file(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit, "find_onnxruntime_gpu", cuda_libraries.find_onnxruntime_gpu)
    monkeypatch.setenv(cuda_libraries.PATH_VARIABLE, str(tmp_path / "gone.so"))
    assert refused() == (
        f"the engine runs with ONNX Runtime on CUDA, and there is no {tmp_path}/gone.so, which "
        "PRECAST_ONNXRUNTIME_CUDA names"
    )


def test_a_file_that_is_no_library(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.so"
    text.write_text("something")
    monkeypatch.setattr(toolkit, "find_onnxruntime_gpu", lambda: text)
    assert refused() == f"the engine runs with ONNX Runtime on CUDA, and {text}: file too short"


def test_a_provider_that_is_no_library(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = tmp_path / cuda_libraries.CUDA_PROVIDER_LIBRARY
    provider.write_text("something")
    monkeypatch.setattr(toolkit, "find_onnxruntime_gpu", lambda: tmp_path / "libonnxruntime.so")
    monkeypatch.setattr(toolkit, "preload_cuda_libraries", cuda_libraries.preload_cuda_libraries)
    assert refused() == (
        f"the engine runs with ONNX Runtime on CUDA, and {provider} is not a shared library of this platform"
    )


def test_no_libraries_of_cuda(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "preload_cuda_libraries", lambda library: ["libcublas.so.13", "libcudart.so.13"])
    assert refused() == (
        "ONNX Runtime on CUDA needs libcublas.so.13, libcudart.so.13, which neither the packages installed here nor "
        "the loader's path have: pip install 'precast[cuda-runtime]'"
    )


def test_a_provider_with_a_runtime_of_its_own(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In which an error could not be forgotten."""
    monkeypatch.setattr(toolkit, "open_forget_error", cuda_libraries.open_forget_error)
    monkeypatch.setattr(cuda_libraries, "needed_libraries", lambda provider: ["libc.so.6"])
    text = refused()
    assert text.startswith("the engine runs with ONNX Runtime on CUDA, and ")
    assert text.endswith("is not linked against CUDA's runtime, libcudart.so: use that of onnxruntime-gpu")


@pytest.mark.parametrize("needed", ["99.0", f"{VERSION.split('.')[0]}.999"])
def test_an_older_onnx_runtime(needed: str, edited: Edited) -> None:
    assert refusal_of(edited(backend_requirements={"onnxruntime_min": needed})) == (
        f"the engine needs ONNX Runtime {needed} or later, {LIBRARY} is {VERSION}: pip install --upgrade "
        "onnxruntime-gpu"
    )


@pytest.mark.parametrize("needed", ["0.99", "1.9", ".".join(VERSION.split(".")[:2])])
def test_an_onnx_runtime_that_is_new_enough(needed: str, edited: Edited) -> None:
    """Releases are numbers: 1.9 is before 1.31."""
    opened, _ = check_engine(edited(backend_requirements={"onnxruntime_min": needed}))
    assert isinstance(opened, CudaToolkit)
    assert opened.driver is driver


# ---------------------------------------------------------------------------------------------------------------- CUDA


def test_no_cuda_python(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # importing it fails, in the words that follow
    assert refused() == (
        "the engine runs on an NVIDIA GPU through cuda-python, which cannot be imported here (import of "
        "cuda.bindings.driver halted; None in sys.modules): pip install 'precast[cuda-runtime]'"
    )


def test_no_driver(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-python's own exception, of several lines, as the real one raises where there is no libcuda."""

    def init(flags: int) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1\nlooked for it everywhere")

    monkeypatch.setattr(driver, "cuInit", init)
    assert refused() == (
        "the engine runs on an NVIDIA GPU, and CUDA finds none here (Failed to dlopen libcuda.so.1): load it on a "
        "machine with a GPU and its driver, or build an engine for the CPU"
    )


def test_a_gpu_is_missed_before_libraries_of_cuda(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is to install these for nothing."""
    monkeypatch.setattr(toolkit, "preload_cuda_libraries", lambda library: ["libcublas.so.13"])
    assert refused(num_devices=0).startswith("the engine runs on an NVIDIA GPU, and CUDA finds none here ")


# ------------------------------------------------------------------------------------------------------------- devices


def test_fewer_gpus_than_ranks(fake_engine: FakeEngine) -> None:
    driver.reset(num_devices=1)
    driver.cuInit(0)
    manifest = read_manifest(fake_engine("float16", tensor_parallel_size=2))
    with pytest.raises(EngineLoadError) as caught:
        check_device("engine", manifest, driver, 0)
    assert str(caught.value) == (
        "engine: the engine has 2 ranks, which need a GPU each, and this process sees 1: rebuild it for fewer, or "
        "check CUDA_VISIBLE_DEVICES"
    )


def test_each_rank_looks_at_its_own_gpu(fake_engine: FakeEngine) -> None:
    driver.reset(num_devices=2, capability=(7, 5), name="Old GPU")
    driver.cuInit(0)
    manifest = read_manifest(fake_engine("float16", tensor_parallel_size=2))
    with pytest.raises(EngineLoadError, match=r"^engine: GPU 1 \(Old GPU\) has compute capability 7\.5, "):
        check_device("engine", manifest, driver, 1)
    assert [arguments for call, *arguments in driver.calls if call == "cuDeviceGet"] == [[1]]


@pytest.mark.parametrize("target", [("portable",), ("sm80", "sm90")])
def test_a_gpu_that_is_too_old(target: tuple[str, ...], refused: Callable[..., str]) -> None:
    assert refused({"target": target}, capability=(7, 5), name="NVIDIA T4") == (
        "GPU 0 (NVIDIA T4) has compute capability 7.5, and the engine needs 8.0 or later: build one for the CPU"
    )


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 1)])
def test_gpus_that_an_engine_is_for(capability: tuple[int, int], fake_engine: FakeEngine) -> None:
    """Those that there is no machine code for compile what lies beside it."""
    driver.reset(capability=capability)
    check_engine(fake_engine("float16", target=("sm80",)))


def test_too_little_memory(refused: Callable[..., str], fake_engine: FakeEngine) -> None:
    files = read_manifest(fake_engine("float16")).files
    needed = files["rank0/model.onnx"].size + files["rank0/weights.bin"].size
    assert refused(total_bytes=needed - 1, name="Small GPU") == (
        f"rank 0 of the engine is {needed} bytes, and GPU 0 (Small GPU) has {needed - 1} bytes of memory: quantise the "
        "engine, or build it for more ranks"
    )


# ------------------------------------------------------------------------------------------------------------ manifests


def test_ops_and_layouts_that_this_version_lacks(edited: Edited) -> None:
    engine = edited(requires=["ai.precast.New/7", "ai.precast.RmsNorm/1", "kvrow.f64/1"])
    with pytest.raises(UnsupportedEngineError) as caught:
        read_manifest(engine, SUPPORT)
    assert str(caught.value) == (
        f"{engine}/engine.json: the engine requires ai.precast.New/7, kvrow.f64/1, which this precast {__version__} "
        "does not have: update precast, or rebuild the engine with this version"
    )


def test_the_ops_that_engines_require_are_known(fake_engine: FakeEngine) -> None:
    engine = fake_engine("float16", tensor_parallel_size=2)
    manifest = read_manifest(engine, SUPPORT)
    assert "ai.precast.AllReduce/1" in manifest.requires
    assert "kvrow.f16/1" in manifest.requires


def test_a_file_that_is_missing(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """It is missed before a process is started."""
    engine = tmp_path / "engine"
    shutil.copytree(fake_engine("float16"), engine)
    (engine / "rank0" / "weights.bin").unlink()
    with pytest.raises(EngineLoadError, match=r"rank0/weights\.bin: missing, engine\.json lists it with "):
        Engine(engine)
