"""What an LLM does to its process: what it imports, that it opens no connection, how it ends, forks, is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUILDING = ["torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "ml_dtypes", "safetensors", "huggingface_hub"]
TIMEOUT_S = 60


@contextmanager
def started(program: str, *arguments: object, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is killed when the test is done with it, however that ends."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(program: str, *arguments: object, env: dict[str, str] | None = None) -> str:
    """Its output; it must end well and write nothing to stderr."""
    with started(program, *arguments, env=env) as process:
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, errors) == (0, "")
    return output


# ------------------------------------------------------------------------------------------ imports and connections

GENERATE = """
import os, sys

before = set(sys.modules)

def no_network(event, arguments):
    if event.startswith("socket.") or event in ("os.fork", "os.exec", "os.posix_spawn", "subprocess.Popen"):
        print(event, arguments, file=sys.stderr, flush=True)  # os._exit flushes nothing
        os._exit(1)

sys.addaudithook(no_network)

from precast import LLM, SamplingParams

with LLM(sys.argv[1]) as llm:
    output = llm.generate("print(", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
assert output.outputs[0].length == 4
packages = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(*sorted(packages))
"""


def test_loading_and_generating_import_little_and_connect_to_nothing(tiny_engine: Callable[..., Path]) -> None:
    assert run(GENERATE, tiny_engine("gqa")).split() == ["precast", "tokenizers"]


def test_the_audit_would_notice_a_connection() -> None:
    program = GENERATE.partition("from precast")[0] + "import socket\nsocket.create_connection(('127.0.0.1', 9))"
    with started(program, "") as process:
        assert "socket." in process.communicate(timeout=TIMEOUT_S)[1]
        assert process.returncode == 1


OPEN_FILES = """
import os
print(*(os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)), sep="\\n")
"""


def test_native_code_opens_no_socket_and_writes_no_file(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    """An audit of Python does not see what libraries do, such as collecting usage data in the home directory."""
    home = tmp_path / "home"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    generate = GENERATE.replace("with LLM(sys.argv[1]) as llm:", "llm = LLM(sys.argv[1])\nif llm:")
    output = run(generate + OPEN_FILES, tiny_engine("gqa"), env=env)
    assert "pipe:" in output
    assert "socket:" not in output
    assert str(home) not in output
    assert list(home.rglob("*")) == []


NO_BUILDER = """
import sys
sys.modules["ml_dtypes"] = None
from precast import LLM
try:
    LLM(sys.argv[1])
except ModuleNotFoundError as error:
    print(error)
"""


def test_building_where_what_builds_is_not_installed_says_what_to_install(tiny_llama: Callable[..., Path]) -> None:
    assert re.fullmatch(
        r"building an engine needs \w+, which is not installed: pip install 'precast\[build\]'\n",
        run(NO_BUILDER, tiny_llama("gqa")),
    )


# ---------------------------------------------------------------------------------------------------- the exit

UNFINISHED = """
import sys, time
from precast import LLM, SamplingParams

llm = LLM(sys.argv[1], max_batch_size=1, max_num_tokens=1)
endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
futures = [llm.generate_async([5], endless, streaming=i % 2 == 0) for i in range(5000)]
half_read = iter(futures[0])
next(half_read)
while not llm.counters["output_tokens"]:
    time.sleep(0.001)
print(llm.counters["num_queued_requests"], time.monotonic())
"""


def test_the_process_ends_at_once_with_requests_unfinished(tiny_engine: Callable[..., Path]) -> None:
    num_queued, last_line_s = run(UNFINISHED, tiny_engine("gqa")).split()
    assert time.monotonic() - float(last_line_s) < 2
    assert int(num_queued) > 4000


# ------------------------------------------------------------------------------------------------------- a fork

FORK = """
import os, sys
from precast import LLM, SamplingParams
from precast.runtime import ErrorCode, NativeError

llm = LLM(sys.argv[1])
params = SamplingParams(temperature=0, max_tokens=4)
expected = llm.generate("print(", params, use_tqdm=False).outputs
child = os.fork()
if child == 0:
    try:
        llm.generate("print(", params, use_tqdm=False)
    except NativeError as error:
        assert error.code == ErrorCode.FORKED, error
        assert f"this engine belongs to process {os.getppid()}, and this is its fork {os.getpid()}" in str(error)
    else:
        raise AssertionError("the child could use the engine")
    with LLM(sys.argv[1]) as own:
        assert own.generate("print(", params, use_tqdm=False).outputs == expected
    sys.exit(7)  # the ordinary way out, on which the child gives up its copy of the parent's engine
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert llm.generate("print(", params, use_tqdm=False).outputs == expected
"""


def test_a_fork_gets_an_error_and_may_load_its_own(tiny_engine: Callable[..., Path]) -> None:
    # From 3.12 on, Python itself warns of a fork beside threads.
    ignore = "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
    run(ignore + FORK, tiny_engine("gqa"))


FORK_OF_BUILT = """
import os, sys
from precast import LLM

with LLM(sys.argv[1]) as llm:
    child = os.fork()
    if child == 0:
        llm.shutdown()
        sys.exit(0)
    os.waitpid(child, 0)
    assert (llm.engine_dir / "engine.json").is_file()
"""


def test_a_fork_leaves_the_built_engine_to_its_parent(tiny_llama: Callable[..., Path]) -> None:
    ignore = "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
    run(ignore + FORK_OF_BUILT, tiny_llama("gqa"))


# -------------------------------------------------------------------------------------------------------- Ctrl-C

INTERRUPTED = """
import sys, threading, time
from precast import LLM, SamplingParams

llm = LLM(sys.argv[1], max_batch_size=1, max_num_tokens=1)

def announce():
    while not llm.counters["output_tokens"]:
        time.sleep(0.001)
    print("running", flush=True)

threading.Thread(target=announce).start()
endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
try:
    llm.generate([[5]] * 5000, endless, use_tqdm=False)
except KeyboardInterrupt:
    print("interrupted", flush=True)
while llm.counters["num_active_requests"] + llm.counters["num_queued_requests"]:
    time.sleep(0.001)
print(llm.counters["num_completed_requests"], llm.generate([5], SamplingParams(), use_tqdm=False).finished)
"""


@pytest.mark.parametrize("_attempt", range(3))
def test_ctrl_c_aborts_what_was_submitted(tiny_engine: Callable[..., Path], _attempt: int) -> None:
    with started(INTERRUPTED, tiny_engine("gqa")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        os.kill(process.pid, signal.SIGINT)
        interrupted_s = time.monotonic()
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, errors) == (0, "")
    assert output == "interrupted\n5000 True\n"
    assert time.monotonic() - interrupted_s < 10
