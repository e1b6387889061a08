"""Whatever a release of TensorRT-LLM made of a model is read as that model: drawn sizes, divisions and releases."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from precast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from precast.checkpoints.ranks.rank_model import rank_model
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from tests.checkpoints.editing import edit_json
from tests.checkpoints.tensorrt_llm.releases import (
    RELEASES,
    Division,
    TinyModel,
    can_convert,
    hf_tensors,
    write_hugging_face,
    write_unified,
)

SIZES = st.sampled_from((1, 2, 4))


@st.composite
def conversions(draw: st.DrawFn) -> tuple[TinyModel, Division]:
    release = draw(st.sampled_from(tuple(RELEASES)))
    family = draw(st.sampled_from(RELEASES[release]))
    tied = draw(st.booleans())
    biases = st.booleans() if family == "llama" else st.just(False)
    model = TinyModel(
        family,
        kv_heads=draw(SIZES),
        group=draw(SIZES),
        head_size=draw(st.sampled_from((2, 4))),
        hidden=draw(st.sampled_from((8, 16))),
        intermediate=draw(st.sampled_from((8, 12))),
        layers=draw(st.integers(1, 4)),
        vocab=draw(st.integers(9, 17)),
        bias=draw(biases),
        mlp_bias=draw(biases),
        tied=tied,
    )
    shares = release != "later" and tied and draw(st.booleans())
    axis = draw(st.sampled_from((None, 0, 1)))
    return model, Division(release, draw(SIZES), draw(st.integers(1, 3)), axis, shares)


def check(model: TinyModel, division: Division, directory: Path, seed: int = 0) -> None:
    tensors = hf_tensors(model, seed)
    source = write_hugging_face(model, tensors, directory / "source")
    unified = write_unified(model, tensors, directory / "unified", division)
    with open_checkpoint(source) as original, open_checkpoint(unified, tokenizer=source) as read:
        assert read.config == original.config
        assert read.names() == original.names()
        for name in original.names():
            np.testing.assert_array_equal(read.tensor(name), original.tensor(name), err_msg=name)
        _check_ranks(original, read)


def _check_ranks(original: Checkpoint, read: Checkpoint) -> None:
    """Every rank's slice, from its own files."""
    assert read.partition is not None
    for rank in range(read.partition.mapping.world_size):
        for name, part in rank_model(original.config, read.partition, rank).slices.items():
            np.testing.assert_array_equal(
                read.read(name, part, rank), original.read(name, part, None), err_msg=f"rank {rank}: {name}"
            )


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], deadline=None, max_examples=150)
@given(conversions(), st.integers(0, 2**32 - 1))
def test_a_conversion_is_read_as_its_source(conversion: tuple[TinyModel, Division], seed: int) -> None:
    model, division = conversion
    assume(can_convert(model, division))
    with tempfile.TemporaryDirectory() as directory:
        check(model, division, Path(directory), seed)


@pytest.mark.parametrize(
    ("model", "division"),
    [
        (TinyModel("llama", kv_heads=2), Division("0.9", tp=2, pp=2)),
        (TinyModel("llama", kv_heads=4, group=1, bias=True), Division("0.9", tp=2)),
        (TinyModel("llama", group=4, vocab=13), Division("0.9", tp=4)),
        (TinyModel("llama", kv_heads=2, tied=True, vocab=13), Division("0.9", tp=4, embedding_axis=0)),
        (TinyModel("llama", kv_heads=2, tied=True), Division("0.9", tp=2, embedding_axis=0, shares_embedding=True)),
        (TinyModel("qwen2", kv_heads=2, tied=True), Division("0.10", tp=4)),
        (TinyModel("qwen2", kv_heads=2, tied=True), Division("0.10", shares_embedding=True)),
        (TinyModel("mistral", kv_heads=2, head_size=4), Division("0.12", tp=2, embedding_axis=1)),
        (
            TinyModel("qwen2", kv_heads=2, tied=True, vocab=13),
            Division("0.13", 4, embedding_axis=0, shares_embedding=True),
        ),
        (TinyModel("mistral", kv_heads=1, layers=3), Division("later", tp=2, pp=2)),
        (TinyModel("llama", kv_heads=2, bias=True, mlp_bias=True), Division("later", tp=4)),
        (TinyModel("qwen3", kv_heads=2, head_size=4, vocab=9), Division("later", tp=4, embedding_axis=0)),
    ],
    ids=str,
)
def test_each_release(model: TinyModel, division: Division, tmp_path: Path) -> None:
    """Those that the drawn ones must not miss: heads with copies, an empty share of the vocabulary (9 rows among 4)."""
    assert can_convert(model, division)
    check(model, division, tmp_path)


