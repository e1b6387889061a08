"""The logits of the NumPy reference and of the emitted graph, beside Hugging Face's on every tiny variant.

The two are held to the same tests: `reference` is ReferenceModel, `graph` runs the finished network with the plugins'
references. Each feature that is switched off must be noticed.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.plan import plan_build
from precast.builder.reference import ReferenceModel
from precast.builder.verify import FLOAT32_TOLERANCE, LogitsFunction, VerificationReport, verify_logits
from precast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from precast.checkpoints.model_config import AttentionConfig, HeadConfig, ModelConfig, NormConfig, QkNormConfig
from tests.builder.graph_runner import Chunk, engine_runner, network_runner
from tests.builder.worlds import MODEL, RandomTensors, finished, with_attention, with_layers, with_mlp, with_rope
from tests.tiny_llama import PROMPTS, VARIANTS, cached_logits, reference_logits

NOTICED = 10 * FLOAT32_TOLERANCE
Runner = Callable[..., LogitsFunction]
"""(config, tensors, dtype="float32") -> the model."""


def run_reference(config: ModelConfig, tensors: Any, dtype: str = "float32") -> LogitsFunction:
    return ReferenceModel(config, tensors, dtype=dtype)


def run_graph(config: ModelConfig, tensors: Any, dtype: str = "float32") -> LogitsFunction:
    return network_runner(finished(config, plan_build(config, BuildConfig(dtype=dtype))), tensors)


@pytest.fixture(params=[run_reference, run_graph], ids=["reference", "graph"])
def runner(request: pytest.FixtureRequest) -> Runner:
    run: Runner = request.param
    return run


def compare(logits: LogitsFunction, path: Path, dtype: str = "float32") -> VerificationReport:
    return verify_logits(
        logits,
        lambda token_ids: reference_logits(path, token_ids),
        PROMPTS,
        dtype=dtype,
        reference="transformers",
        baseline_logits=lambda token_ids: reference_logits(path, token_ids, "bfloat16"),
    )


class Changed:
    """A checkpoint some of whose tensors are changed on the way."""

    def __init__(self, checkpoint: Checkpoint, changes: dict[str, Callable[[NDArray[Any]], NDArray[Any]]]) -> None:
        self._checkpoint = checkpoint
        self._changes = changes

    def tensor(self, name: str) -> NDArray[Any]:
        tensor = self._checkpoint.tensor(name)
        for suffix, change in self._changes.items():
            if name.endswith(suffix):
                return np.ascontiguousarray(change(tensor))
        return tensor


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_equals_hugging_face(variant: str, tiny_llama: Callable[[str], Path], runner: Runner) -> None:
    path = tiny_llama(variant)
    with open_checkpoint(path) as checkpoint:
        report = compare(runner(checkpoint.config, checkpoint), path)
    assert report.tolerance == 1e-4
    assert report.passed, report
    assert report.greedy_agreement == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_errs_at_most_twice_as_much_as_hugging_faces(
    variant: str, tiny_llama: Callable[[str], Path], runner: Runner
) -> None:
    path = tiny_llama(variant)
    with open_checkpoint(path) as checkpoint:
        report = compare(runner(checkpoint.config, checkpoint, "bfloat16"), path, "bfloat16")
    assert report.passed, report
    assert report.error > NOTICED, "bfloat16 weights must be rounded"


def swapped_heads(rows: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Query heads grouped the other way round: as if head h belonged to KV head h % 2 instead of h // 2."""
    return lambda weight: weight.reshape(4, rows, -1)[[0, 2, 1, 3]].reshape(weight.shape)


