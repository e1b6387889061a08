"""An editable install maps the rooms, and sees a new file without being installed again."""

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

WITHOUT_NATIVE = "from scikit_build_core.build import build_editable; build_editable('dist', {'wheel.cmake': 'false'})"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A copy of the Python files, so that the test may add one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("precast", "builder", "checkpoints", "plugins", "runtime"):
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "native", "cpu"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy(repository / name, copy)
    return copy


@pytest.fixture(scope="module")
def editable_site(checkout: Path, tmp_path_factory: pytest.TempPathFactory, run: Callable[..., str]) -> Path:
    run(sys.executable, "-c", WITHOUT_NATIVE, cwd=checkout)
    site = tmp_path_factory.mktemp("editable_site")
    (wheel,) = (checkout / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_installed(run: Callable[..., str], site: Path, statements: str) -> str:
    """Runs statements with `site` as the only site-packages."""
    return run(sys.executable, "-I", "-S", "-c", f"import site; site.addsitedir({str(site)!r})\n{statements}")


@pytest.mark.parametrize("room", ["builder", "checkpoints", "plugins", "runtime"])
def test_each_room_is_imported_from_the_checkout(
    checkout: Path, editable_site: Path, room: str, run: Callable[..., str]
) -> None:
    find = f"import importlib.util; print(importlib.util.find_spec('precast.{room}').origin)"
    assert run_installed(run, editable_site, find) == f"{checkout / room / '__init__.py'}\n"


@pytest.mark.parametrize(("folder", "module"), [("precast", "precast.added"), ("builder", "precast.builder.added")])
def test_a_new_file_is_seen(
    checkout: Path, editable_site: Path, folder: str, module: str, run: Callable[..., str]
) -> None:
    (checkout / folder / "added.py").write_text("VALUE = 42\n")
    assert run_installed(run, editable_site, f"from {module} import VALUE; print(VALUE)") == "42\n"
