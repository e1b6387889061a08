"""Real engines on real GPUs, with each backend: they load, compute the model, and serve mixed requests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast import LLM, SamplingParams
from precast.building import build
from precast.comparing_layers import compare_layers
from precast.configs import CapacitySchedulerPolicy, SchedulerConfig
from precast.runtime.model import Model
from tests.gpus import num_gpus
from tests.tiny_llama import PROMPTS, reference_greedy, reference_logits

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TinyLlama = Callable[..., Path]
BuildEngine = Callable[..., Path]
BACKENDS = ("onnxruntime-cuda", "tensorrt")
STEPS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)
TOKENS = [(7 * i + 3) % 300 for i in range(90)]


@pytest.fixture(scope="module", params=BACKENDS)
def engine(
    request: pytest.FixtureRequest, tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory
) -> BuildEngine:
    """`engine("gqa", dtype="float16") -> Path`: an engine for this GPU, built when first asked for."""
    return _builder(request.param, tiny_llama, tmp_path_factory)


@pytest.fixture(scope="module")
def build_plan(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> BuildEngine:
    """The same for TensorRT only."""
    return _builder("tensorrt", tiny_llama, tmp_path_factory)


def _builder(backend: str, tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> BuildEngine:
    made: dict[str, Path] = {}

    def made_engine(variant: str, **options: Any) -> Path:
        key = f"{variant} {sorted(options.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(backend) / "engine"
            build(tiny_llama(variant), made[key], backend=backend, **{"dtype": "float16", **options})
        return made[key]

    return made_engine


def error(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("variant", ["gqa", "tied", "attention_bias", "rope_llama3", "mistral", "qwen3_window"])
def test_float16_logits_are_those_of_the_model(engine: BuildEngine, tiny_llama: TinyLlama, variant: str) -> None:
    with Model(engine(variant)) as model:
        got = model.logits(TOKENS)
    assert error(got, reference_logits(tiny_llama(variant), TOKENS)) < 0.01


def test_bfloat16_logits_are_as_close_as_those_of_transformers(engine: BuildEngine, tiny_llama: TinyLlama) -> None:
    checkpoint = tiny_llama("gqa")
    exact = reference_logits(checkpoint, TOKENS)
    with Model(engine("gqa", dtype="bfloat16")) as model:
        got = model.logits(TOKENS)
    assert error(got, exact) <= 2 * error(reference_logits(checkpoint, TOKENS, "bfloat16"), exact)


def test_weights_beside_the_plan(build_plan: BuildEngine, tiny_llama: TinyLlama) -> None:
    with Model(build_plan("gqa", weights="separate")) as model:
        got = model.logits(TOKENS)
    assert error(got, reference_logits(tiny_llama("gqa"), TOKENS)) < 0.01


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_quantised_plans_load_and_compute(build_plan: BuildEngine, tiny_llama: TinyLlama, quantization: str) -> None:
    """How far they are off is the format's business; that they are not something else, this test's."""
    with Model(build_plan("gqa", quantization=quantization)) as model:
        got = model.logits(TOKENS)
    assert error(got, reference_logits(tiny_llama("gqa"), TOKENS)) < 0.3


def test_greedy_tokens_whatever_runs_beside(engine: BuildEngine, tiny_llama: TinyLlama, caplog: Any) -> None:
    """Chunked prompts beside decoding, batches that grow and shrink: two steps in flight, with graphs."""
    prompts = [list(prompt) for prompt in PROMPTS] * 3
    expected = [reference_greedy(tiny_llama("gqa"), prompt, STEPS)[0] for prompt in prompts]
    with LLM(engine("gqa"), skip_tokenizer_init=True, max_batch_size=5, max_num_tokens=7) as llm:
        for _ in range(3):  # later rounds replay what the first has recorded
            outputs = llm.generate(prompts, GREEDY)
            assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert not [record for record in caplog.records if "graphs are off" in record.message]


def test_preemption_gives_the_same_tokens(engine: BuildEngine, tiny_llama: TinyLlama) -> None:
    prompts = [TOKENS[i : i + 20] for i in range(8)]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    policy = SchedulerConfig(capacity_scheduler_policy=CapacitySchedulerPolicy.MAX_UTILIZATION)
    with LLM(engine("gqa"), skip_tokenizer_init=True) as llm:
        block_bytes = llm.info["kv_cache_bytes"] // llm.info["num_blocks"]
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    with LLM(engine("gqa"), skip_tokenizer_init=True, kv_cache_bytes=9 * block_bytes, scheduler_config=policy) as llm:
        got = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    same = sum(list(a) == list(b) for a, b in zip(got, expected, strict=True))
    # Sums of matrices may depend on what runs beside: a token whose margin is a rounding may differ.
    assert same >= len(prompts) - 1


def test_sampling_from_candidates_and_from_whole_rows(engine: BuildEngine) -> None:
    """top_k within what the device gives, and logprobs beyond it, name the same tokens."""
    prompts = [list(prompt) for prompt in PROMPTS]
    few = SamplingParams(temperature=0.8, top_k=20, seed=5, max_tokens=STEPS, ignore_eos=True)
    many = SamplingParams(temperature=0.8, top_k=20, seed=5, max_tokens=STEPS, ignore_eos=True, logprobs=100)
    with LLM(engine("gqa"), skip_tokenizer_init=True) as llm:
        tokens = [
            [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)] for params in (few, many)
        ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("variant", ["gqa", "qwen3_window"])
def test_layers_are_those_of_onnx_runtime(tiny_llama: TinyLlama, variant: str) -> None:
    """`precast verify --backend tensorrt`, of a checkpoint with a tokenizer of its own."""
    report = compare_layers(tiny_llama(variant), "tensorrt", prompts=["def add(a, b):", "x"], dtype="float16")
    assert report.passed, report.first_wrong


@pytest.mark.skipif(num_gpus() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("sizes", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_two_ranks(engine: BuildEngine, tiny_llama: TinyLlama, sizes: dict[str, int]) -> None:
    prompts = [list(prompt) for prompt in PROMPTS]
    expected = [reference_greedy(tiny_llama("gqa"), prompt, STEPS)[0] for prompt in prompts]
    with LLM(engine("gqa", **sizes), skip_tokenizer_init=True) as llm:
        outputs = llm.generate(prompts, GREEDY)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