# (variant, what is switched off, the changed config, changed tensors)
FEATURES: list[tuple[str, str, Callable[[ModelConfig], ModelConfig], dict[str, Any]]] = [
    ("gqa", "rope", lambda model: with_attention(model, rope=None), {}),
    ("gqa", "rope theta", lambda model: with_rope(model, theta=20000.0), {}),
    ("gqa", "full rotation", lambda model: with_rope(model, rotary_dim=8), {}),
    ("gqa", "scale", lambda model: with_attention(model, scale=0.3), {}),
    ("gqa", "grouping of query heads", lambda model: model, {"attention.q.weight": swapped_heads(16)}),
    ("gqa", "epsilon", lambda model: with_norms(model, epsilon=1e-2), {}),
    ("gqa", "epsilon of the final norm", lambda model: with_final_norm(model, epsilon=1e-1), {}),
    ("gqa", "weight of the mixer norm", lambda model: model, {"mixer_norm.weight": np.ones_like}),
    ("gqa", "weight of the feed-forward norm", lambda model: model, {"feed_forward_norm.weight": np.ones_like}),
    ("gqa", "weight of the final norm", lambda model: model, {"final_norm.weight": np.ones_like}),
    ("gqa", "last layer", lambda model: replace(model, layers=model.layers[:-1]), {}),
    ("gqa", "a head of its own", lambda model: replace(model, head=HeadConfig(tied=True)), {}),
    ("attention_bias", "bias of q, k, v", lambda model: with_attention(model, qkv_bias=False), {}),
    ("attention_bias", "bias of q", lambda model: model, {"attention.q.bias": np.zeros_like}),
    ("attention_bias", "bias of k", lambda model: with_attention(model, key_bias=False), {}),
    ("attention_bias", "bias of v", lambda model: model, {"attention.v.bias": np.zeros_like}),
    ("attention_bias", "bias of o", lambda model: with_attention(model, output_bias=False), {}),
    ("mlp_bias", "biases", lambda model: with_mlp(model, bias=False), {}),
    ("mlp_bias", "bias of gate", lambda model: model, {"gate.bias": np.zeros_like}),
    ("mlp_bias", "bias of up", lambda model: model, {"up.bias": np.zeros_like}),
    ("mlp_bias", "bias of down", lambda model: model, {"down.bias": np.zeros_like}),
    ("rope_linear", "scaling", lambda model: with_rope(model, scaling=None), {}),
    ("rope_linear", "factor", lambda model: with_scaling(model, factor=3.0), {}),
    ("rope_llama3", "scaling", lambda model: with_rope(model, scaling=None), {}),
    ("rope_llama3", "factor", lambda model: with_scaling(model, factor=4.0), {}),
    ("rope_llama3", "low_freq_factor", lambda model: with_scaling(model, low_freq_factor=0.5), {}),
    ("rope_llama3", "high_freq_factor", lambda model: with_scaling(model, high_freq_factor=8.0), {}),
    (
        "rope_llama3",
        "original context",
        lambda model: with_scaling(model, original_max_position_embeddings=64),
        {},
    ),
    ("rope_yarn", "scaling", lambda model: with_rope(model, scaling=None), {}),
    ("rope_yarn", "factor", lambda model: with_scaling(model, factor=8.0, attention_factor=1.139), {}),
    ("rope_yarn", "attention factor", lambda model: with_scaling(model, attention_factor=1.0), {}),
    ("rope_longrope", "scaling", lambda model: with_rope(model, scaling=None), {}),
    ("rope_longrope", "short factors", lambda model: with_scaling(model, short_factor=(1.0,) * 8), {}),
    ("rope_longrope", "original context", lambda m: with_scaling(m, original_max_position_embeddings=255), {}),
    ("rope_longrope", "attention factor", lambda model: with_scaling(model, attention_factor=1.0), {}),
    ("mistral", "window", lambda model: with_attention(model, window=None), {}),
    ("mistral", "the window's last position", lambda model: with_attention(model, window=3), {}),
    ("mistral", "the end of the window", lambda model: with_attention(model, window=5), {}),
    ("mistral_nemo", "scale of the head's own size", lambda model: with_attention(model, scale=16**-0.5), {}),
    ("qwen2", "bias of q, k, v", lambda model: with_attention(model, qkv_bias=False), {}),
    ("qwen2", "bias of q", lambda model: model, {"attention.q.bias": np.zeros_like}),
    ("qwen2", "bias of k", lambda model: model, {"attention.k.bias": np.zeros_like}),
    ("qwen2", "bias of v", lambda model: model, {"attention.v.bias": np.zeros_like}),
    ("qwen2", "no window without use_sliding_window", lambda model: with_attention(model, window=4), {}),
    ("qwen2_window", "max_window_layers", lambda model: with_windows(model, (4, 4, 4)), {}),
    ("qwen2_window", "layers from max_window_layers on", lambda model: with_windows(model, (None, None, 4)), {}),
    ("qwen2_window", "which layers have the window", lambda model: with_windows(model, (4, 4, None)), {}),
    ("qwen2_window", "the window's last position", lambda model: with_windows(model, (None, 3, 3)), {}),
    ("qwen2_types", "layer_types", lambda model: with_windows(model, (None, 4)), {}),
    ("qwen3", "norm of queries and keys", lambda model: with_attention(model, qk_norm=None), {}),
    ("qwen3", "weight of the queries' norm", lambda model: model, {"q_norm.weight": np.ones_like}),
    ("qwen3", "weight of the keys' norm", lambda model: model, {"k_norm.weight": np.ones_like}),
    ("qwen3", "epsilon of the norms", lambda model: with_attention(model, qk_norm=QkNormConfig(NormConfig(1e-1))), {}),
    (
        "qwen3",
        "which component a weight of the norm is for",
        lambda model: model,
        {"q_norm.weight": lambda w: np.roll(w, 16)},
    ),
    ("qwen3_window", "bias of o", lambda model: with_attention(model, output_bias=False), {}),
    ("qwen3_window", "window", lambda model: with_attention(model, window=None), {}),
]


