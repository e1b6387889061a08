"""Kernels compiled for real, by processes beside the one that builds, and what becomes of these when one ends."""

import os
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precast.builder.backends import compile_kernels, kernel_process
from precast.builder.backends.kernel_process import compile_sets
from precast.builder.errors import BuildError
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.serialize import from_bytes
from precast.plugins.gated_activation.device.launches import kernel_specs as gated_activation_specs
from precast.plugins.gated_activation.device.op_fields import GatedActivationFields
from precast.plugins.rms_norm.device.launches import kernel_specs as rms_norm_specs
from precast.plugins.rms_norm.device.op_fields import RmsNormFields
from tests.builder.ranks.test_rank_processes import ignores_interrupts, wait_for
from tests.processes import children_of, is_running

REPOSITORY = Path(__file__).parents[3]
(ACTIVATION,) = gated_activation_specs(GatedActivationFields("silu", 160, "bfloat16"))
(NORM,) = rms_norm_specs(RmsNormFields(64, 1e-5, 1, "float16"))


def refused(spec: KernelSpec) -> str:
    with pytest.raises(BuildError) as raised:
        compile_sets([(spec,)], ["sm_90"])
    return str(raised.value)


def test_sets_are_what_launchers_open() -> None:
    """Machine code for each target and, last, PTX for later GPUs."""
    one, other = (from_bytes(zlib.decompress(data)) for data in compile_sets([(ACTIVATION,), (NORM,)], ["sm_90"]))
    for kernels, name in ((one, "gated_activation"), (other, "rms_norm")):
        assert [(kernel.name, kernel.target, kernel.kind) for kernel in kernels] == [
            (name, "sm_90", "cubin"),
            (name, "sm_80", "ptx"),
        ]
        cubin, ptx = (kernel.code for kernel in kernels)
        assert cubin.startswith(b"\x7fELF")
        assert f".entry {name}(".encode() in ptx
        for kernel in kernels:
            parameters = [parameter.name for parameter in kernel.parameters]
            assert parameters[-2:] == ["global_scratch", "profile_scratch"]
    assert [parameter.name for parameter in one[0].parameters[:-2]] == ["gate_up", "output"]
    assert compile_sets([], ["sm_90"]) == []


