"""Writes a unified checkpoint as TensorRT-LLM's convert_checkpoint.py does, from its Hugging Face original.

Independent of what reads it: PyTorch's own chunk, cat, pad and tensor_split, as the scripts use them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_unified(
    source: Path,
    target: Path,
    *,
    tp: int = 1,
    pp: int = 1,
    embedding_dim: int | None = None,
    writes_tied_head: bool = True,
    **changes: Any,
) -> Path:
    """Convert `source`. `embedding_dim`: use_parallel_embedding along that axis. `changes`: of config.json."""
    hf = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    target.mkdir()
    config = unified_config(hf, tp, pp, embedding_dim)
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (target / "config.json").write_text(json.dumps(config))
    for rank in range(tp * pp):
        weights = rank_weights(hf, tensors, rank % tp, tp, rank // tp, pp, embedding_dim, writes_tied_head)
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in weights.items()}, target / f"rank{rank}.safetensors"
        )
    return target


def unified_config(hf: dict[str, Any], tp: int, pp: int, embedding_dim: int | None) -> dict[str, Any]:
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    base = rope.pop("rope_theta", hf.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", "default")
    head_size = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    is_qwen = hf["model_type"].startswith("qwen")
    return {
        "architecture": hf["architectures"][0],
        "dtype": hf.get("dtype") or hf.get("torch_dtype"),
        "logits_dtype": "float32",
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "num_hidden_layers": hf["num_hidden_layers"],
        "num_attention_heads": hf["num_attention_heads"],
        "num_key_value_heads": hf["num_key_value_heads"],
        "head_size": head_size,
        "hidden_act": hf["hidden_act"],
        "norm_epsilon": hf["rms_norm_eps"],
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": hf["max_position_embeddings"],
        "rotary_embedding_dim": head_size,
        "rotary_base": base,
        "rotary_scaling": None if kind == "default" else rope,
        "attn_bias": hf["model_type"] == "qwen2" or hf.get("attention_bias", False),
        "mlp_bias": hf.get("mlp_bias", False),
        "qk_layernorm": hf["model_type"] == "qwen3",
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        "use_parallel_embedding": embedding_dim is not None,
        "embedding_sharding_dim": embedding_dim or 0,
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128},
        "mapping": {
            "world_size": tp * pp,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": tp,
            "pp_size": pp,
            "moe_tp_size": tp,
            "moe_ep_size": 1,
        },
        "moe": {"num_experts": 0, "top_k": 0},
        **({"qwen_type": hf["model_type"], "use_logn_attn": False} if is_qwen else {"residual_mlp": False}),
    }


def rank_weights(
    hf: dict[str, Any],
    tensors: dict[str, Tensor],
    tp_rank: int,
    tp: int,
    pp_rank: int,
    pp: int,
    embedding_dim: int | None,
    writes_tied_head: bool,
) -> dict[str, Tensor]:
    layers = torch.tensor_split(torch.arange(hf["num_hidden_layers"]), pp)[pp_rank].tolist()
    weights: dict[str, Tensor] = {}
    for index in layers:
        theirs, ours = f"model.layers.{index}.", f"transformer.layers.{index - layers[0]}."
        layer = {name.removeprefix(theirs): tensor for name, tensor in tensors.items() if name.startswith(theirs)}
        weights |= {ours + name: tensor for name, tensor in layer_weights(hf, layer, tp_rank, tp).items()}
    embedding, is_tied = tensors["model.embed_tokens.weight"], "lm_head.weight" not in tensors
    head = pad_rows(tensors.get("lm_head.weight", embedding), tp)
    if pp_rank == 0:
        if embedding_dim is not None:
            # As the scripts do it: the padded table where it is the head's too, else PyTorch's uneven chunks.
            embedding = (head if is_tied else embedding).chunk(tp, embedding_dim)[tp_rank]
        weights["transformer.vocab_embedding.weight"] = embedding
    if pp_rank == pp - 1:
        weights["transformer.ln_f.weight"] = tensors["model.norm.weight"]
        if writes_tied_head or not is_tied:
            weights["lm_head.weight"] = head.chunk(tp)[tp_rank]
    return weights


def layer_weights(hf: dict[str, Any], layer: dict[str, Tensor], tp_rank: int, tp: int) -> dict[str, Tensor]:
    weights = {
        "input_layernorm.weight": layer["input_layernorm.weight"],
        "post_layernorm.weight": layer["post_attention_layernorm.weight"],
        "attention.dense.weight": layer["self_attn.o_proj.weight"].chunk(tp, 1)[tp_rank],
        "mlp.fc.weight": layer["mlp.gate_proj.weight"].chunk(tp)[tp_rank],
        "mlp.gate.weight": layer["mlp.up_proj.weight"].chunk(tp)[tp_rank],
        "mlp.proj.weight": layer["mlp.down_proj.weight"].chunk(tp, 1)[tp_rank],
    }
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in layer:
            parts = [layer[f"self_attn.q_proj.{kind}"]]
            parts += [repeat_heads(layer[f"self_attn.{part}_proj.{kind}"], hf, tp) for part in "kv"]
            weights[f"attention.qkv.{kind}"] = torch.cat([part.chunk(tp)[tp_rank] for part in parts])
    if "self_attn.o_proj.bias" in layer:
        weights["attention.dense.bias"] = layer["self_attn.o_proj.bias"]
    if "mlp.down_proj.bias" in layer:
        weights["mlp.fc.bias"] = layer["mlp.gate_proj.bias"].chunk(tp)[tp_rank]
        weights["mlp.gate.bias"] = layer["mlp.up_proj.bias"].chunk(tp)[tp_rank]
        weights["mlp.proj.bias"] = layer["mlp.down_proj.bias"]
    for part in "qk":
        if f"self_attn.{part}_norm.weight" in layer:
            weights[f"attention.{part}_layernorm.weight"] = layer[f"self_attn.{part}_norm.weight"]
    return weights


def repeat_heads(tensor: Tensor, hf: dict[str, Any], tp: int) -> Tensor:
    """Key-value heads as often as there are ranks for each."""
    heads = hf["num_key_value_heads"]
    if heads >= tp:
        return tensor
    return tensor.reshape(heads, -1, *tensor.shape[1:]).repeat_interleave(tp // heads, 0).reshape(-1, *tensor.shape[1:])


def pad_rows(tensor: Tensor, multiple: int) -> Tensor:
    rows = -len(tensor) % multiple
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])
