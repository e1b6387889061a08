"""What refuses an engine before any of its files but the manifest is touched: the whole sentence, each time."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_manifest import TensorRtRequirements
from precast.runtime.errors import EngineLoadError, ErrorCode
from precast.runtime.tensorrt.toolkit import TensorRtToolkit, check_device, open_toolkit
from tests.runtime.tensorrt.fake_engine import put_fakes_in_place
from tests.runtime.tensorrt.fake_packages import tensorrt_rtx as trt
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.worlds import FakeEngine, check_engine

VERSION = trt.__version__


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_in_place(monkeypatch)


@pytest.fixture
def refused(fake_engine: FakeEngine, tmp_path: Path) -> Callable[..., str]:
    """`refused(capability=(7, 5))`: what is said of an engine on such a machine, without its path.

    `build` are options that it is built with. The engine is a manifest alone: nothing else of it could be read.
    """

    def refusal(build: dict[str, Any] | None = None, **settings: Any) -> str:
        engine = tmp_path / "engine"
        engine.mkdir()
        shutil.copy(fake_engine("float16", **(build or {})) / "engine.json", engine)
        driver.reset(**settings)
        with pytest.raises(EngineLoadError) as caught:
            check_engine(engine)
        assert type(caught.value) is EngineLoadError
        assert caught.value.code == ErrorCode.UNSUPPORTED_ENGINE
        assert driver.misuse == []
        assert driver.leaks() == []  # not even a context
        text = str(caught.value)
        assert text.startswith(f"{engine}: ")
        assert "\n" not in text
        return text.removeprefix(f"{engine}: ")

    return refusal


# ------------------------------------------------------------------------------------------------------------ packages


def test_no_tensorrt(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # importing it fails, in the words that follow
    assert refused() == (
        f"the engine needs tensorrt_rtx {VERSION}, which cannot be imported here (import of tensorrt_rtx halted; None "
        f"in sys.modules): pip install tensorrt-rtx-cu13=={VERSION}"
    )


def test_the_wheel_that_is_named_is_that_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full TensorRT's has the name of its module."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    requirements = _requirements("tensorrt", "11.0.0")
    with pytest.raises(EngineLoadError, match=r"in sys.modules\): pip install tensorrt==11\.0\.0$"):
        open_toolkit("engine", requirements)


def _requirements(library: str, version: str) -> TensorRtRequirements:
    values = {"library": library, "library_version": version, "targets": ("portable",), "min_capability": 80}
    names = dict.fromkeys(TensorRtRequirements.__dataclass_fields__)
    requirements = object.__new__(TensorRtRequirements)
    for name, value in {**names, **values}.items():
        object.__setattr__(requirements, name, value)
    return requirements


def test_another_version_of_tensorrt(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "__version__", "1.8.0.2")
    assert refused() == (
        f"the engine was built with tensorrt_rtx {VERSION}, and its plans load in no other version; this is 1.8.0.2: "
        f"install {VERSION}, or rebuild the engine with this one"
    )


def test_no_cuda_python(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # importing it fails, in the words that follow
    assert refused() == (
        "the engine runs on an NVIDIA GPU through cuda-python, which cannot be imported here (import of "
        "cuda.bindings.driver halted; None in sys.modules): pip install 'precast[tensorrt-runtime]'"
    )


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_no_driver_for_the_real_cuda_bindings(fake_engine: FakeEngine) -> None:
    """In a process that finds the real one, and no libcuda: what it raises then is its own."""
    engine = fake_engine("float16")
    script = """
import sys
from pathlib import Path
from tests.runtime.tensorrt.fake_packages import tensorrt_rtx
sys.modules["tensorrt_rtx"] = tensorrt_rtx
from cuda.bindings import driver
try:
    driver.cuInit(0)
except Exception as error:
    print(type(error).__name__)
else:
    print("there is a driver")
from precast.runtime.errors import EngineLoadError
from tests.runtime.tensorrt.worlds import check_engine
try:
    check_engine(Path(sys.argv[1]))
except EngineLoadError as error:
    print(error.code, error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(engine)], capture_output=True, text=True, check=True, cwd=_repository()
    )
    kind, *rest = result.stdout.splitlines()
    if kind == "there is a driver":
        pytest.skip("there is an NVIDIA driver here, and the refusal is for machines without")
    assert kind == "DynamicLibNotFoundError"
    (line,) = rest
    assert line.startswith(f"5 {engine}: the engine runs on an NVIDIA GPU, and CUDA finds none here (")
    assert "driver is installed" in line
    assert line.endswith("): load it on a machine with a GPU and its driver, or build an engine for the CPU")


def _repository() -> Path:
    return Path(__file__).parents[3]


