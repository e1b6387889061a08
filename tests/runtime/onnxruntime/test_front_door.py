"""LLM and the command line on engines for device cuda: what they promise of engines holds of these."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from precast import LLM
from precast.builder.backends.onnxruntime_cuda import backend, planning
from precast.checkpoints.engine_dir import read_manifest, verify_files
from precast.checkpoints.engine_manifest import OnnxRuntimeCudaRequirements
from precast.cli import main
from tests.runtime.tensorrt.conftest import Continuation
from tests.runtime.tensorrt.test_front_door import (
    greedy,
    run_command,
    test_logprobs,
    test_run,
    test_several_outputs_of_a_prompt,
    test_tokens_of_many_prompts,
)
from tests.runtime.tensorrt.test_front_door import llm as llm
from tests.runtime.tensorrt.test_front_door import workers as workers
from tests.runtime.tensorrt.workers import fake_workers
from tests.runtime.tensorrt.worlds import FakeEngine

pytestmark = pytest.mark.usefixtures("cpu_workers")

__all__ = [
    "test_logprobs",
    "test_run",
    "test_several_outputs_of_a_prompt",
    "test_tokens_of_many_prompts",
]

TinyLlama = Callable[..., Path]


@dataclass(frozen=True)
class Failed:
    status: int
    line: str


@pytest.fixture
def failed(capfd: pytest.CaptureFixture[str]) -> Callable[..., Failed]:
    """`failed("warm", engine)`: how the command ends, and the one line that it says."""

    def run(*arguments: object) -> Failed:
        capfd.readouterr()  # what making the arguments has written
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capfd.readouterr()
        assert out == ""
        return Failed(status, err.removesuffix("\n").removeprefix("precast: error: "))

    return run


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Builds compile no kernels; the targets of each that would have."""
    compiled: list[Any] = []

    def compile_sets(sets: list[Any], targets: tuple[str, ...]) -> list[bytes]:
        compiled.append(targets)
        return [b"no kernels"] * len(sets)

    monkeypatch.setattr(planning, "find_kernel_compiler", lambda title, extra: "none")
    monkeypatch.setattr(backend, "compile_sets", compile_sets)
    return compiled


def tokens_of(llm: LLM, continuations: list[Continuation]) -> list[list[int]]:
    outputs = llm.generate([list(each.prompt) for each in continuations], greedy())
    return [list(output.outputs[0].token_ids) for output in outputs]


# ----------------------------------------------------------------------------------------------------------------- LLM


def test_text(llm: LLM) -> None:
    (output,) = llm.generate(["The import statement"], greedy())
    assert llm.tokenizer is not None
    assert output.outputs[0].text == llm.tokenizer.decode(output.outputs[0].token_ids)
    assert (llm.info["backend"], llm.info["device"]) == ("onnxruntime-cuda", "Fake GPU")


def test_save_and_load_again(llm: LLM, tmp_path: Path, continuations: list[Continuation]) -> None:
    llm.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "rank0" / "model.onnx").is_file()
    with LLM(tmp_path / "saved", verify=True, backend="onnxruntime", device="cuda", max_batch_size=2) as again:
        assert tokens_of(again, continuations[:1]) == [continuations[0].tokens]


def test_from_a_checkpoint(
    tiny_llama: TinyLlama, tmp_path: Path, no_kernels: list[Any], continuations: list[Continuation]
) -> None:
    """The engine is built for the steps that are asked for."""
    options: dict[str, Any] = {"max_batch_size": 2, "max_num_tokens": 24, "max_seq_len": 64}
    with LLM(
        tiny_llama("float16"), backend="onnxruntime", device="cuda", workspace=tmp_path, dtype="float16", **options
    ) as llm:
        assert tokens_of(llm, continuations[:3]) == [each.tokens for each in continuations[:3]]
        assert llm.info["backend"] == "onnxruntime-cuda"
        requirements = read_manifest(llm.engine_dir).backend_requirements
    assert isinstance(requirements, OnnxRuntimeCudaRequirements)
    assert (requirements.max_batch_size, requirements.max_num_tokens) == (2, 24)
    assert requirements.targets == ("portable",)
    assert len(no_kernels) == 1


