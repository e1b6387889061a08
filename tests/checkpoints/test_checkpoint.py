"""Opening a checkpoint: what it gives, and what each way to be wrong is called."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from precast.checkpoints import errors
from precast.checkpoints.checkpoint import open_checkpoint
from tests.checkpoints.editing import edit_json, edit_safetensors

Writable = Callable[[str], Path]
HEAVY = ("torch", "transformers", "huggingface_hub", "tokenizers", "onnx", "safetensors")
Q = "model.layers.1.self_attn.q_proj.weight"


def test_an_open_checkpoint(tiny_llama: Callable[[str], Path]) -> None:
    path = tiny_llama("bfloat16")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.path == path
        assert checkpoint.hf_config == json.loads((path / "config.json").read_text())
        assert checkpoint.generation_config == json.loads((path / "generation_config.json").read_text())
        assert checkpoint.config.eos_token_ids == (1,)
        assert path / "tokenizer.json" in checkpoint.companion_files()
        assert checkpoint.info("final_norm.weight").nbytes == 128
        embedding = checkpoint.tensor("embedding.weight")
        assert embedding.dtype == ml_dtypes.bfloat16
        assert not embedding.flags.writeable
        assert np.shares_memory(embedding, checkpoint.tensor("embedding.weight"))
        before = embedding.astype(np.float32)
        checkpoint.release("embedding.weight")
    np.testing.assert_array_equal(embedding.astype(np.float32), before)


def test_opening_needs_no_torch(tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
    path = [entry for entry in sys.path if entry]
    program = (
        f"import sys; sys.path[:0] = {path!r}\n"
        "from precast.checkpoints.checkpoint import open_checkpoint\n"
        f"open_checkpoint({str(tiny_llama('gqa'))!r}).tensor('embedding.weight').sum()\n"
        f"loaded = {set(HEAVY)!r} & sys.modules.keys()\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=tmp_path)


def test_another_tokenizer(tiny_llama: Callable[[str], Path], writable: Writable) -> None:
    """Everything but the config is that directory's, the special tokens of its generation config too."""
    other = writable("eos_list")
    (other / "tokenizer_config.json").unlink()
    with open_checkpoint(tiny_llama("gqa"), tokenizer=other) as checkpoint:
        files = {file.name: file.parent for file in checkpoint.companion_files()}
        assert files["config.json"] == tiny_llama("gqa")
        assert files["tokenizer.json"] == files["generation_config.json"] == other
        assert "tokenizer_config.json" not in files
        assert checkpoint.config.eos_token_ids == (1, 7)


def test_without_generation_config_the_config_suffices(writable: Writable) -> None:
    path = writable("eos_list")
    (path / "generation_config.json").unlink()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.generation_config is None
        assert checkpoint.config.eos_token_ids == (1, 7)


def test_eos_ids_of_the_generation_config_are_added(writable: Writable) -> None:
    path = writable("gqa")
    edit_json(path / "generation_config.json", eos_token_id=[9, 1])
    assert open_checkpoint(path).config.eos_token_ids == (1, 9)


def test_the_stored_dtype_counts_where_the_config_declares_none(writable: Writable) -> None:
    path = writable("bfloat16")
    edit_json(path / "config.json", dtype=...)
    assert open_checkpoint(path).config.dtype == "bfloat16"


