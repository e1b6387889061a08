"""Whole engines on the CUDA execution provider of a real onnxruntime-gpu, and on a stub CUDA that computes nothing.

What can be seen so: that a graph as it is built opens without a node on the CPU; which kernels and which products of
cuBLAS a step launches, in which order; and that CUDA graphs can be captured of it. What is computed is seen elsewhere:
on the CPU provider (test_session.py), and on GPUs.

Engines are built by the real builder. Their kernels are stand-ins, which have the names and parameters of real ones;
one engine has real ones.
"""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from precast.builder.backends.onnxruntime_cuda import backend
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.ranks import rank_process, rank_processes
from precast.builder.ranks.built_rank import BuiltRank
from precast.builder.ranks.rank_job import RankJob
from precast.checkpoints.checkpoint import open_checkpoint
from precast.plugins.device.compiled_kernel import CompiledKernel, CompiledParameter
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launcher import compress_kernels
from precast.runtime.onnxruntime.cuda_libraries import CUDA_PROVIDER_LIBRARY
from tests.runtime.onnxruntime.stub_cuda import build as stub_cuda
from tests.runtime.onnxruntime.test_cuda_provider import REPOSITORY, unwanted
from tests.runtime.onnxruntime.test_cuda_provider import onnxruntime_gpu as onnxruntime_gpu

TinyLlama = Callable[..., Path]
DTYPES = ("bfloat16", "float16")
VARIANTS = (
    "gqa",
    "mha",
    "mqa",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "tied",
    "rope_yarn",
    "rope_longrope",
    "odd_vocab",
    "odd_intermediate",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_window",
)
RANKS = (("gqa", 2, 1), ("gqa", 1, 2), ("odd_vocab", 2, 1), ("qwen2_window", 2, 1), ("qwen3", 1, 2))
"""Variant, tensor and pipeline parallel size."""
REAL = "gqa with real kernels"


def names_of_ranks(variant: str, tensor: int, pipeline: int, dtype: str) -> list[str]:
    return [f"{variant} {tensor}x{pipeline} {dtype} rank {rank}" for rank in range(tensor * pipeline)]


WHOLE = [f"{variant} {dtype}" for variant in VARIANTS for dtype in DTYPES]
PARTS = [name for rank in RANKS for dtype in DTYPES for name in names_of_ranks(*rank, dtype)]
ALL = [*WHOLE, *PARTS, REAL]


@dataclass(frozen=True)
class Life:
    """Of a rank of an engine.

    Attributes:
        error: Why it did not open, or which step failed; "" for neither.
        steps: By name, the calls of CUDA that enqueuing it made, in order; kernels and collectives of ours among them.
        left: Pieces of device memory that the session has not given back.
        modules: How the code of each kernel begins that was loaded, in hexadecimal digits.
    """

    error: str
    stream: int = 0
    steps: dict[str, list[str]] = field(default_factory=dict)
    left: int = 0
    modules: list[str] = field(default_factory=list)


Lives = Callable[[str], Life]

# ------------------------------------------------------------------------------------------------------------ engines


def stand_ins(sets: Sequence[tuple[KernelSpec, ...]], targets: Sequence[str]) -> list[bytes]:
    """In place of compile_sets."""
    scratch = (CompiledParameter("global_scratch", "pointer"), CompiledParameter("profile_scratch", "pointer"))
    return [
        compress_kernels(
            CompiledKernel(
                spec.function,
                target,
                "cubin",
                b"none",
                0,
                spec.num_warps,
                (*(CompiledParameter(each.name, each.c_type) for each in spec.parameters), *scratch),
            )
            for spec in specs
            for target in targets
        )
        for specs in sets
    ]


def _build_ranks_here(jobs: Sequence[RankJob], *_: object) -> list[BuiltRank]:
    """In place of processes, which would compile."""
    return [rank_process._build(job, io.StringIO()) for job in jobs]


def build(model: Path, output: Path, **options: Any) -> None:
    config = BuildConfig(target=("sm90",), max_batch_size=4, max_num_tokens=32, max_seq_len=64, **options)
    with open_checkpoint(model) as checkpoint:
        build_engine(checkpoint, output, config, backend="onnxruntime-cuda")