def test_what_a_config_does_not_say_has_tensorrt_llms_default(tmp_path: Path) -> None:
    """Hugging Face's are others: 1e-6 for the norm, heads of 128 for Qwen 3, an error for the intermediate size."""
    model = TinyModel("qwen3", kv_heads=4, group=1, hidden=8, intermediate=32)
    tensors = hf_tensors(model, 0)
    source = write_hugging_face(model, tensors, tmp_path / "source")
    edit_json(source / "config.json", rms_norm_eps=1e-5, rope_theta=10000.0)
    unified = write_unified(model, tensors, tmp_path / "unified", Division("later", tp=2))
    absent = ("norm_epsilon", "head_size", "rotary_embedding_dim", "intermediate_size", "num_key_value_heads",
              "rotary_base", "rotary_scaling", "attn_bias", "mlp_bias", "tie_word_embeddings", "moe", "quantization",
              "use_parallel_embedding", "embedding_sharding_dim", "qk_layernorm", "use_logn_attn")  # fmt: skip
    edit_json(unified / "config.json", **dict.fromkeys(absent, ...), mapping={"tp_size": 2, "world_size": 2})
    with open_checkpoint(source) as original, open_checkpoint(unified, tokenizer=source) as read:
        assert read.config == original.config
    edit_json(unified / "config.json", **dict.fromkeys(absent))  # null, as a dataclass of Python writes it
    with open_checkpoint(source) as original, open_checkpoint(unified, tokenizer=source) as read:
        assert read.config == original.config


def test_llama3_rope_of_metas_files(tmp_path: Path) -> None:
    """A converter of Meta's own files wrote its type only."""
    model = TinyModel("llama")
    tensors = hf_tensors(model, 0)
    source = write_hugging_face(model, tensors, tmp_path / "source")
    parameters = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 8192}  # fmt: skip
    edit_json(source / "config.json", rope_scaling=parameters)
    unified = write_unified(model, tensors, tmp_path / "unified", Division("later"))
    edit_json(unified / "config.json", rotary_scaling={"type": "llama3"})
    with open_checkpoint(source) as original, open_checkpoint(unified, tokenizer=source) as read:
        assert read.config == original.config
    edit_json(source / "config.json", rope_scaling={**parameters, "factor": 32.0})
    edit_json(unified / "config.json", rotary_scaling={"rope_type": "llama3", "factor": 32.0})
    with open_checkpoint(source) as original, open_checkpoint(unified, tokenizer=source) as read:
        assert read.config == original.config


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_head_that_differs_in_its_last_row_is_its_own(
    axis: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 0.13, whether the head is the embedding is what the files say, compared a few rows at a time."""
    monkeypatch.setattr("precast.checkpoints.tensorrt_llm.tensors._COMPARED_ROWS", 5)
    model = TinyModel("llama", kv_heads=2)
    tensors = hf_tensors(model, 0)
    head = tensors["model.embed_tokens.weight"].copy()
    for is_tied in (True, False):
        head[-1, -1] += 0 if is_tied else 1
        directory = tmp_path / f"tied_{is_tied}"
        unified = write_unified(model, {**tensors, "lm_head.weight": head}, directory, Division("0.9", 2, 1, axis))
        with open_checkpoint(unified) as read:
            assert ("lm_head.weight" not in read.names()) == is_tied
            assert read.hf_config["tie_word_embeddings"] == is_tied


def test_a_rank_reads_its_own_copy(tmp_path: Path) -> None:
    """Norms, biases after a sum, and key-value heads of which there are fewer than ranks lie in several files."""
    model = TinyModel("llama", kv_heads=1, group=4, mlp_bias=True)
    unified = write_unified(model, hf_tensors(model, 0), tmp_path / "unified", Division("later", tp=2))
    copied = ("input_layernorm.weight", "mlp.proj.bias", "attention.qkv.weight")
    path = unified / "rank1.safetensors"
    tensors = load_file(path)
    for name in copied:
        tensors[f"transformer.layers.0.{name}"] += 1
    save_file(tensors, path)
    with open_checkpoint(unified) as read:
        for part in ("mixer_norm.weight", "feed_forward.down.bias", "attention.k.weight", "attention.v.weight"):
            name = f"layers.0.{part}"
            whole = TensorSlice(read.info(name).shape)
            np.testing.assert_array_equal(read.read(name, whole, 1), read.read(name, whole, 0) + 1, err_msg=name)
            np.testing.assert_array_equal(read.read(name, whole, 0), read.tensor(name), err_msg=name)