def test_this_process_does_not_import_triton() -> None:
    program = (
        "import sys; from precast.builder.backends.onnxruntime_cuda import backend; "
        "import precast.builder.backends.kernel_process; sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestWhatGoesWrong:
    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            (
                replace(ACTIVATION, parameters=ACTIVATION.parameters[:1]),
                (
                    "kernel 'gated_activation' takes gate_up, output, I, J; the spec has parameters gate_up and "
                    "constants I, J"
                ),
            ),
            (
                replace(ACTIVATION, constants=(("I", 160), ("J", 1000))),
                "kernel 'gated_activation' for sm_90: arange's range must be a power of 2",
            ),
        ],
        ids=["parameters", "triton"],
    )
    def test_a_kernel_that_cannot_be_compiled(self, spec: KernelSpec, said: str) -> None:
        before = set(children_of(os.getpid()))
        assert refused(spec) == f"kernels cannot be compiled: {said}"
        assert set(children_of(os.getpid())) <= before

    @pytest.mark.parametrize(
        ("spec", "target", "said"),
        [
            (replace(ACTIVATION, num_warps=3), "sm_90", "num_warps must be a power of 2"),
            (replace(ACTIVATION, module="nowhere"), "sm_90", "No module named 'nowhere'"),
            (ACTIVATION, "sm_91", "ptxas.* Value 'sm_91a' is not defined for option 'gpu-name'"),
        ],
        ids=["warps", "module", "assembler"],
    )
    def test_whatever_the_compilers_raise(self, spec: KernelSpec, target: str, said: str) -> None:
        """The last is the assembler's, which quotes its command line behind it."""
        with pytest.raises(ValueError, match=rf"^kernel 'gated_activation' for {target}: {said}$"):
            compile_kernels._compile((spec, target, "cubin"))

    @pytest.mark.parametrize(
        ("program", "said"),
        [
            ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL, as the system does when memory runs out"),
            ("raise RuntimeError('a fault of ours')", "ended with exit status 1: .*RuntimeError: a fault of ours"),
            ("import sys; sys.stdin.read()", "ended with exit status 0"),
            ("import sys; sys.stdin.read(); print('{\"kernels\"', end='')", "ended with exit status 0"),
            ("print('{\"kernels\": []}'); import sys; sys.exit('late')", "ended with exit status 1: late"),
        ],
    )
    def test_a_process_that_dies(self, program: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_process, "python_command", lambda module: [sys.executable, "-c", program])
        with pytest.raises(BuildError, match=rf"^the process that compiles kernels {said}$"):
            compile_sets([(ACTIVATION,)], ["sm_90"])

    def test_a_process_that_compiles_beside_others_and_dies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = "a process that compiles was killed, as the system does when memory runs out"
        monkeypatch.setattr(compile_kernels, "_compile", _die)
        with pytest.raises(ValueError, match=rf"^{said}$"):
            compile_kernels.compile_beside_each_other([ACTIVATION], ["sm_90"])

    def test_exceptions_of_compilers_need_not_be_readable_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class CrookedError(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("quoted code\n   ^\nwhat is wrong\nRepro command: ptxas x\n\n")

        def compile_kernel(*job: object) -> None:
            raise CrookedError(1, 2)

        monkeypatch.setattr(compile_kernels, "compile_kernel", compile_kernel)
        with pytest.raises(ValueError, match=r"^kernel 'gated_activation' for sm_90: what is wrong$"):
            compile_kernels._compile((ACTIVATION, "sm_90", "cubin"))


def _die(job: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# The compilers' processes wait instead of compiling.
SLOW = """
from precast.builder import processes
from precast.builder.backends.kernel_process import compile_sets
from tests.builder.onnxruntime_cuda.test_kernel_process import ACTIVATION, NORM

end = "from {module} import main; sys.exit(main())"
assert end in processes._PROGRAM
slow = "from tests.builder.onnxruntime_cuda import slow_compiler; sys.exit(slow_compiler.main())"
processes._PROGRAM = processes._PROGRAM.replace(end, slow)
compile_sets([(ACTIVATION,), (NORM,)], ["sm_90"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_build(number: signal.Signals) -> None:
    """Neither the process that compiles nor those that it starts, of which there are two here or more."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as parent:
        (child,) = wait_for(lambda: children_of(parent.pid), 1)
        # Beside those that compile there is one of multiprocessing's own, which watches over its resources.
        wait_for(lambda: [each for each in children_of(child) if ignores_interrupts(each)], 2)
        everyone = [child, *children_of(child)]
        parent.send_signal(number)
        parent.wait(timeout=20)
    wait_for(lambda: [each for each in everyone if not is_running(each)], len(everyone))


# ---------------------------------------------------------------------------------------------------- equal everywhere

HASH_KERNELS = """
import hashlib, sys
if len(sys.argv) > 1:
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.insert(0, sys.argv[1])
from precast.plugins.collectives.device.one_shot import one_shot_specs
from precast.plugins.device.compile_triton import compile_kernels
from precast.plugins.gated_activation.device.launches import kernel_specs as gated_activation
from precast.plugins.gated_activation.device.op_fields import GatedActivationFields
from precast.plugins.greedy_tokens.device.launches import kernel_specs as greedy_tokens
from precast.plugins.greedy_tokens.device.op_fields import GreedyTokensFields
from precast.plugins.rms_norm.device.launches import kernel_specs as rms_norm
from precast.plugins.rms_norm.device.op_fields import RmsNormFields

specs = (
    *rms_norm(RmsNormFields(64, 1e-5, 1, "bfloat16")),
    *greedy_tokens(GreedyTokensFields(320)),
    *gated_activation(GatedActivationFields("silu", 160, "bfloat16")),
    *one_shot_specs(2, "bfloat16"),
)
import precast.plugins
print(precast.plugins.__file__)
for kernel in compile_kernels(specs, ["sm_90"]):
    print(kernel.name, kernel.kind, len(kernel.code), hashlib.sha256(kernel.code).hexdigest())
"""


def test_kernels_do_not_say_where_they_were_compiled(tmp_path: Path) -> None:
    """The same bytes of a package that lies elsewhere, with other hashes of text, compiled anew."""
    copy = tmp_path / "elsewhere" / "precast"
    shutil.copytree(
        REPOSITORY / "plugins", copy / "plugins", ignore=shutil.ignore_patterns("*.cpp", "*.h", "__pycache__")
    )
    for path in (REPOSITORY / "precast").glob("*.py"):
        shutil.copy(path, copy)

    def hashes(cache: str, *arguments: str) -> tuple[str, list[str]]:
        environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / cache), "PYTHONHASHSEED": str(len(cache))}
        command = [sys.executable, "-c", HASH_KERNELS, *arguments]
        place, *lines = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout.splitlines()
        return place, lines

    here, expected = hashes("one")
    there, found = hashes("another", str(copy.parent))
    assert here == str(REPOSITORY / "plugins" / "__init__.py")
    assert there == str(copy / "plugins" / "__init__.py")
    assert len(expected) == 2 * 5
    assert found == expected