@pytest.mark.parametrize(
    ("choice", "asked", "flags"),
    [
        ({"backend": "tensorrt"}, "tensorrt", "--backend tensorrt"),
        ({"device": "cpu"}, "cpu", "--device cpu"),
        ({"backend": "onnxruntime", "device": "cpu"}, "onnxruntime on cpu", "--backend onnxruntime --device cpu"),
        ({"backend": "tensorrt", "device": "cuda"}, "tensorrt on cuda", "--backend tensorrt --device cuda"),
    ],
)
def test_something_else_than_it_was_built_for(
    choice: dict[str, str], asked: str, flags: str, fake_engine: FakeEngine
) -> None:
    engine = fake_engine("float16")
    with pytest.raises(ValueError, match="was built for backend") as caught:
        LLM(engine, **choice)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"{engine} was built for backend onnxruntime-cuda, and {asked} was asked for: leave it out, or build another "
        f"engine: precast build CHECKPOINT --output DIR {flags}"
    )


def test_the_users_process_imports_nothing_for_gpus(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """A defect of what runs there is the end of a process: it must not be the user's."""
    script = """
import sys
from precast import LLM, SamplingParams
with LLM(sys.argv[1]) as llm:
    output = llm.generate([[5, 9, 200]], SamplingParams(max_tokens=3, temperature=0))
    assert len(output[0].outputs[0].token_ids) == 3
roots = {name.split(".")[0] for name in sys.modules}
print(sorted(roots & {"onnxruntime", "cuda", "onnx", "torch", "tests"}))
rooms = ("precast.runtime.onnxruntime", "precast.runtime.device", "precast.plugins.onnxruntime")
print(sorted(name for name in sys.modules if name.startswith(rooms)))
"""
    command = [sys.executable, "-c", script, str(fake_engine("float16"))]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines() == ["[]", "[]"]


# --------------------------------------------------------------------------------------------------------- the command


def test_build(tiny_llama: TinyLlama, tmp_path: Path, no_kernels: list[Any]) -> None:
    limits = ("--max-batch-size", "3", "--max-num-tokens", "20", "--target", "sm80,sm90")
    flags = ("--output", tmp_path / "engine", "--device", "cuda", "--dtype", "float16", "--json", *limits)
    result = json.loads(run_command("build", tiny_llama("float16"), *flags))
    assert (result["backend"], result["dtype"], result["kv_cache_dtype"]) == ("onnxruntime-cuda", "float16", "float16")
    manifest = read_manifest(tmp_path / "engine")
    requirements = manifest.backend_requirements
    assert isinstance(requirements, OnnxRuntimeCudaRequirements)
    assert (requirements.max_batch_size, requirements.max_num_tokens) == (3, 20)
    assert requirements.targets == ("sm80", "sm90")
    assert no_kernels == [("sm_80", "sm_90")]
    assert manifest.ranks[0].weights == "rank0/weights.bin"


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (
            ("--backend", "tensorrt", "--device", "cpu"),
            2,
            "backend 'tensorrt' runs on NVIDIA GPUs, and device='cpu' was asked for: leave one out",
        ),
        (
            ("--device", "cuda", "--quant", "int4"),
            1,
            "quantization int4 is not available on device cuda yet; the backend tensorrt has it",
        ),
        (
            ("--device", "cuda", "--group-size", "64"),
            1,
            "group_size 64 has no meaning without quantization: leave it out",
        ),
        (
            ("--device", "cuda", "--verify"),
            2,
            "--verify runs the engine, which may need another machine: use precast verify --reference there",
        ),
        (("--device", "cuda", "--target", "portable,sm80"), 1, "target portable stands alone: leave out portable, "),
        (("--device", "cuda", "--target", "sm75"), 1, "target sm75: there is machine code for "),
        (("--max-num-tokens", "8"), 1, "max_num_tokens "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_build_refuses(
    flags: tuple[str, ...],
    status: int,
    said: str,
    failed: Callable[..., Failed],
    tiny_llama: TinyLlama,
    tmp_path: Path,
    no_kernels: list[Any],
) -> None:
    result = failed("build", tiny_llama("float16"), "--output", tmp_path / "engine", *flags)
    assert result.status == status
    assert result.line.startswith(said)
    assert "\n" not in result.line
    assert not (tmp_path / "engine").exists()
    assert no_kernels == []


def test_inspect(fake_engine: FakeEngine) -> None:
    text = run_command("inspect", fake_engine("float16"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "backend onnxruntime-cuda from 1.31, ONNX IR 10, opset 20" in lines
    assert "GPU built for portable; compute capability from 8.0" in lines
    assert "step at most 4 sequences and 32 tokens" in lines
    assert "lacks it" not in text
    assert "rank0/model.onnx" in text


def test_inspect_as_json(fake_engine: FakeEngine) -> None:
    result = json.loads(run_command("inspect", fake_engine("float16", target=("sm90",)), "--json"))
    assert result["missing"] == []
    assert result["manifest"]["backend"] == "onnxruntime-cuda"
    requirements = result["manifest"]["backend_requirements"]
    assert requirements == {
        "onnxruntime_min": "1.31",
        "ir_version": 10,
        "opset": 20,
        "targets": ["sm90"],
        "min_capability": 80,
        "max_batch_size": 4,
        "max_num_tokens": 32,
    }
    assert set(result["tensors"]) == {"rank0/weights.bin"}


def test_inspect_names_what_this_version_lacks(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """Ops of the CPU alone are none of this backend's."""
    engine = tmp_path / "engine"
    shutil.copytree(fake_engine("float16"), engine)
    (engine / "engine.json").chmod(0o644)
    manifest = json.loads((engine / "engine.json").read_text())
    manifest["requires"] += ["ai.precast.Linear/1", "ai.precast.RmsNorm/2"]
    (engine / "engine.json").write_text(json.dumps(manifest))
    result = json.loads(run_command("inspect", engine, "--json"))
    assert result["missing"] == ["ai.precast.Linear/1", "ai.precast.RmsNorm/2"]


def test_verify_files(fake_engine: FakeEngine, tmp_path: Path, failed: Callable[..., Failed]) -> None:
    assert "all as they were built" in run_command("verify", fake_engine("float16"))
    engine = tmp_path / "engine"
    shutil.copytree(fake_engine("float16"), engine)
    graph = engine / "rank0" / "model.onnx"
    graph.chmod(0o644)
    with graph.open("r+b") as file:
        file.write(b"something")
    result = failed("verify", engine)
    assert result.status == 1
    assert result.line.startswith(f"{engine}: 1 of 7 files are damaged: rank0/model.onnx (SHA-256 is ")


def test_refit(fake_engine: FakeEngine, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    """The engine has the graph of the one and the weights of the other, as if it had been built from that."""
    engine = fake_engine("gqa")
    result = json.loads(
        run_command("refit", engine, tiny_llama("gqa", "bfloat16"), "--output", tmp_path / "new", "--json")
    )
    before, after = read_manifest(engine), read_manifest(tmp_path / "new")
    verify_files(tmp_path / "new", after)
    assert after.ranks == before.ranks
    assert after.backend_requirements == before.backend_requirements
    assert after.files["rank0/model.onnx"] == before.files["rank0/model.onnx"]
    assert after.files["rank0/weights.bin"] != before.files["rank0/weights.bin"]
    assert result["weights_bytes"] == after.files["rank0/weights.bin"].size


def test_refit_with_another_network(
    fake_engine: FakeEngine, tiny_llama: TinyLlama, tmp_path: Path, failed: Callable[..., Failed]
) -> None:
    engine = fake_engine("gqa")
    for variant, difference in (
        ("mqa", "num_layers 3 instead of 2"),
        ("head_dim", "sizes or constants of its layers, or it was built by another version"),
    ):
        result = failed("refit", engine, tiny_llama(variant), "--output", tmp_path / "new")
        assert result.status == 1
        assert result.line == (
            f"{tiny_llama(variant)}: its network is not that of {engine} ({difference}): build an engine from it "
            "instead"
        )
    assert not (tmp_path / "new").exists()


def test_warm(fake_engine: FakeEngine, failed: Callable[..., Failed]) -> None:
    engine = fake_engine("float16")
    assert failed("warm", engine) == Failed(
        1,
        f"{engine}: built for the backend onnxruntime-cuda, which has nothing to compile: warm is for engines of the "
        "backend tensorrt",
    )


@pytest.fixture
def no_gpu(tmp_path: Path) -> Iterator[None]:
    with fake_workers(tmp_path, num_devices=0):
        yield


def test_run_without_a_gpu(fake_engine: FakeEngine, failed: Callable[..., Failed], no_gpu: None) -> None:
    engine = fake_engine("float16")
    assert failed("run", engine, "The import statement") == Failed(
        1,
        f"rank 0: {engine}: the engine runs on an NVIDIA GPU, and CUDA finds none here (cuInit: no device): load it on "
        "a machine with a GPU and its driver, or build an engine for the CPU",
    )