# ------------------------------------------------------------------------------------------------------------- devices


def test_no_gpu(refused: Callable[..., str]) -> None:
    assert refused(num_devices=0) == (
        "the engine runs on an NVIDIA GPU, and CUDA finds none here (cuInit: no device): load it on a machine with a "
        "GPU and its driver, or build an engine for the CPU"
    )


@pytest.mark.parametrize(("variable", "said"), [("7", "7"), (None, "not set")])
def test_gpus_that_this_process_does_not_see(
    variable: str | None, said: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where cuInit works and counts none, as old drivers have it."""
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setattr(driver, "cuDeviceGetCount", lambda: (driver.CUresult.CUDA_SUCCESS, 0))
    assert refused() == (
        "the engine runs on an NVIDIA GPU, and this process sees none: check CUDA_VISIBLE_DEVICES, which is " + said
    )


def test_fewer_gpus_than_ranks(fake_engine: FakeEngine) -> None:
    driver.reset(num_devices=2)
    driver.cuInit(0)
    manifest = read_manifest(fake_engine("float16"))
    object.__setattr__(manifest, "ranks", manifest.ranks * 3)
    with pytest.raises(EngineLoadError) as caught:
        check_device("engine", manifest, driver, 0)
    assert caught.value.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(caught.value) == (
        "engine: the engine has 3 ranks, which need a GPU each, and this process sees 2: rebuild it for fewer, or "
        "check CUDA_VISIBLE_DEVICES"
    )


def test_each_rank_looks_at_its_own_gpu(fake_engine: FakeEngine) -> None:
    driver.reset(num_devices=2, capability=(7, 5), name="Old GPU")
    driver.cuInit(0)
    manifest = read_manifest(fake_engine("float16"))
    object.__setattr__(manifest, "ranks", manifest.ranks * 2)
    with pytest.raises(EngineLoadError, match=r"^engine: GPU 1 \(Old GPU\) has compute capability 7\.5, "):
        check_device("engine", manifest, driver, 1)
    assert [arguments for call, *arguments in driver.calls if call == "cuDeviceGet"] == [[1]]


def test_a_gpu_that_is_too_old(refused: Callable[..., str]) -> None:
    assert refused(capability=(7, 5), name="NVIDIA T4") == (
        "GPU 0 (NVIDIA T4) has compute capability 7.5, and the engine needs 8.0 or later: rebuild it for this GPU"
    )


def test_a_gpu_that_is_too_old_for_a_format(refused: Callable[..., str]) -> None:
    settings = {"capability": (8, 6), "name": "NVIDIA A10"}
    assert refused({"target": ("sm89", "sm120")}, **settings) == (
        "GPU 0 (NVIDIA A10) has compute capability 8.6, and the engine needs 8.9 or later: rebuild it for this GPU"
    )


def test_a_gpu_that_is_no_target(refused: Callable[..., str]) -> None:
    settings = {"capability": (12, 1), "name": "NVIDIA GB10"}
    assert refused({"target": ("sm89", "sm120")}, **settings) == (
        "GPU 0 (NVIDIA GB10) has compute capability 12.1, and the engine was built for sm89, sm120: rebuild it with "
        "--target sm121, or portable"
    )


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_gpus_that_a_portable_engine_is_for(capability: tuple[int, int], fake_engine: FakeEngine) -> None:
    driver.reset(capability=capability)
    toolkit, _ = check_engine(fake_engine("float16"))
    assert toolkit.driver is driver
    assert isinstance(toolkit, TensorRtToolkit)
    assert toolkit.trt is trt


def test_gpus_that_a_target_is_for(fake_engine: FakeEngine) -> None:
    driver.reset(capability=(12, 0))
    check_engine(fake_engine("float16", target=("sm89", "sm120")))


def test_too_little_memory(refused: Callable[..., str], fake_engine: FakeEngine) -> None:
    files = read_manifest(fake_engine("float16", weights="separate")).files
    needed = files["rank0/model.plan"].size + files["rank0/weights.bin"].size
    settings = {"total_bytes": needed - 1, "name": "Small GPU"}
    assert refused({"weights": "separate"}, **settings) == (
        f"rank 0 of the engine is {needed} bytes, and GPU 0 (Small GPU) has {needed - 1} bytes of memory: quantise the "
        "engine, or build it for more ranks"
    )


@pytest.mark.parametrize("call", ["cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDeviceTotalMem"])
def test_a_driver_that_refuses_something_else(call: str, fake_engine: FakeEngine) -> None:
    """That is no fault of the engine's, and the driver's words must do."""
    driver.reset(fail={"call": call, "status": 999})
    with pytest.raises(RuntimeError, match=f"^{call}: unknown$"):
        check_engine(fake_engine("float16"))
