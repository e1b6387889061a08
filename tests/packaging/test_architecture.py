"""The direction of imports: precast -> builder | runtime -> plugins | checkpoints."""

import ast
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOMS = ("builder", "checkpoints", "plugins", "runtime")


def test_import_contracts_hold_in_the_wheel(wheel_site: Path, repository: Path, run: Callable[..., str]) -> None:
    """Without `site` (-S), the finder of an editable install is not there, and the wheel is what is read."""
    installed = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(wheel_site), *dict.fromkeys(installed)])}
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = "--no-cache", "--config", repository / "pyproject.toml"
    report = run(sys.executable, "-S", "-c", program, *options, env=environment)
    assert "0 broken" in report


def imported_modules(source: Path) -> set[str]:
    """Every `precast...` name that a file imports, also inside functions; `from a import b` is a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "precast"}


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_knows_the_front_door(repository: Path, room: str) -> None:
    known = {"precast", "precast.version", "precast.version.__version__"}
    inner = tuple(f"precast.{name}" for name in ROOMS)
    offenders = {
        f"{source.relative_to(repository)} imports {name}"
        for source in (repository / room).rglob("*.py")
        for name in imported_modules(source)
        if name not in known and not name.startswith(inner)
    }
    assert offenders == set()