def build_all(tiny_llama: TinyLlama, folder: Path) -> list[dict[str, Any]]:
    """The requests to engines.py."""
    requests = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "compile_sets", stand_ins)
        patch.setattr(rank_processes, "build_ranks", _build_ranks_here)
        for dtype in DTYPES:
            for variant in VARIANTS:
                name = f"{variant} {dtype}"
                build(tiny_llama(variant), folder / name, dtype=dtype)
                requests.append({"name": name, "engine": str(folder / name), "rank": 0})
            for variant, tensor, pipeline in RANKS:
                names = names_of_ranks(variant, tensor, pipeline, dtype)
                sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
                build(tiny_llama(variant), folder / names[0], dtype=dtype, **sizes)
                for rank, name in enumerate(names):
                    requests.append({"name": name, "engine": str(folder / names[0]), "rank": rank})
    build(tiny_llama("gqa", "bfloat16"), folder / REAL)
    return [*requests, {"name": REAL, "engine": str(folder / REAL), "rank": 0}]


@pytest.fixture(scope="module")
def lives(onnxruntime_gpu: Path, tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """All engines of this file, opened and run by one process."""
    folder, stubs = tmp_path_factory.mktemp("engines"), tmp_path_factory.mktemp("stub-cuda")
    stub_cuda.build_stub_libraries(onnxruntime_gpu.with_name(CUDA_PROVIDER_LIBRARY), stubs)
    (folder / "requests.json").write_text(json.dumps(build_all(tiny_llama, folder)))
    environment = {
        "LD_LIBRARY_PATH": str(stubs),
        "STUB_CUDA_LOG": str(folder / "cuda.log"),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, str(Path(stub_cuda.__file__).with_name("engines.py")), str(onnxruntime_gpu), str(folder)],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    answers_path = folder / "answers.jsonl"
    answers = answers_path.read_text().splitlines() if answers_path.exists() else []
    found = {answer.pop("name"): Life(**answer) for answer in map(json.loads, answers)}

    def life(name: str) -> Life:
        if name not in found:
            last = next(reversed(found), "none")
            pytest.fail(f"{name} did not run; the process ended with {done.returncode} after {last}:\n{done.stderr}")
        return found[name]

    return life


# -------------------------------------------------------------------------------------------------------------- tests

_COMPUTES = re.compile(r"cuLaunchKernel (\w+)|group (\w+)|(cublas\w*Gemm|cublasLtMatmul)(?!\w*Heur)")


def what_computes(calls: Sequence[str]) -> list[str]:
    """Our kernels and collectives, and products of cuBLAS, which are all called "product"."""
    matches = [match for call in calls if (match := _COMPUTES.match(call))]
    return [match[1] or match[2] or "product" for match in matches]


def recorded(calls: Sequence[str]) -> list[str]:
    """What a step does in a capture."""
    names = [call.split(" ")[0] for call in calls]
    if "cudaStreamBeginCapture" not in names:
        return []
    return list(calls[names.index("cudaStreamBeginCapture") + 1 : names.index("cudaStreamEndCapture")])


DECODES = ("decode", "decode three")
PROMPTS = ("prompt again", "mixed again")


@pytest.mark.parametrize("name", ALL)
def test_it_opens_and_runs(name: str, lives: Lives) -> None:
    """With no node on the CPU, which the session's options forbid; and gives back what it took."""
    life = lives(name)
    assert life.error == ""
    assert len(life.steps) == 10
    assert life.left == 0


@pytest.mark.parametrize("name", ALL)
def test_a_steady_step_only_enqueues(name: str, lives: Lives) -> None:
    """Prompts of shapes that ran before, and what is captured of decoding."""
    life = lives(name)
    for step in PROMPTS:
        assert unwanted(life.steps[step], life.stream) == []
    for step in DECODES:
        calls = recorded(life.steps[step])
        assert what_computes(calls)
        assert unwanted(calls, life.stream) == []


@pytest.mark.parametrize("name", ALL)
def test_decoding_is_captured_whole_and_replayed(name: str, lives: Lives) -> None:
    """The step before the capture did the same; the next of the shape, and a later one, launch the graph alone."""
    steps = lives(name).steps
    for first, *later in (("decode", "decode again", "decode once more"), ("decode three", "decode three again")):
        ran = what_computes(steps[first])
        captured = what_computes(recorded(steps[first]))
        assert ran == 2 * captured
        for step in later:
            assert what_computes(steps[step]) == []
            assert sum(call.startswith("cuGraphLaunch") for call in steps[step]) == 1
    # One graph for each shape.
    launched = [
        next(call for call in steps[step] if call.startswith("cuGraphLaunch"))
        for step in ("decode again", "decode once more", "decode three again")
    ]
    assert launched[0] == launched[1] != launched[2]


@pytest.mark.parametrize("name", ALL)
def test_prompts_are_not_captured(name: str, lives: Lives) -> None:
    steps = lives(name).steps
    for step in ("prompt", "prompt again", "two prompts", "mixed", "mixed again"):
        assert not [call for call in steps[step] if "Capture" in call or "Graph" in call]
    assert what_computes(steps["prompt"]) == what_computes(steps["prompt again"])
    assert what_computes(steps["mixed"]) == what_computes(steps["mixed again"])


@pytest.mark.parametrize("name", ALL)
def test_no_step_takes_memory_or_waits(name: str, lives: Lives) -> None:
    """The largest step ran before KV pools took what was left: not even a shape that is new asks for more. And binding
    its inputs copies none of them to the host."""
    steps = lives(name).steps
    calls = [call for step in steps.values() for call in step]
    assert [call for call in calls if re.search("Malloc|Alloc|Free|Synchronize|pinned|pageable", call)] == []


DECODE = ["paged_attention_write", "paged_attention_decode", "paged_attention_merge"]
CONTEXT = ["paged_attention_write", "paged_attention_context", *DECODE[1:]]
FEED_FORWARD = ["rms_norm", "product", "gated_activation", "product"]
LAST = [
    "rms_norm",
    "product",
    "top_candidates_select",
    "top_candidates_sort",
    "greedy_tokens_partial",
    "greedy_tokens_merge",
]


def layers(attention: list[str], count: int) -> list[str]:
    return ["rms_norm", "product", *attention, "product", *FEED_FORWARD] * count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "count"), [("gqa", 2), ("mqa", 3), ("qwen2_window", 3), ("tied", 2), ("qwen3", 2)])
