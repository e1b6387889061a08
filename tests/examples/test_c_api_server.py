"""examples/c_api_server: compiles without a warning, and serves many clients under sanitizers."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from precast.runtime.library import library_path, onnxruntime_path

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = REPOSITORY / "examples" / "c_api_server" / "main.cpp"
INCLUDE = REPOSITORY / "runtime" / "native" / "include"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_many_clients_share_an_engine(sanitizers: str, tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    executable = tmp_path / "c_api_server"
    flags = ["-g", "-O1", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    files = [str(MAIN), str(library_path()), "-o", str(executable)]
    subprocess.run(["c++", "-std=c++20", *WARNINGS, *flags, f"-I{INCLUDE}", *files], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(library_path().parent),
        "PRECAST_ONNXRUNTIME": str(onnxruntime_path()),
        # The library and ONNX Runtime are not instrumented here: the program's own threads are.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
    }
    # ThreadSanitizer wants its shadow memory where address randomisation may put something else.
    is_allowed = subprocess.run(["setarch", "-R", "true"], capture_output=True, check=False).returncode == 0
    command = [*(["setarch", "-R"] if is_allowed else []), str(executable), str(tiny_engine("gqa")), "16", "10"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("info: loaded ")
    counts, stats = done.stdout.splitlines()
    completed, hung_up, failed, tokens = map(int, re.findall(r"\d+", counts))
    assert (completed + hung_up, failed) == (160, 0)
    assert hung_up > 0
    figures = json.loads(stats)
    assert figures["num_completed_requests"] == 160
    assert figures["output_tokens"] == tokens
    assert figures["num_free_blocks"] == figures["num_blocks"]
    assert figures["reused_blocks"] > 0
