"""What of a unified checkpoint's config.json is refused, what is passed over, and what beside it must fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from precast.checkpoints import errors
from precast.checkpoints.checkpoint import open_checkpoint
from tests.checkpoints.editing import edit_json
from tests.checkpoints.tensorrt_llm.releases import (
    Division,
    TinyModel,
    hf_tensors,
    write_hugging_face,
    write_unified,
)


def make(family: str, directory: Path, **changes: Any) -> Path:
    model = TinyModel(family)
    directory.mkdir(exist_ok=True)
    unified = write_unified(model, hf_tensors(model, 0), directory / "unified", Division("later", tp=2))
    edit_json(unified / "config.json", **changes)
    return unified


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"is_pruned": True},
            "is_pruned is true, so trtllm-prune took the weights out; use the checkpoint that",
        ),
        ("llama", {"layer_idx_offset": 3}, "layer_idx_offset 3 is not supported; supported: 0"),
        ("llama", {"use_last_layernorm": False}, "use_last_layernorm False is not supported; supported: True"),
        ("llama", {"output_multiplier_scale": 0.5}, "output_multiplier_scale 0.5 is not supported; supported: 1.0"),
        ("mistral", {"attn_bias": True}, "attn_bias True is not supported for MistralForCausalLM; supported: False"),
        ("mistral", {"mlp_bias": True}, "mlp_bias True is not supported for MistralForCausalLM; supported: False"),
        ("qwen2", {"attn_bias": False}, "attn_bias False is not supported for Qwen2ForCausalLM; supported: True"),
        ("qwen2", {"use_logn_attn": True}, "use_logn_attn True is not supported; supported: False"),
        ("qwen2", {"qk_layernorm": True}, "qk_layernorm is not supported for Qwen2ForCausalLM"),
        ("qwen3", {"attn_bias": True}, "attn_bias True is not supported for Qwen3ForCausalLM; supported: False"),
    ],
)
def test_another_model_is_refused(family: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedArchitectureError, match=f"unified/config.json: {message}"):
        open_checkpoint(make(family, tmp_path, **changes))


def test_an_engine_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"version": "0.17.0", "pretrained_config": {}, "build_config": {}}')
    with pytest.raises(
        errors.ConfigError, match=r"config.json: belongs to an engine of TensorRT-LLM, .* give the check"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "mrope"}, "position_embedding_type 'mrope' is not supported"),
        ({"position_embedding_type": "rope_gptj"}, "position_embedding_type 'rope_gptj' is not supported"),
        ({"rotary_embedding_dim": ..., "rotary_dim": 1}, "rotary_embedding_dim 1 of a head_size of 2 is not supported"),
    ],
)
def test_other_positions_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedRopeError, match=message):
        open_checkpoint(make("llama", tmp_path, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cp_size": 2}, "cp_size 2 is not supported; supported: 1"),
        ({"attn_cp_size": 2}, "attn_cp_size 2 is not supported; supported: 1"),
        ({"enable_attention_dp": True}, "enable_attention_dp True is not supported; supported: False"),
        ({"pp_partition": [1, 1]}, r"pp_partition \[1, 1\] is not supported; supported: None"),
    ],
)
def test_another_division_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.PartitionError, match=f"unified/config.json: mapping: {message}"):
        open_checkpoint(make("llama", tmp_path, mapping={"tp_size": 2, "world_size": 2, **change}))


@pytest.mark.parametrize(
    "key",
    ["dtype", "hidden_act", "hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
     "position_embedding_type", "vocab_size"],
)  # fmt: skip
def test_what_must_be_said(key: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=f"unified/config.json: '{key}' is missing"):
        open_checkpoint(make("llama", tmp_path, **{key: ...}))


def test_a_head_size_that_follows_from_nothing(tmp_path: Path) -> None:
    unified = make("llama", tmp_path, num_attention_heads=3, head_size=..., rotary_embedding_dim=...)
    with pytest.raises(
        errors.ConfigError, match="'hidden_size' must be a multiple of num_attention_heads 3, for there"
    ):
        open_checkpoint(unified)


def test_harmless_keys_may_have_any_value(tmp_path: Path) -> None:
    sizes = {"world_size": 2, "tp_size": 2, "gpus_per_node": 1, "moe_tp_size": -1, "moe_ep_size": -1,
             "moe_cluster_size": -1, "attn_tp_size": 2, "cp_config": {}}  # fmt: skip
    others = {"logits_dtype": "float16", "producer": {"name": "modelopt"}, "runtime_defaults": {"x": 1},
              "seq_length": 8192, "quant_ckpt_path": None, "load_model_on_cpu": True, "moe_tp_mode": 2}  # fmt: skip
    unified = make("llama", tmp_path, mapping=sizes, **others)
    plain = make("llama", tmp_path / "plain")
    with open_checkpoint(unified) as read, open_checkpoint(plain) as expected:
        assert read.config == expected.config


def test_tables_of_angles_are_passed_over_and_nothing_else(tmp_path: Path) -> None:
    unified = make("llama", tmp_path)
    tensors = load_file(unified / "rank0.safetensors")
    names = ("long_rope_rotary_inv_freq", "long_rope_embed_positions_for_gpt_attention", "short_inv_freq",
             "embed_positions_long_factors", "transformer.layers.0.attention.rotary_inv_freq",
             "rotary_inv_freq_local")  # fmt: skip
    save_file({**tensors, **dict.fromkeys(names, np.ones(3, np.float32))}, unified / "rank0.safetensors")
    open_checkpoint(unified).close()
    for left in ("transformer.layers.0.attention.qkv.lora", "not_embed_positions", "inv_freq"):
        save_file({**tensors, left: np.ones(3, np.float32)}, unified / "rank0.safetensors")
        with pytest.raises(errors.UnexpectedTensorError, match=rf"rank0.safetensors: {left} is not part of the model"):
            open_checkpoint(unified)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            r"architectures is \['MistralForCausalLM'\], the checkpoint's is \['LlamaForCausalLM'\]; as",
        ),
        ({"hidden_size": 4096}, "hidden_size is 4096, the checkpoint's is 8"),
        ({"num_hidden_layers": 32}, "num_hidden_layers is 32, the checkpoint's is 2"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Its window and its special tokens would be wrong, and so would the config.json that an engine keeps."""
    model = TinyModel("llama")
    source = write_hugging_face(model, hf_tensors(model, 0), tmp_path / "source")
    edit_json(source / "config.json", **changes)
    with pytest.raises(errors.ConfigError, match=f"source/config.json: {message}"):
        open_checkpoint(make("llama", tmp_path), tokenizer=source)


def test_a_tokenizer_with_a_bare_config(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"eos_token_id": [2, 3], "sliding_window": 7}')
    with open_checkpoint(make("llama", tmp_path), tokenizer=tmp_path / "bare") as read:
        assert read.config.eos_token_ids == (2, 3)


def test_a_head_that_is_not_stored_and_is_no_copy(tmp_path: Path) -> None:
    """A tie_word_embeddings of false says that there is one; with share_embedding_table there may be none."""
    model = TinyModel("llama")
    unified = make("llama", tmp_path)
    for rank in range(2):
        tensors = load_file(unified / f"rank{rank}.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, unified / f"rank{rank}.safetensors")
    with pytest.raises(errors.MissingTensorError, match=r"rank0.safetensors: has no tensor lm_head.weight"):
        open_checkpoint(unified)
    edit_json(unified / "config.json", share_embedding_table=True)
    with open_checkpoint(unified) as read:
        assert "lm_head.weight" not in read.names()
        np.testing.assert_array_equal(
            read.tensor("embedding.weight"), hf_tensors(model, 0)["model.embed_tokens.weight"]
        )
