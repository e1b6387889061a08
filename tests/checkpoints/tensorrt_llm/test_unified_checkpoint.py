"""Unified checkpoints of TensorRT-LLM: read as the Hugging Face checkpoints that they were made from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.checkpoints import errors
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.ranks.convert import convert_checkpoint
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition
from tests.checkpoints.editing import edit_safetensors
from tests.checkpoints.tensorrt_llm.unified import write_unified

Tiny = Callable[[str], Path]
SIZES = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]
# Families; one and several key-value heads, biases, tied heads, head sizes, a rope, an odd vocabulary, dtypes.
VARIANTS = ["gqa", "mqa", "mha", "head_dim", "attention_bias", "mlp_bias", "tied", "rope_llama3", "odd_vocab",
            "float16", "bfloat16_tied", "mistral", "mistral_nemo", "qwen2", "qwen2_window", "qwen3"]  # fmt: skip


def assert_equal(source: Path, unified: Path, tokenizer: Path | None) -> None:
    with open_checkpoint(source) as original, open_checkpoint(unified, tokenizer=tokenizer) as read:
        assert read.names() == original.names()
        for name in original.names():
            assert read.info(name) == original.info(name), name
            np.testing.assert_array_equal(
                read.tensor(name).view(np.uint8), original.tensor(name).view(np.uint8), err_msg=name
            )
        assert read.config == original.config
        assert read.companion_files() == original.companion_files()


@pytest.mark.parametrize(("tp", "pp"), SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_original(variant: str, tp: int, pp: int, tiny_llama: Tiny, tmp_path: Path) -> None:
    source = tiny_llama(variant)
    assert_equal(source, write_unified(source, tmp_path / "unified", tp=tp, pp=pp), tokenizer=source)


@pytest.mark.parametrize("embedding_dim", [0, 1])
@pytest.mark.parametrize("variant", ["gqa", "tied", "odd_vocab"])
def test_a_divided_embedding(variant: str, embedding_dim: int, tiny_llama: Tiny, tmp_path: Path) -> None:
    source = tiny_llama(variant)
    unified = write_unified(source, tmp_path / "unified", tp=2, pp=2, embedding_dim=embedding_dim)
    assert_equal(source, unified, tokenizer=source)


def test_a_tied_head_that_is_not_stored(tiny_llama: Tiny, tmp_path: Path) -> None:
    source = tiny_llama("tied")
    assert_equal(source, write_unified(source, tmp_path / "unified", tp=2, writes_tied_head=False), tokenizer=source)


def test_a_head_that_the_config_ties_and_that_differs_is_none(tiny_llama: Tiny, tmp_path: Path) -> None:
    unified = write_unified(tiny_llama("gqa"), tmp_path / "unified", tp=2, tie_word_embeddings=True)
    assert_equal(tiny_llama("gqa"), unified, tokenizer=tiny_llama("gqa"))


def test_older_spellings(tiny_llama: Tiny, tmp_path: Path) -> None:
    """QWenForCausalLM for all of Qwen; optional keys that are absent; a mapping without moe sizes; constants."""
    unified = write_unified(
        tiny_llama("qwen2"),
        tmp_path / "unified",
        tp=2,
        architecture="QWenForCausalLM",
        mapping={"world_size": 2, "tp_size": 2, "pp_size": 1},
        moe=...,
        rotary_embedding_dim=...,
        quantization=...,
        moe_num_experts=0,
    )

    def add_constants(tensors: dict[str, Any]) -> None:
        for name in ("transformer.layers.0.attention.rotary_inv_freq", "transformer.embed_positions_for_gpt_attention"):
            tensors[name] = tensors["transformer.layers.0.input_layernorm.weight"].clone()

    edit_safetensors(unified / "rank0.safetensors", add_constants)
    assert_equal(tiny_llama("qwen2"), unified, tokenizer=tiny_llama("qwen2"))


def test_without_a_tokenizer(tiny_llama: Tiny, tmp_path: Path) -> None:
    """There are no special tokens, and nothing goes into the engine beside the weights."""
    unified = write_unified(tiny_llama("gqa"), tmp_path / "unified")
    with open_checkpoint(unified) as checkpoint, open_checkpoint(tiny_llama("gqa")) as original:
        assert checkpoint.companion_files() == ()
        expected = replace(original.config, bos_token_id=None, eos_token_ids=(), pad_token_id=None)
        assert checkpoint.config == expected
    with pytest.raises(errors.CheckpointNotFoundError, match="nowhere: no such directory; tokenizer is one that holds"):
        open_checkpoint(unified, tokenizer=tmp_path / "nowhere")


def test_a_window_is_the_companions(tiny_llama: Tiny, tmp_path: Path) -> None:
    unified = write_unified(tiny_llama("mistral"), tmp_path / "unified")

    def windows(tokenizer: Path | None) -> set[object]:
        with open_checkpoint(unified, tokenizer=tokenizer) as checkpoint:
            return {getattr(layer.mixer, "window", "?") for layer in checkpoint.config.layers}

    assert windows(tiny_llama("mistral")) == {4}
    assert windows(None) == {None}


def test_stages_are_those_of_the_files(tiny_llama: Tiny, tmp_path: Path) -> None:
    unified = write_unified(tiny_llama("mqa"), tmp_path / "unified", tp=2, pp=2)
    with open_checkpoint(unified) as checkpoint:
        assert checkpoint.partition == Partition(Mapping.of(2, 2), (2, 1))


def test_engines_and_conversions_are_those_of_the_original(tiny_llama: Tiny, tmp_path: Path) -> None:
    source = tiny_llama("tied")
    unified = write_unified(source, tmp_path / "unified", tp=2)
    for name, path, config in [
        ("a", source, BuildConfig(tensor_parallel_size=2)),
        ("b", unified, BuildConfig()),  # for the sizes of the files
        ("c", unified, BuildConfig(tensor_parallel_size=1)),
        ("d", source, BuildConfig()),
    ]:
        with open_checkpoint(path, tokenizer=source) as checkpoint:
            build_engine(checkpoint, tmp_path / name, config)
    assert read_manifest(tmp_path / "a") == read_manifest(tmp_path / "b")
    assert read_manifest(tmp_path / "c") == read_manifest(tmp_path / "d")
    with open_checkpoint(unified, tokenizer=source) as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "ranks", Mapping.of(2, 1))
    with open_checkpoint(tmp_path / "ranks") as ranks, open_checkpoint(source) as original:
        assert ranks.config == original.config


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"architecture": "GPTForCausalLM"},
            errors.UnsupportedArchitectureError,
            "architecture 'GPTForCausalLM' is not",
        ),
        (
            {"architecture": "QWenForCausalLM", "qwen_type": "qwen"},
            errors.UnsupportedArchitectureError,
            "supported: LlamaForCausalLM, .* and QWenForCausalLM with qwen_type qwen2 or qwen3",
        ),
        ({"quantization": {"quant_algo": "W4A16_AWQ"}}, errors.UnsupportedDtypeError, "quant_algo W4A16_AWQ is not"),
        (
            {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}},
            errors.UnsupportedDtypeError,
            "kv_cache_quant_algo FP8 is not supported; use a checkpoint that is not quantised",
        ),
        ({"moe": {"num_experts": 8}}, errors.UnsupportedArchitectureError, "a mixture of 8 experts is not supported"),
        ({"moe_num_experts": 4}, errors.UnsupportedArchitectureError, "a mixture of 4 experts is not supported"),
        (
            {"residual_mlp": True},
            errors.UnsupportedArchitectureError,
            "residual_mlp True is not supported; supported: F",
        ),
        ({"embedding_multiplier": 12.0}, errors.UnsupportedArchitectureError, "embedding_multiplier 12.0 is not"),
        ({"qk_layernorm": True}, errors.UnsupportedArchitectureError, "qk_layernorm is not supported for Llama"),
        ({"position_embedding_type": "alibi"}, errors.UnsupportedRopeError, "position_embedding_type 'alibi' is not"),
        (
            {"rotary_embedding_dim": 8},
            errors.UnsupportedRopeError,
            "rotary_embedding_dim 8 of a head_size of 16 is not",
        ),
        ({"rotary_scaling": {"type": "linear"}}, errors.ConfigError, "'factor' is missing"),
        ({"rotary_scaling": {"type": "su"}}, errors.UnsupportedRopeError, "rope type 'su' is not supported"),
        ({"hidden_act": "gelu"}, errors.UnsupportedActivationError, "hidden_act 'gelu' is not supported"),
        ({"embedding_sharding_dim": 2, "use_parallel_embedding": True}, errors.ConfigError, "must be 0 or 1, not 2"),
        ({"mapping": {"tp_size": 2, "cp_size": 2}}, errors.PartitionError, "cp_size 2 is not supported; supported: 1"),
        (
            {"mapping": {"tp_size": 2, "world_size": 4}},
            errors.ConfigError,
            "'world_size' must be tp_size x pp_size = 2",
        ),
        ({"mapping": {"auto_parallel": True}}, errors.PartitionError, "auto_parallel True is not supported"),
        ({"mapping": {"pp_size": 3}}, errors.ConfigError, "'pp_size' must be at most the 2 layers of the model, not 3"),
        ({"mapping": {"tp_size": 3}}, errors.PartitionError, "tensor_parallel_size 3 does not divide"),
        ({"mapping": {"tp_size": 40000}}, errors.ConfigError, "tensor_parallel_size must be at most 32768"),
        ({"mapping": {"tp_size": 4}}, errors.WeightFilesError, "rank2.safetensors: missing; .* there are 4 ranks"),
        ({"mapping": {"tp_size": 1}}, errors.TensorShapeError, "rank0.safetensors: .* has shape"),
        ({"intermediate_size": 200}, errors.TensorShapeError, r"mlp.fc.weight has shape \[80, 64\], .* \[100, 64\]"),
        ({"num_hidden_layers": 1}, errors.UnexpectedTensorError, "transformer.layers.1.* is not part of the model"),
        (
            {"num_hidden_layers": 3},
            errors.MissingTensorError,
            "has no tensor transformer.layers.2.input_layernorm.weight",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    changes: dict[str, Any], error: type[Exception], message: str, tiny_llama: Tiny, tmp_path: Path
) -> None:
    unified = write_unified(tiny_llama("gqa"), tmp_path / "unified", tp=2, **changes)
    with pytest.raises(error, match=message):
        open_checkpoint(unified)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda tensors: tensors.pop("transformer.ln_f.weight"),
            errors.MissingTensorError,
            "rank1.safetensors: has no",
        ),
        (
            lambda tensors: tensors.update({"transformer.ln_f.weight": tensors["transformer.ln_f.weight"].half()}),
            errors.UnsupportedDtypeError,
            "transformer.ln_f.weight is stored as float16, other ranks' as float32",
        ),
        (
            lambda tensors: tensors.update({"transformer.ln_f.weight": tensors["transformer.ln_f.weight"].char()}),
            errors.UnsupportedDtypeError,
            "transformer.ln_f.weight is stored as I8",
        ),
    ],
)
def test_a_file_that_is_wrong(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str, tiny_llama: Tiny, tmp_path: Path
) -> None:
    unified = write_unified(tiny_llama("gqa"), tmp_path / "unified", tp=2)
    edit_safetensors(unified / "rank1.safetensors", change)
    with pytest.raises(error, match=message):
        open_checkpoint(unified)