def with_windows(model: ModelConfig, windows: tuple[int | None, ...]) -> ModelConfig:
    layers = []
    for layer, window in zip(model.layers, windows, strict=True):
        assert isinstance(layer.mixer, AttentionConfig)
        layers.append(replace(layer, mixer=replace(layer.mixer, window=window)))
    return replace(model, layers=tuple(layers))


def with_norms(model: ModelConfig, **changes: Any) -> ModelConfig:
    norm = model.layers[0].mixer_norm
    assert norm is not None
    norm = replace(norm, **changes)
    return with_layers(model, mixer_norm=norm, feed_forward_norm=norm)


def with_final_norm(model: ModelConfig, **changes: Any) -> ModelConfig:
    assert model.final_norm is not None
    return replace(model, final_norm=replace(model.final_norm, **changes))


def with_scaling(model: ModelConfig, **changes: Any) -> ModelConfig:
    mixer = model.layers[0].mixer
    assert isinstance(mixer, AttentionConfig)
    assert mixer.rope is not None
    scaling = mixer.rope.scaling
    assert scaling is not None
    return with_rope(model, scaling=replace(scaling, **changes))


@pytest.mark.parametrize(
    ("variant", "change", "tensors"),
    [(variant, change, tensors) for variant, _, change, tensors in FEATURES],
    ids=[f"{variant}-{feature}" for variant, feature, _, _ in FEATURES],
)
def test_a_feature_that_is_switched_off_is_noticed(
    variant: str,
    change: Callable[[ModelConfig], ModelConfig],
    tensors: dict[str, Any],
    tiny_llama: Callable[[str], Path],
    runner: Runner,
) -> None:
    path = tiny_llama(variant)
    with open_checkpoint(path) as checkpoint:
        report = compare(runner(change(checkpoint.config), Changed(checkpoint, tensors)), path)
    assert report.error > NOTICED
    assert not report.passed


def test_heads_that_the_config_ties_are_the_embedding(tiny_llama: Callable[[str], Path], runner: Runner) -> None:
    path = tiny_llama("tied")
    with open_checkpoint(path) as checkpoint:
        changed = Changed(checkpoint, {"embedding.weight": lambda weight: weight * np.float32(2)})
        logits, doubled = runner(checkpoint.config, checkpoint), runner(checkpoint.config, changed)
        # RMS norms undo the doubled embedding (up to epsilon) but for the residual stream; the head doubles the logits.
        assert np.abs(doubled(PROMPTS[1])).max() > 1.5 * np.abs(logits(PROMPTS[1])).max()


