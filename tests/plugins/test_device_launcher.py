"""What is asked of the CUDA driver to run compiled kernels: order, arguments, errors."""

from dataclasses import replace

import pytest

from precast.plugins.device.compiled_kernel import CompiledKernel, CompiledParameter
from precast.plugins.device.launch import Launch
from precast.plugins.device.launcher import DeviceError, Launcher
from tests.plugins.fake_cuda_driver import FakeDriver

PARAMETERS = tuple(
    CompiledParameter(name, c_type)
    for name, c_type in (
        ("x", "pointer"),
        ("y", "pointer"),
        ("n", "int32"),
        ("global_scratch", "pointer"),
        ("profile_scratch", "pointer"),
    )
)
SIZES = (8, 8, 4, 8, 8)
CUBIN = CompiledKernel("scale", "sm_89", "cubin", b"cubin", 1024, 4, PARAMETERS)
PTX = CompiledKernel("scale", "sm_80", "ptx", b"ptx", 1024, 4, PARAMETERS)
LAUNCH = Launch("scale", (7, 2, 1), ("x", "y"), (("n", -5),))
ADDRESSES = {"x": 1 << 40, "y": 4096}


def test_a_kernel_is_loaded_once_and_launched_with_its_arguments() -> None:
    driver = FakeDriver(parameter_sizes=SIZES)
    launcher = Launcher(driver, [CUBIN, PTX])
    for stream in (77, 78):
        launcher.launch(LAUNCH, ADDRESSES, stream)
    arguments = (1 << 40, 4096, -5, 0, 0)
    assert driver.calls == [
        ("cuCtxGetDevice",),
        ("cuModuleLoadData", b"cubin"),
        ("cuModuleGetFunction", "module of b'cubin'", b"scale"),
        ("cuLaunchKernel", "function scale", (7, 2, 1, 128, 1, 1), 1024, 77, arguments),
        ("cuLaunchKernel", "function scale", (7, 2, 1, 128, 1, 1), 1024, 78, arguments),
    ]


def test_a_device_without_machine_code_compiles_the_ptx() -> None:
    driver = FakeDriver(major=12, minor=1)
    Launcher(driver, [CUBIN, PTX])
    assert ("cuModuleLoadData", b"ptx\0") in driver.calls


def test_much_shared_memory_is_asked_for() -> None:
    driver = FakeDriver()
    Launcher(driver, [replace(CUBIN, shared_bytes=90_000), replace(CUBIN, name="other", shared_bytes=48 << 10)])
    asked = [call for call in driver.calls if call[0] == "cuFuncSetAttribute"]
    assert asked == [("cuFuncSetAttribute", "function scale", "shared", 90_000)]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("cuCtxGetDevice", "cuCtxGetDevice: no kernel image"),
        ("cuModuleLoadData", r"cuModuleLoadData of scale for sm_89 \(cubin\): no kernel image is available"),
        ("cuModuleGetFunction", "cuModuleGetFunction of scale: no kernel image"),
        ("cuLaunchKernel", "cuLaunchKernel: no kernel image is available for execution on the device"),
    ],
)
def test_what_the_driver_refuses_is_said(call: str, text: str) -> None:
    driver = FakeDriver(refuse=call, parameter_sizes=SIZES)
    with pytest.raises(DeviceError, match=f"^{text}"):
        Launcher(driver, [CUBIN]).launch(LAUNCH, ADDRESSES, 0)


def test_a_device_that_no_kernel_was_compiled_for() -> None:
    with pytest.raises(ValueError, match=r"^kernel 'scale' was not compiled for a device of compute capability 7\.5$"):
        Launcher(FakeDriver(major=7, minor=5), [CUBIN, PTX])


@pytest.mark.parametrize(
    ("launch", "addresses", "text"),
    [
        (replace(LAUNCH, buffers=("y", "x")), ADDRESSES, "kernel scale takes x, y, n, .* the launch gives y, x, n, "),
        (
            replace(LAUNCH, scalars=()),
            ADDRESSES,
            "kernel scale takes x, y, n, .* the launch gives x, y, global_scratch",
        ),
        (LAUNCH, {"x": 16}, "kernel scale needs the address of y$"),
        (LAUNCH, {"x": 16, "y": 24}, "kernel scale: the address of y must be a multiple of 16$"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(launch: Launch, addresses: dict[str, int], text: str) -> None:
    driver = FakeDriver(parameter_sizes=SIZES)
    with pytest.raises(ValueError, match=text):
        Launcher(driver, [CUBIN]).launch(launch, addresses, 0)
    assert driver.calls[-1][0] == "cuModuleGetFunction"