def test_what_a_step_launches(variant: str, count: int, dtype: str, lives: Lives) -> None:
    """Four products a layer and one for logits, whatever the family: norms and rotations are in kernels of ours."""
    steps = lives(f"{variant} {dtype}").steps
    assert what_computes(recorded(steps["decode"])) == [*layers(DECODE, count), *LAST]
    assert what_computes(recorded(steps["decode three"])) == [*layers(DECODE, count), *LAST]
    assert what_computes(steps["prompt"]) == [*layers(CONTEXT, count), *LAST]
    assert what_computes(steps["mixed"]) == [*layers(CONTEXT, count), *LAST]


@pytest.mark.parametrize("dtype", DTYPES)
def test_grids_are_of_the_padded_step(dtype: str, lives: Lives) -> None:
    """Three sequences are four, of which each has a row."""
    steps = lives(f"gqa {dtype}").steps
    grids = {re.sub(r" stream=.*", "", call) for call in recorded(steps["decode three"]) if "cuLaunchKernel" in call}
    assert {"cuLaunchKernel rms_norm 4x1x1", "cuLaunchKernel greedy_tokens_partial 4x1x1"} <= grids
    grids = {re.sub(r" stream=.*", "", call) for call in steps["two prompts"] if "cuLaunchKernel" in call}
    assert "cuLaunchKernel rms_norm 18x1x1" in grids
    assert "cuLaunchKernel greedy_tokens_merge 2x1x1" in grids  # a row of logits for each


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["gqa", "odd_vocab"])
def test_tensor_ranks_sum_twice_a_layer(variant: str, dtype: str, lives: Lives) -> None:
    """And once for the embedding; the logits are gathered. Both ranks do the same in the same order."""
    reduced = "one_shot_all_reduce"
    layer = ["rms_norm", "product", *DECODE, "product", reduced, *FEED_FORWARD, reduced]
    expected = [reduced, *layer * 2, "rms_norm", "product", "all_gather", *LAST[2:]]
    for name in names_of_ranks(variant, 2, 1, dtype):
        assert what_computes(recorded(lives(name).steps["decode"])) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_stages_receive_first_and_send_last(dtype: str, lives: Lives) -> None:
    first, last = (lives(name).steps for name in names_of_ranks("gqa", 1, 2, dtype))
    assert what_computes(recorded(first["decode"])) == [*layers(DECODE, 1), "send"]
    assert what_computes(recorded(last["decode"])) == ["receive", *layers(DECODE, 1), *LAST]
    (sent,) = {re.sub(r" stream=.*", "", call) for call in recorded(first["decode three"]) if "group send" in call}
    (received,) = {re.sub(r" stream=.*", "", call) for call in recorded(last["decode three"]) if "group rec" in call}
    assert sent == f"group send {4 * 64} {dtype}"
    assert received == f"group receive {4 * 64} {dtype}"


def test_real_kernels_are_loaded_once(lives: Lives) -> None:
    """The machine code for the GPU, of each set once though two layers share it: norms with and without a residual,
    four of attention, activation, and two of tokens."""
    life = lives(REAL)
    assert life.modules == [b"\x7fELF".hex()] * 11
    assert what_computes(recorded(life.steps["decode"])) == [*layers(DECODE, 2), *LAST]