@pytest.mark.parametrize(("dtype", "kv_cache_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_weights_and_cache_may_differ_in_dtype(dtype: str, kv_cache_dtype: str) -> None:
    tensors = RandomTensors(MODEL)
    config = BuildConfig(dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    graph = network_runner(finished(MODEL, plan_build(MODEL, config)), tensors)
    reference = ReferenceModel(MODEL, tensors, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    tokens = list(range(1, 20))
    same = ReferenceModel(MODEL, tensors, dtype=dtype)
    assert relative_error(graph(tokens), reference(tokens)) < 1e-4
    assert relative_error(graph(tokens), same(tokens)) > 1e-4


TOKENS = tuple(int(token) for token in np.random.default_rng(0).integers(2, 320, 24))


class TestRopesThatDependOnTheLength:
    """Beyond the original context, whose 12 tokens TOKENS leaves: where transformers has one answer it is ours."""

    @pytest.fixture
    def path(self, request: pytest.FixtureRequest, tiny_llama: Callable[[str], Path], tmp_path: Path) -> Path:
        variant, changes = request.param
        path = Path(shutil.copytree(tiny_llama(variant), tmp_path / variant))
        config = json.loads((path / "config.json").read_text())
        config["rope_parameters"] |= changes.pop("rope_parameters", {})
        (path / "config.json").write_text(json.dumps(config | changes))
        return path

    def models(self, path: Path, max_seq_len: int) -> list[LogitsFunction]:
        """The reference and the graph."""
        with open_checkpoint(path) as checkpoint:
            model = checkpoint.config
            plan = plan_build(model, BuildConfig(max_seq_len=max_seq_len))
            tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
        held = SimpleNamespace(tensor=tensors.__getitem__)
        return [ReferenceModel(model, held, max_seq_len=max_seq_len), network_runner(finished(model, plan), held)]

    @pytest.mark.parametrize("path", [("rope_dynamic", {"max_position_embeddings": 12})], indirect=True)
    def test_dynamic_rope_is_cached_generation(self, path: Path) -> None:
        # In this order: transformers' model remembers the longest sequence it has seen.
        within, generated = reference_logits(path, TOKENS[:12]), cached_logits(path, TOKENS, prompt=10)
        at_once = reference_logits(path, TOKENS)
        for model in self.models(path, max_seq_len=48):
            assert relative_error(model(TOKENS[:12]), within) < FLOAT32_TOLERANCE
            assert relative_error(model(TOKENS), generated) < FLOAT32_TOLERANCE
            assert relative_error(model(TOKENS), at_once) > NOTICED

    @pytest.mark.parametrize(
        "path", [("rope_longrope", {"rope_parameters": {"original_max_position_embeddings": 12}})], indirect=True
    )
    def test_longrope_has_the_factors_of_the_engines_longest_sequence(self, path: Path) -> None:
        long, within = reference_logits(path, TOKENS), reference_logits(path, TOKENS[:12])
        for model in self.models(path, max_seq_len=256):
            assert relative_error(model(TOKENS), long) < FLOAT32_TOLERANCE
            assert relative_error(model(TOKENS[:12]), within) > NOTICED
        for model in self.models(path, max_seq_len=12):
            assert relative_error(model(TOKENS[:12]), within) < FLOAT32_TOLERANCE


def relative_error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


IN_FILES = [
    *("gqa", "tied", "attention_bias", "legacy_llama3", "odd_vocab", "odd_intermediate"),
    *("mistral", "qwen2_window", "qwen3"),
]


class TestSteps:
    """The graph over packed sequences gives each of them what it gets alone."""

    MODEL = replace(MODEL, layers=MODEL.layers * 2)
    FIRST = tuple(range(1, 22))
    SECOND = (7, 3, 9)

    def graph(self) -> Any:
        return network_runner(finished(self.MODEL), RandomTensors(self.MODEL))

    def alone(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return ReferenceModel(self.MODEL, RandomTensors(self.MODEL))(tokens)

    def test_two_sequences_in_one_step(self) -> None:
        rows = [*range(21), 21, 22, 23]
        logits = self.graph().step([Chunk(self.FIRST, 0, [5, 2]), Chunk(self.SECOND, 0, [9])], rows)
        np.testing.assert_allclose(logits[:21], self.alone(self.FIRST), atol=1e-5)
        np.testing.assert_allclose(logits[21:], self.alone(self.SECOND), atol=1e-5)

    def test_a_prompt_in_chunks_beside_another_sequence(self) -> None:
        graph, found = self.graph(), []
        for start, stop in itertools.pairwise([0, 5, 16, 17, 21]):
            chunks = [Chunk(self.SECOND[:1], 0, [9]), Chunk(self.FIRST[start:stop], start, [5, 2])]
            found.append(graph.step(chunks, range(1, 1 + stop - start)))
        np.testing.assert_allclose(np.concatenate(found), self.alone(self.FIRST), atol=1e-5)

    def test_only_the_wanted_rows_are_computed_in_the_wanted_order(self) -> None:
        logits = self.graph().step([Chunk(self.FIRST, 0, [5, 2]), Chunk(self.SECOND, 0, [9])], [23, 4])
        assert logits.shape == (2, 40)
        np.testing.assert_allclose(logits[0], self.alone(self.SECOND)[2], atol=1e-5)
        np.testing.assert_allclose(logits[1], self.alone(self.FIRST)[4], atol=1e-5)

    def test_no_rows_may_be_wanted(self) -> None:
        graph = self.graph()
        assert graph.step([Chunk(self.FIRST[:20], 0, [5, 2])], []).shape == (0, 40)
        logits = graph.step([Chunk(self.FIRST[20:], 20, [5, 2])], [0])
        np.testing.assert_allclose(logits[0], self.alone(self.FIRST)[20], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", IN_FILES)
def test_the_files_of_an_engine_hold_the_model(
    variant: str, dtype: str, tiny_llama: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tiny_llama(variant)
    with open_checkpoint(path) as checkpoint:
        build_engine(checkpoint, tmp_path / "engine", BuildConfig(dtype=dtype))
    report = compare(engine_runner(tmp_path / "engine"), path, dtype)
    assert report.passed, report
