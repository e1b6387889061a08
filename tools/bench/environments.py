"""One virtual environment per engine, under the folder that the measurements are kept in.

An environment that was made with the same steps is not made again. Versions are pinned: figures are of these.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PRECAST_SOURCES = ("CMakeLists.txt", "pyproject.toml", "precast", "builder", "runtime", "plugins", "checkpoints")
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".txt", ".toml"}


@dataclass(frozen=True)
class Recipe:
    """How an environment is made.

    Attributes:
        installs: pip's arguments, one tuple per call.
        variables: of the environment, for what pip builds.
        sources: hash of what is built from this repository; another one makes another recipe.
    """

    installs: tuple[tuple[str, ...], ...]
    variables: dict[str, str] = field(default_factory=dict)
    sources: str = ""


# llama.cpp is compiled on this machine, for its processor; its image encoders (LLAVA_BUILD) are not needed.
# torch comes first, in one exact version, and stays: others would bring their own, or one with CUDA.
RECIPES = {
    "llama-cpp": Recipe(
        (("numpy", "gguf==0.19.0"), ("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36")),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    ),
    "ort-genai": Recipe(
        (
            ("torch==2.13.0",),
            (
                "torch==2.13.0",
                "onnxruntime-genai==0.18.0",
                "onnxruntime==1.32.0",
                "transformers==5.24.0",
                "onnx==1.23.2",
                "onnx-ir==1.1.0",
            ),
        )
    ),
}


class Environments:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: dict[
            str, Path
        ] = {}  # checked once: sources that change later do not disturb what is being measured

    def recipe(self, name: str) -> Recipe:
        return _precast_recipe(self._folder) if name == "precast" else RECIPES[name]

    def python(self, name: str) -> Path:
        """The interpreter of an environment, which is made first where it is missing or out of date. Minutes, then.

        Raises:
            subprocess.CalledProcessError: an installation failed; pip has said why.
        """
        if name not in self._ready:
            self._ready[name] = self._make(name)
        return self._ready[name]

    def _make(self, name: str) -> Path:
        recipe = self.recipe(name)
        folder = self._folder / name
        stamp = folder / "recipe"
        python = folder / "bin" / "python"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != repr(recipe):
            print(f"making the environment {folder}; this takes minutes", file=sys.stderr)
            if name != "precast":  # precast's changes with its sources: it is installed over the one that is there
                shutil.rmtree(folder, ignore_errors=True)
            if not python.exists():
                subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            for arguments in recipe.installs:
                command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
                subprocess.run(command, check=True, env=os.environ | recipe.variables, stdout=sys.stderr)
            stamp.write_text(repr(recipe), encoding="utf-8")
        return python


def source_hash(repository: Path, sources: Iterable[str] = PRECAST_SOURCES) -> str:
    """SHA-256 over the names and contents of the files that a wheel of precast is made from."""
    digest = hashlib.sha256()
    for source in sources:
        root = repository / source
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        for file in files:
            if file.suffix in SOURCE_SUFFIXES and file.is_file():
                digest.update(f"{file.relative_to(repository)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _precast_recipe(folder: Path) -> Recipe:
    """A wheel of this repository, as users have it. pip installs a folder anew even where its version is there."""
    build_dir = folder.resolve() / "precast-build"  # not the one that an editable install is built in
    install = (f"{REPOSITORY}[build]", f"--config-settings=build-dir={build_dir}")
    return Recipe((install,), sources=source_hash(REPOSITORY))
