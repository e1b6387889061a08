"""examples/quickstart: builds the example checkpoint, and runs the engine where nothing that builds can be imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from precast import LLM, SamplingParams

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"


def run_quickstart(*arguments: str) -> str:
    command = [sys.executable, str(QUICKSTART / "quickstart.py"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "engine"


@pytest.fixture(scope="module")
def output(engine: Path) -> str:
    return run_quickstart("--prompt", "The import statement", "--max-tokens", "24", "--engine", str(engine))


@pytest.mark.parametrize(
    "line",
    [
        r"build: pydoc-llama built and saved to .*/engine in \d+\.\d\d s",
        r"load: \d+\.\d{3} s",
        r"first token: \d+\.\d{3} s after the prompt",
        r"speed: \d+\.\d tokens/s, \d+ tokens",
        r"imported: precast, tokenizers",
    ],
)
def test_it_prints_its_figures(output: str, line: str) -> None:
    assert re.search(f"^{line}$", output, re.MULTILINE)


def test_it_prints_the_text_of_the_engine(output: str, engine: Path) -> None:
    with LLM(engine) as llm:
        params = SamplingParams(temperature=0, max_tokens=24)
        text = llm.generate("The import statement", params, use_tqdm=False).outputs[0].text
    assert f"\nThe import statement{text}\n" in output


def test_running_it_again_replaces_the_engine(output: str, engine: Path) -> None:
    assert "speed:" not in run_quickstart("--max-tokens", "1", "--engine", str(engine))


@pytest.mark.parametrize("package", ["torch", "transformers", "onnx", "onnxruntime"])
def test_the_refusal_refuses(package: str) -> None:
    program = f"import sys, run_engine; sys.meta_path.insert(0, run_engine.Refusal()); import {package}"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(QUICKSTART)!r}); {program}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert f"ImportError: {package} must not be imported here" in done.stderr
