"""A machine that only runs engines: a fresh environment with the wheel, its dependencies and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

BUILD_ONLY = ["torch", "transformers", "onnx", "onnx_ir", "safetensors", "ml_dtypes"]


def imported_by(python: Path, run: Callable[..., str], statement: str) -> set[str]:
    """Top-level packages and rooms that `statement` imports, beyond the standard library."""
    program = f"""
import json, sys
before = set(sys.modules)
{statement}
new = {{name for name in sys.modules if name not in before}}
rooms = {{".".join(name.split(".")[:2]) for name in new if name.startswith("precast.")}}
print(json.dumps(sorted(rooms | {{name.split(".")[0] for name in new}} - sys.stdlib_module_names)))
"""
    return set(json.loads(run(python, "-I", "-c", program)))


def test_nothing_for_building_is_installed(runtime_python: Path, run: Callable[..., str]) -> None:
    program = f"""
from importlib.util import find_spec
print([name for name in {BUILD_ONLY} if find_spec(name)])
"""
    assert run(runtime_python, "-I", "-c", program) == "[]\n"


def test_import_precast_imports_nothing_else(runtime_python: Path, run: Callable[..., str]) -> None:
    assert imported_by(runtime_python, run, "import precast") == {"precast", "precast.version"}


def test_import_runtime_does_not_load_the_builder(runtime_python: Path, run: Callable[..., str]) -> None:
    imported = imported_by(runtime_python, run, "import precast.runtime")
    assert "precast.runtime" in imported
    assert not imported & {"precast.builder", *BUILD_ONLY}
    assert {name for name in imported if not name.startswith("precast")} <= {"numpy"}


def test_the_public_names_can_be_imported(runtime_python: Path, run: Callable[..., str]) -> None:
    names = run(runtime_python, "-I", "-c", "from precast import *; print(LLM.__module__, SamplingParams.__module__)")
    assert names == "precast.llm precast.sampling_params\n"


def test_the_command_is_installed(runtime_python: Path, run: Callable[..., str]) -> None:
    assert "build" in run(runtime_python.parent / "precast", "--help")