def refused(path: Path, kind: type[errors.CheckpointError]) -> str:
    """The message with which opening `path` fails, without the path of the test."""
    with pytest.raises(errors.CheckpointError) as caught:
        open_checkpoint(path)
    assert type(caught.value) is kind
    return str(caught.value).replace(str(path), "DIR")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            errors.UnsupportedArchitectureError,
            (
                "DIR/config.json: architecture 'GPT2LMHeadModel' is not supported; supported: "
                "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
            ),
        ),
        (
            {"hidden_act": "gelu"},
            errors.UnsupportedActivationError,
            "DIR/config.json: hidden_act 'gelu' is not supported; supported: silu",
        ),
        (
            {"rope_parameters": {"rope_type": "mrope", "factor": 2.0}},
            errors.UnsupportedRopeError,
            (
                "DIR/config.json: rope_parameters: rope type 'mrope' is not supported; "
                "supported: default, linear, llama3, yarn, dynamic, longrope"
            ),
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            errors.UnsupportedDtypeError,
            (
                "DIR/config.json: the weights are quantised (fp8), which is not supported; "
                "use a checkpoint in float32, bfloat16, float16"
            ),
        ),
        (
            {"num_attention_heads": 5, "head_dim": 16},
            errors.ConfigError,
            "DIR/config.json: AttentionConfig: num_heads 5 is not a multiple of num_kv_heads 2",
        ),
        (
            {"eos_token_id": 320},
            errors.ConfigError,
            "DIR/config.json: ModelConfig: eos_token_ids 320 is outside the vocabulary of 320 tokens",
        ),
        ({"hidden_size": ...}, errors.ConfigError, "DIR/config.json: 'hidden_size' is missing"),
        (
            {"rms_norm_eps": "1e-5"},
            errors.ConfigError,
            "DIR/config.json: 'rms_norm_eps' must be a finite number, not '1e-5'",
        ),
        (
            {"num_hidden_layers": 3},
            errors.MissingTensorError,
            (
                "DIR/model.safetensors: has no tensor model.layers.2.input_layernorm.weight; "
                "config.json calls for it, with shape [64] (and 8 more like it)"
            ),
        ),
        (
            {"num_hidden_layers": 1},
            errors.UnexpectedTensorError,
            (
                "DIR/model.safetensors: model.layers.1.input_layernorm.weight of shape [64] is not part of the model "
                "that config.json describes (and 8 more like it)"
            ),
        ),
        (
            {"vocab_size": 352},
            errors.TensorShapeError,
            "DIR/model.safetensors: model.embed_tokens.weight has shape [320, 64], config.json calls for [352, 64]",
        ),
        (
            {"attention_bias": True},
            errors.MissingTensorError,
            (
                "DIR/model.safetensors: has no tensor model.layers.0.self_attn.q_proj.bias; "
                "config.json calls for it, with shape [64] (and 7 more like it)"
            ),
        ),
    ],
)
def test_a_config_that_cannot_be_used(
    writable: Writable, changes: dict[str, Any], kind: type[errors.CheckpointError], message: str
) -> None:
    path = writable("gqa")
    edit_json(path / "config.json", **changes)
    assert refused(path, kind) == message


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda tensors: tensors.pop(Q),
            errors.MissingTensorError,
            f"DIR/model.safetensors: has no tensor {Q}; config.json calls for it, with shape [64, 64]",
        ),
        (
            lambda tensors: tensors.pop("lm_head.weight"),
            errors.MissingTensorError,
            (
                "DIR/model.safetensors: has no tensor lm_head.weight; config.json calls for it, with shape [320, 64]; "
                "a model whose head is its embedding must set tie_word_embeddings in config.json"
            ),
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.router.weight": torch.zeros(4, 64)}),
            errors.UnexpectedTensorError,
            (
                "DIR/model.safetensors: model.layers.0.mlp.router.weight of shape [4, 64] is not part of the model "
                "that config.json describes"
            ),
        ),
        (
            lambda tensors: tensors.update({Q: torch.zeros(64, 48)}),
            errors.TensorShapeError,
            f"DIR/model.safetensors: {Q} has shape [64, 48], config.json calls for [64, 64]",
        ),
        (
            lambda tensors: tensors.update({Q: torch.zeros(64, 64, dtype=torch.float8_e4m3fn)}),
            errors.UnsupportedDtypeError,
            f"DIR/model.safetensors: {Q} is stored as F8_E4M3; supported: float32, bfloat16, float16",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config(
    writable: Writable, change: Any, kind: type[errors.CheckpointError], message: str
) -> None:
    path = writable("gqa")
    edit_safetensors(path / "model.safetensors", change)
    assert refused(path, kind) == message


def test_a_missing_tensor_of_shards_names_the_index(writable: Writable) -> None:
    path = writable("shards")
    index = path / "model.safetensors.index.json"
    shard = json.loads(index.read_text())["weight_map"][Q]
    edit_safetensors(path / shard, lambda tensors: tensors.pop(Q))
    assert refused(path, errors.WeightFilesError) == (
        f"DIR/model.safetensors.index.json: says that {Q} is in {shard}, which does not hold it"
    )


def test_a_truncated_shard_is_named(writable: Writable) -> None:
    path = writable("shards")
    shard = sorted(path.glob("*.safetensors"))[3]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert refused(path, errors.CorruptFileError).startswith(f"DIR/{shard.name}: truncated: it has ")


def test_a_tied_model_may_store_its_head_again(writable: Writable) -> None:
    path = writable("tied")
    edit_safetensors(
        path / "model.safetensors", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == open_checkpoint(path).config
        assert "lm_head.weight" not in checkpoint.names()


def test_a_tied_model_may_store_its_matrix_as_the_head(writable: Writable) -> None:
    path = writable("tied")
    expected = open_checkpoint(path).tensor("embedding.weight").copy()
    edit_safetensors(
        path / "model.safetensors", lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")})
    )
    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor("embedding.weight"), expected)
        assert "lm_head.weight" not in checkpoint.names()


def test_a_head_that_differs_is_not_tied_as_in_transformers(writable: Writable) -> None:
    path = writable("tied")
    edit_safetensors(
        path / "model.safetensors", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2})
    )
    with open_checkpoint(path) as checkpoint:
        assert "lm_head.weight" in checkpoint.names()
        embedding, head = (checkpoint.tensor(name) for name in ("embedding.weight", "lm_head.weight"))
        np.testing.assert_array_equal(head, embedding * 2)


def test_every_error_is_a_checkpoint_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    assert all(issubclass(kind, errors.CheckpointError) for kind in kinds)
    assert issubclass(errors.CheckpointError, ValueError)
