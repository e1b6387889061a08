"""What the packaging tests share: one wheel, the same wheel unpacked, and a fresh environment that holds it.

The children run outside the repository: from inside, Python would import `./precast` without its rooms.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

Run = Callable[..., str]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command in an empty folder and returns its output; any exit status but 0 fails the test."""
    empty = tmp_path_factory.mktemp("cwd")

    def run(*command: str | Path, cwd: Path = empty, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            line = " ".join(map(str, command))
            pytest.fail(f"{line}\nexit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """The wheel of this tree. It shares its build folder with the editable install, so little is compiled."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="session")
def wheel_site(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A folder as site-packages would be after installing the wheel without its dependencies."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture(scope="session")
def runtime_python(tmp_path_factory: pytest.TempPathFactory, wheel: Path, run: Run) -> Path:
    """Python of a fresh environment that holds the wheel and its run-time dependencies, and nothing else."""
    environment = tmp_path_factory.mktemp("runtime") / "venv"
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    return python
